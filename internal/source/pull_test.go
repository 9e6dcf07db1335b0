package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/devcloud/cloudtest"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
)

var cloud *cloudtest.Cloud

func TestMain(m *testing.M) { cloudtest.VerifyTestMain(m, &cloud) }

// object is an object in a bucket of its own, and a puller to an empty cache.
func object(t *testing.T, content []byte) (*Puller, *bucket.Bucket, *bucket.Object) {
	t.Helper()
	b, err := bucket.Open(t.Context(), cloud.AWS, cloud.Bucket(t), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, b, content)
	return puller(t, t.TempDir()), b, head(t, b)
}

func puller(t *testing.T, dir string) *Puller {
	t.Helper()
	c, err := cache.Open(dir, 1<<40, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return NewPuller(c, slog.New(slog.DiscardHandler))
}

func head(t *testing.T, b *bucket.Bucket) *bucket.Object {
	t.Helper()
	o, err := b.Head(t.Context(), "build.zip")
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// taken are the segments of a pull, not pinned any more.
type taken []*cache.Entry

// pullOf is a pull whose segments are taken.
func pullOf(t *testing.T, b *bucket.Bucket, o *bucket.Object, name string) (Pull, *taken) {
	t.Helper()
	l, err := manifest.NewLayout(manifest.Ramp, o.Size)
	if err != nil {
		t.Fatal(err)
	}
	var segments taken
	return Pull{
		From: b, Object: o, Layout: l, Name: name,
		Progress: func(int64) {},
		Segment: func(i int, e *cache.Entry) error {
			if i != len(segments) || !e.Whole() || e.Manifest().Shape != l.SegmentShape(i) {
				t.Errorf("segment %d, of %d bytes, comes after %d others", i, e.Manifest().Size, len(segments))
			}
			segments = append(segments, e)
			e.Unpin()
			return nil
		},
	}, &segments
}

// inTurn pulls as the only one.
func inTurn(ctx context.Context, p *Puller, of Pull) (sha256 string, err error) {
	turn := p.TakeTurn(Want{Bucket: of.From.Name()})
	defer turn.End()
	if err := turn.Begin(ctx); err != nil {
		return "", err
	}
	of.Turn = turn
	return p.Pull(ctx, of)
}

// are fails the test unless the segments are all of want.
func (s taken) are(t *testing.T, want []byte) {
	t.Helper()
	var got []byte
	for _, e := range s {
		if err := e.Open(); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, e.Shape().Size)
		if _, err := e.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		e.Close()
		got = append(got, b...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d segments of %d bytes in all are not what was stored", len(s), len(got))
	}
}

func put(t *testing.T, b *bucket.Bucket, content []byte) {
	t.Helper()
	_, err := cloud.S3.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String(b.Name()), Key: aws.String("build.zip"), Body: bytes.NewReader(content),
	})
	if err != nil {
		t.Fatal(err)
	}
}

func random(seed byte, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// allBack fails the test unless every block is back in the store, and nothing is pinned.
func allBack(t *testing.T, p *Puller) {
	t.Helper()
	if n := len(p.line.turns); n != 0 {
		t.Errorf("%d turns are not given back", n)
	}
	if made, free := p.line.made, len(p.line.free); free != made || made > maxBlocks {
		t.Errorf("%d of %d blocks are free", free, made)
	}
	for _, e := range cache.View(p.cache).Entries {
		if e.Pinned {
			t.Errorf("%s is pinned still", e.InfoHash)
		}
	}
}

func TestPull(t *testing.T) {
	for _, size := range []int{0, 1, manifest.MinPartLength, manifest.MinPartLength + 1, 5*blockLength + 17} {
		want := random(1, size)
		p, b, o := object(t, want)
		of, segments := pullOf(t, b, o, "one")
		var progress []int64
		of.Progress = func(n int64) { progress = append(progress, n) }
		sum, err := inTurn(t.Context(), p, of)
		if err != nil {
			t.Fatal(err)
		}
		segments.are(t, want)
		if digest := fmt.Sprintf("%x", sha256.Sum256(want)); sum != digest {
			t.Errorf("size %d: SHA-256 is %s, expected %s", size, sum, digest)
		}
		if n := len(progress); size > 0 && (n == 0 || progress[n-1] != int64(size)) || !slices.IsSorted(progress) {
			t.Errorf("size %d: progress %v", size, progress)
		}
		if n := p.BytesRead(); n != int64(size) {
			t.Errorf("%d of %d bytes were read", n, size)
		}
		allBack(t, p)
	}
}

// Each segment is handed over as soon as its bytes are hashed, pinned, while those after
// it are on their way.
func TestSegmentsComeOneByOne(t *testing.T) {
	const segments = 8
	want := random(1, segments*manifest.MinPartLength)
	p, b, o := object(t, want)
	of, _ := pullOf(t, b, o, "one")
	var hashed int64
	of.Progress = func(n int64) { hashed = n }
	var entries taken
	of.Segment = func(i int, e *cache.Entry) error {
		offset, length := of.Layout.SegmentRange(i)
		if i != len(entries) || hashed < offset+length || hashed >= offset+length+blockLength {
			t.Errorf("segment %d comes after %d others, when %d bytes are hashed", i, len(entries), hashed)
		}
		if e.InfoHash() != manifesttest.Segment(want[offset:offset+length]).InfoHash() {
			t.Errorf("segment %d is another one", i)
		}
		entries = append(entries, e)
		return nil
	}
	if _, err := inTurn(t.Context(), p, of); err != nil {
		t.Fatal(err)
	}
	entries.are(t, want)
	for _, e := range cache.View(p.cache).Entries {
		if !e.Pinned {
			t.Errorf("%s is not pinned", e.InfoHash)
		}
	}
	for _, e := range entries {
		e.Unpin()
	}
	allBack(t, p)
}

// Whoever does not want a segment ends the pull, soon; the next one begins where it was.
func TestSegmentRefused(t *testing.T) {
	const segments = 16
	want := random(1, segments*manifest.MinPartLength)
	p, b, o := object(t, want)
	refused := errors.New("refused")
	for _, at := range []int{2, 4, segments - 1} {
		of, taken := pullOf(t, b, o, "one")
		take := of.Segment
		of.Segment = func(i int, e *cache.Entry) error {
			return errors.Join(take(i, e), map[int]error{at: refused}[i])
		}
		if _, err := inTurn(t.Context(), p, of); !errors.Is(err, refused) || errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		if len(*taken) != at+1 {
			t.Errorf("%d segments were handed over, segment %d was refused", len(*taken), at)
		}
		if n, most := p.BytesRead(), int64(at+1)*manifest.MinPartLength+maxBlocks*blockLength; n > most {
			t.Errorf("%d bytes were read, expected at most %d", n, most)
		}
		allBack(t, p)
	}
	of, taken := pullOf(t, b, o, "one")
	if _, err := inTurn(t.Context(), p, of); err != nil {
		t.Fatal(err)
	}
	taken.are(t, want)
	if n := p.BytesRead(); n > int64(len(want))+3*pullParallel*blockLength {
		t.Errorf("%d bytes were read of %d", n, len(want)) // some were broken off on their way
	}
	allBack(t, p)
}

func TestPullsShareBlocksWithoutBlocking(t *testing.T) {
	want := random(1, 20*blockLength)
	p, b, o := object(t, want)
	var wg sync.WaitGroup
	for _, name := range []string{"one", "two", "three", "four"} {
		of, segments := pullOf(t, b, o, name)
		wg.Go(func() {
			if _, err := inTurn(t.Context(), p, of); err != nil {
				t.Error(err)
				return
			}
			segments.are(t, want)
		})
	}
	wg.Wait()
	if n := p.cache.Size(); n != int64(len(want)) {
		t.Errorf("%d bytes are kept of one object of %d", n, len(want))
	}
	allBack(t, p)
}

func TestObjectReplacedWhileItIsPulled(t *testing.T) {
	first, second := random(1, 3*maxBlocks*blockLength), random(2, 1000)
	p, b, o := object(t, first)
	of, segments := pullOf(t, b, o, "one")
	replaced := false
	of.Progress = func(int64) {
		if !replaced {
			replaced = true
			put(t, b, second)
		}
	}
	if _, err := inTurn(t.Context(), p, of); !errors.Is(err, bucket.ErrChanged) {
		t.Errorf("a mix of two objects: %v", err)
	}
	var bytes int64
	for _, e := range *segments {
		bytes += e.Manifest().Size
	}
	segments.are(t, first[:bytes])
	if n := p.cache.Left("one"); n > 1<<10 {
		t.Errorf("%d bytes were kept of what is no segment yet", n)
	}
	allBack(t, p)
	of, segments = pullOf(t, b, head(t, b), "one")
	if _, err := inTurn(t.Context(), p, of); err != nil {
		t.Fatal(err)
	}
	segments.are(t, second)
	allBack(t, p)
}

func TestPullEnds(t *testing.T) {
	p, b, o := object(t, random(1, 3*maxBlocks*blockLength))
	ctx, cancel := context.WithCancel(t.Context())
	of, _ := pullOf(t, b, o, "one")
	of.Progress = func(int64) { cancel() }
	if _, err := inTurn(ctx, p, of); !errors.Is(err, context.Canceled) {
		t.Errorf("pull ended with %v", err)
	}
	allBack(t, p)
}

// The ranges of a segment that are asked for together are no longer than it is, and no
// shorter than need be.
func TestRangeLength(t *testing.T) {
	for _, c := range []struct{ segment, want int64 }{
		{1, leastRange},
		{pullParallel * leastRange, leastRange},
		{pullParallel*leastRange + 1, leastRange},
		{pullParallel * 2 * leastRange, 2 * leastRange},
		{manifest.MinPartLength, leastRange},
		{2 * manifest.MinPartLength, 2 * leastRange},
		{pullParallel*blockLength - 1, 2 << 20},
		{pullParallel * blockLength, blockLength},
		{64 << 30, blockLength},
	} {
		if got := rangeLength(c.segment); got != c.want {
			t.Errorf("a segment of %d bytes is read in ranges of %d, expected %d", c.segment, got, c.want)
		}
	}
}

// through opens a bucket of the embedded S3, counting the GETs.
func through(t *testing.T, name string, asked *atomic.Int64) *bucket.Bucket {
	t.Helper()
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: counting{cloud.AWS.HTTPClient.(*http.Client).Transport, asked}}
	b, err := bucket.Open(t.Context(), cfg, name, bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A pull that broke off is gone on with, in another process: what it has brought is not
// fetched again, segments or blocks of the one that it was at.
func TestPullGoesOn(t *testing.T) {
	const size = 3 * maxBlocks * blockLength
	want := random(1, size)
	_, from, o := object(t, want)
	dir := t.TempDir()
	p := puller(t, dir)
	var asked atomic.Int64
	b := through(t, from.Name(), &asked)
	ctx, cancel := context.WithCancel(t.Context())
	of, segments := pullOf(t, b, o, "one")
	step := rangeLength(manifest.MinPartLength)
	var hashed int64
	of.Progress = func(n int64) {
		if hashed = n; n >= size/2+step {
			cancel()
		}
	}
	if _, err := inTurn(ctx, p, of); !errors.Is(err, context.Canceled) {
		t.Fatalf("pull ended with %v", err)
	}
	if n := len(*segments); n != size/2/manifest.MinPartLength {
		t.Errorf("%d segments are here", n)
	}
	allBack(t, p)
	if err := p.cache.Close(); err != nil {
		t.Fatal(err)
	}
	p = puller(t, dir)
	asked.Store(0)
	of, segments = pullOf(t, b, o, "one")
	if _, err := inTurn(t.Context(), p, of); err != nil {
		t.Fatal(err)
	}
	segments.are(t, want)
	if n, most := asked.Load(), (size-hashed)/step; n > most {
		t.Errorf("%d ranges were asked for, at most %d were missing", n, most)
	}
	allBack(t, p)
}

// A segment that the disk has lost or changed since it was pulled is read again, and
// none of the others.
func TestPulledSegmentIsDamagedOnTheDisk(t *testing.T) {
	const lost, segments, again = 2, 5, manifest.MinPartLength / leastRange
	want := random(1, segments*manifest.MinPartLength)
	_, from, o := object(t, want)
	var asked atomic.Int64
	b := through(t, from.Name(), &asked)
	for name, c := range map[string]struct {
		damage func(dir string) error
		fails  bool // one pull, which finds it
		ranges int64
	}{
		"nothing":       {damage: func(string) error { return nil }},
		"evicted":       {os.RemoveAll, false, again},
		"cut short":     {func(dir string) error { return os.Truncate(filepath.Join(dir, "data"), 5) }, false, again},
		"a piece lacks": {func(dir string) error { return overwrite(filepath.Join(dir, "have"), 3, 0xfe) }, false, again},
		"another byte":  {func(dir string) error { return overwrite(filepath.Join(dir, "data"), 12345, want[0]^want[12345]^1) }, true, again},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p := puller(t, dir)
			of, taken := pullOf(t, b, o, "one")
			if _, err := inTurn(t.Context(), p, of); err != nil {
				t.Fatal(err)
			}
			if err := p.cache.Close(); err != nil {
				t.Fatal(err)
			}
			if err := c.damage(filepath.Join(dir, (*taken)[lost].InfoHash().String())); err != nil {
				t.Fatal(err)
			}
			p = puller(t, dir)
			asked.Store(0)
			if c.fails {
				of, _ = pullOf(t, b, o, "one")
				if _, err := inTurn(t.Context(), p, of); err == nil || !strings.Contains(err.Error(), "segment 2 of build.zip is not on the disk as it was pulled") {
					t.Errorf("ended with %v", err)
				}
				allBack(t, p)
			}
			for range 2 { // what was read again is here for good
				of, taken = pullOf(t, b, o, "one")
				if _, err := inTurn(t.Context(), p, of); err != nil {
					t.Fatal(err)
				}
				taken.are(t, want)
				allBack(t, p)
				if n := asked.Load(); n != c.ranges {
					t.Errorf("%d ranges were asked for, expected %d", n, c.ranges)
				}
			}
		})
	}
}

func overwrite(file string, offset int64, b byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{b}, offset)
	return errors.Join(err, f.Close())
}

// counting counts the GETs.
type counting struct {
	next http.RoundTripper
	n    *atomic.Int64
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet {
		c.n.Add(1)
	}
	return c.next.RoundTrip(r)
}

func TestPieces(t *testing.T) {
	const size = 3*blockLength + 12_345
	want := random(1, size)
	p, b, o := object(t, want)
	of, segments := pullOf(t, b, o, "one")
	if _, err := inTurn(t.Context(), p, of); err != nil {
		t.Fatal(err)
	}
	for i, e := range *segments {
		if err := e.Open(); err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		m := e.Manifest()
		at, _ := of.Layout.SegmentRange(i)
		var asked []int
		for _, piece := range []int{0, 1, 2, 20, 21, m.NumPieces() - 1} {
			if piece < m.NumPieces() && !slices.Contains(asked, piece) {
				asked = append(asked, piece)
			}
		}
		var got []int
		err := Pieces(t.Context(), b, o.Key, o.ETag, at, m, asked, func(_ context.Context, piece int, content []byte) error {
			got = append(got, piece)
			offset, length := m.PieceRange(piece)
			if !bytes.Equal(content, want[at+offset:at+offset+length]) {
				t.Errorf("piece %d of segment %d is not what it was", piece, i)
			}
			return nil
		})
		if err != nil || !slices.Equal(got, asked) {
			t.Errorf("got %v, %v", got, err)
		}
	}
	m := (*segments)[0].Manifest()
	refused := errors.New("refused")
	err := Pieces(t.Context(), b, o.Key, o.ETag, 0, m, []int{0, 1}, func(context.Context, int, []byte) error { return refused })
	if !errors.Is(err, refused) {
		t.Errorf("ended with %v", err)
	}
	put(t, b, random(2, size))
	err = Pieces(t.Context(), b, o.Key, o.ETag, 0, m, []int{0, 1}, func(context.Context, int, []byte) error { return nil })
	if !errors.Is(err, bucket.ErrChanged) {
		t.Errorf("a replaced object: %v", err)
	}
}

// BenchmarkPull compares what the seeder does with a new object to fetching it
// alone: the same ranges in parallel to the same disk, nothing hashed; and what comparing
// with the source's checksum costs beside the hashing. Source and puller share the
// machine's cores; cpu-s/GiB is what both of them use.
func BenchmarkPull(b *testing.B) {
	const size = 256 << 20
	ctx := b.Context()
	from, err := bucket.Open(ctx, cloud.AWS, cloud.Bucket(b), bucket.Options{})
	if err != nil {
		b.Fatal(err)
	}
	o, err := from.Upload(ctx, "build.zip", io.LimitReader(rand.NewChaCha8([32]byte{}), size), size, bucket.Headers{})
	if err != nil {
		b.Fatal(err)
	}
	c, err := cache.Open(b.TempDir(), 1<<40, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	p := NewPuller(c, slog.New(slog.DiscardHandler))
	layout, err := manifest.NewLayout(manifest.Ramp, size)
	if err != nil {
		b.Fatal(err)
	}
	for name, lanes := range map[string]func(h *manifest.Hasher) []io.Writer{
		"alone":                 func(*manifest.Hasher) []io.Writer { return []io.Writer{io.Discard} },
		"hashed":                (*manifest.Hasher).Lanes,
		"compared by CRC64NVME": func(h *manifest.Hasher) []io.Writer { return append(h.Lanes(), bucket.CRC64NVME.New()) },
		"compared by CRC32":     func(h *manifest.Hasher) []io.Writer { return append(h.Lanes(), bucket.CRC32.New()) },
		"compared by MD5":       func(h *manifest.Hasher) []io.Writer { return append(h.Lanes(), bucket.ETagMD5.New()) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			before, gib := cpu(b), 0.0
			defer func() { b.ReportMetric((cpu(b)-before)/gib, "cpu-s/GiB") }()
			for b.Loop() {
				gib += float64(size) / (1 << 30)
				turn := p.TakeTurn(Want{Bucket: from.Name()})
				if err := turn.Begin(ctx); err != nil {
					b.Fatal(err)
				}
				j := p.job(Pull{Turn: turn, From: from, Object: o, Layout: layout, Name: "bench", Progress: func(int64) {}}, p.line.giveBack)
				j.whole = layout.NumSegments() // none is made an entry, or it would be here the next time
				if err := j.copy(ctx, lanes(j.hasher), j.request); err != nil {
					b.Fatal(err)
				}
				turn.End()
				if err := j.end(false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// cpu is what this process has used, in seconds.
func cpu(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// While the first segment is not here, one range beyond it is asked for and no more; later
// on, as many as there may be.
func TestFirstSegmentIsNotHeldUp(t *testing.T) {
	layout, err := manifest.NewLayout(manifest.Ramp, 3*manifest.MinPartLength)
	if err != nil {
		t.Fatal(err)
	}
	f := newFirst(layout)
	turn := new(line).enter(Want{})
	passes := func(segment int) func() {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		ended, err := f.pass(ctx, segment, turn)
		if err != nil {
			return nil
		}
		return ended
	}
	var ofFirst []func()
	for range manifest.MinPartLength / leastRange {
		ofFirst = append(ofFirst, passes(0))
	}
	ahead := passes(1)
	for range 100 { // which of two ways is taken is random
		if ahead == nil {
			ahead = passes(1)
		}
	}
	if ahead == nil {
		t.Fatal("nothing is asked for beyond the first segment")
	}
	if passes(1) != nil {
		t.Error("two ranges beyond the first segment are asked for")
	}
	for _, ended := range ofFirst {
		if passes(2) != nil {
			t.Error("more is asked for before the first segment is here")
		}
		ended()
	}
	for range 10 {
		if passes(2) == nil {
			t.Fatal("a range has to wait though the first segment is here")
		}
	}
	ahead()
}
