package source

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
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
)

var cloud *cloudtest.Cloud

func TestMain(m *testing.M) { cloudtest.VerifyTestMain(m, &cloud) }

// source is an object in a bucket of its own, and a puller to an empty cache.
func object(t *testing.T, content []byte) (*Puller, *bucket.Bucket, *bucket.Object) {
	t.Helper()
	b, err := bucket.Open(t.Context(), cloud.AWS, cloud.Bucket(t), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, b, content)
	o, err := b.Head(t.Context(), "build.zip")
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(t.TempDir(), 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return NewPuller(c, slog.New(slog.DiscardHandler)), b, o
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

// allBlocks fails the test unless every block is back in the store.
func allBlocks(t *testing.T, p *Puller) {
	t.Helper()
	if n := len(p.blocks); n != maxBlocks {
		t.Errorf("%d of %d blocks are free", n, maxBlocks)
	}
}

func TestPull(t *testing.T) {
	for _, size := range []int{1, blockLength, 5*blockLength + 17} {
		want := random(1, size)
		p, b, o := object(t, want)
		var progress []int64
		m, entry, err := p.Pull(t.Context(), b, o, "one", func(n int64) { progress = append(progress, n) })
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, size)
		if _, err := entry.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) || !entry.Whole() || m.Size != int64(size) {
			t.Errorf("size %d: %v", size, err)
		}
		if n := len(progress); n == 0 || progress[n-1] != int64(size) {
			t.Errorf("size %d: progress %v", size, progress)
		}
		allBlocks(t, p)
	}
}

func TestPullsShareBlocksWithoutBlocking(t *testing.T) {
	want := random(1, 20*blockLength)
	p, b, o := object(t, want)
	var wg sync.WaitGroup
	for _, name := range []string{"one", "two", "three", "four"} {
		wg.Go(func() {
			if _, _, err := p.Pull(t.Context(), b, o, name, func(int64) {}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	allBlocks(t, p)
}

func TestObjectReplacedWhileItIsPulled(t *testing.T) {
	p, b, o := object(t, random(1, 3*maxBlocks*blockLength))
	replaced := false
	_, _, err := p.Pull(t.Context(), b, o, "one", func(int64) {
		if !replaced {
			replaced = true
			put(t, b, random(2, 1000))
		}
	})
	if !errors.Is(err, bucket.ErrChanged) {
		t.Errorf("a mix of two objects: %v", err)
	}
	if p.cache.Size() != 0 {
		t.Error("something was kept of it")
	}
	allBlocks(t, p)
}

func TestPullEnds(t *testing.T) {
	p, b, o := object(t, random(1, 3*maxBlocks*blockLength))
	ctx, cancel := context.WithCancel(t.Context())
	if _, _, err := p.Pull(ctx, b, o, "one", func(int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("pull ended with %v", err)
	}
	allBlocks(t, p)
}

// A pull that broke off is gone on with: what it has brought is not fetched again.
func TestPullGoesOn(t *testing.T) {
	const blocks = 3 * maxBlocks
	want := random(1, blocks*blockLength)
	p, from, o := object(t, want)
	var asked atomic.Int64
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: counting{cloud.AWS.HTTPClient.(*http.Client).Transport, &asked}}
	b, err := bucket.Open(t.Context(), cfg, from.Name(), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var hashed int64
	_, _, err = p.Pull(ctx, b, o, "one", func(n int64) {
		if ctx.Err() != nil {
			return
		}
		if hashed = n; n >= blocks*blockLength/2 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("pull ended with %v", err)
	}
	asked.Store(0)
	_, entry, err := p.Pull(t.Context(), b, o, "one", func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := entry.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("not the object: %v", err)
	}
	if n, most := asked.Load(), blocks-hashed/blockLength; n > most {
		t.Errorf("%d blocks were asked for, at most %d were missing", n, most)
	}
	allBlocks(t, p)
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
	m, entry, err := p.Pull(t.Context(), b, o, "one", func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	entry.Unpin()
	last := m.NumPieces() - 1
	asked := []int{0, 1, 2, 40, 41, last}
	var got []int
	err = Pieces(t.Context(), b, o.Key, o.ETag, m, asked, func(_ context.Context, piece int, content []byte) error {
		got = append(got, piece)
		offset, length := m.PieceRange(piece)
		if !bytes.Equal(content, want[offset:offset+length]) {
			t.Errorf("piece %d is not what it was", piece)
		}
		return nil
	})
	if err != nil || !slices.Equal(got, asked) {
		t.Errorf("got %v, %v", got, err)
	}
	refused := errors.New("refused")
	err = Pieces(t.Context(), b, o.Key, o.ETag, m, asked, func(context.Context, int, []byte) error { return refused })
	if !errors.Is(err, refused) {
		t.Errorf("ended with %v", err)
	}
	put(t, b, random(2, size))
	err = Pieces(t.Context(), b, o.Key, o.ETag, m, asked, func(context.Context, int, []byte) error { return nil })
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
	c, err := cache.Open(b.TempDir(), 1<<40)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	p := NewPuller(c, slog.New(slog.DiscardHandler))
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
				h, err := manifest.NewHasher(size, "", nil)
				if err != nil {
					b.Fatal(err)
				}
				file, err := c.Pull("bench", "", size)
				if err != nil {
					b.Fatal(err)
				}
				if err := p.copy(ctx, from, o, file, lanes(h), func(int64) {}); err != nil {
					b.Fatal(err)
				}
				if err := file.Abort(); err != nil {
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
