// Package source brings the bytes of builds from the buckets that they are in,
// whole and hashed on the way, in ranged reads that never mix two objects.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/answers"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/tracing"
)

const (
	// blockLength is the length of one ranged GET in bytes: long enough that
	// its round trip does not count, short enough to hold several in memory.
	blockLength = 4 << 20
	// leastRange is how short a range may be in bytes: shorter ones cost a round trip each.
	leastRange = 512 << 10
	// pullAhead is how many ranges beyond the first segment are asked for while that is not
	// here: each takes its share of the link from the first one's last ranges, and until
	// those are here nothing can be sent to anybody.
	pullAhead = 1
	// rangeTries bounds how often a range that breaks off is asked for, firstBackoff and
	// maxBackoff the waits in between.
	rangeTries               = 4
	firstBackoff, maxBackoff = 200 * time.Millisecond, time.Second
	// stalledTries is how often a range is asked for of which nothing came for long.
	// Whoever asked for the pull tries again.
	stalledTries = 2
)

// Puller brings objects to local disk and hashes them in the same pass. It is safe
// for concurrent use.
type Puller struct {
	cache  *cache.Cache
	line   line
	read   atomic.Int64
	logger *slog.Logger
}

// BytesRead is what was read from buckets so far, in bytes; what a former pull has
// left does not count.
func (p *Puller) BytesRead() int64 { return p.read.Load() }

// NewPuller pulls into a cache, and says what each build was compared with.
func NewPuller(c *cache.Cache, logger *slog.Logger) *Puller {
	return &Puller{cache: c, logger: logger}
}

// TakeTurn returns the turn of a pull, which begins in order of the places. It is to be
// ended.
func (p *Puller) TakeTurn(w Want) *Turn { return p.line.enter(w) }

// store keeps the blocks of a segment: *cache.Pulling, or one that is an entry already.
type store interface {
	io.WriterAt
	Kept(b []byte, offset int64) bool
}

// pulled is a segment that is in the cache already.
type pulled struct{ *cache.Entry }

func (p pulled) Kept(b []byte, offset int64) bool {
	_, err := p.ReadAt(b, offset)
	return err == nil
}

// block is one range on its way: filled by a GET and written to disk, then
// hashed in every lane.
type block struct {
	offset int64 // in the object
	buf    []byte
	filled chan struct{} // closed when the GET has ended, after a failure has ended the Pull
	lanes  atomic.Int32  // that have not hashed it yet
}

// Pull is one object to be pulled.
type Pull struct {
	// Turn is the pull's own; it is not ended.
	Turn   *Turn
	From   *bucket.Bucket
	Object *bucket.Object
	Layout *manifest.Layout
	// Room is the disk that was reserved for all of it; nil for the Pull to reserve it.
	Room *cache.Room
	// Name is unique to it; with the object's ETag it names what a Pull that broke off
	// has left.
	Name string
	// Progress hears how many bytes are here and hashed.
	Progress func(bytes int64)
	// Waits, which may be nil, hears that others go before it for more than a moment, and
	// when that is over.
	Waits func(bool)
	// Segment hears of each segment when it is here and hashed, in order, one at a time.
	// The entry is pinned, for it to Unpin, whatever it returns. An error ends the Pull.
	Segment func(i int, e *cache.Entry) error
}

// Pull fetches an object in parallel ranges, each If-Match on the ETag, writes
// it to the cache segment by segment and hashes it in order as it comes, each digest at
// its own pace. It returns the SHA-256 of the whole in hexadecimal. An object that
// changes underneath is bucket.ErrChanged, never a mix of two. What was read is compared
// with the checksum that the store says of the object: bucket.ErrChecksum.
//
// What a pull that broke off has brought, in this process or a former one, is not
// fetched again by the next of that name, as long as the object is the same.
// cache.ForgetPull removes it.
//
// Blocks are given out in the order of the object, so the next one to be hashed always has
// its block and several pulls cannot block each other.
func (p *Puller) Pull(ctx context.Context, of Pull) (sha256 string, err error) {
	j := p.job(of, p.line.giveBack)
	if of.Object.Size == 0 {
		return j.hasher.SHA256Hex()
	}
	if j.list, err = p.cache.PulledSegments(of.Name, Tag(of.Object.ETag, of.Layout)); err != nil {
		return "", err
	}
	defer func() {
		changed := errors.Is(err, bucket.ErrChanged) || errors.Is(err, bucket.ErrNotFound)
		err = errors.Join(err, j.end(!changed), j.list.Close())
	}()
	here, err := j.takeKnown()
	if err != nil {
		return "", err
	}
	here += p.cache.Left(of.Name)
	if of.Room == nil {
		if j.Room, err = p.cache.Reserve(max(0, of.Object.Size-here), of.Turn.High()); err != nil {
			return "", err
		}
		defer j.Room.Free()
	}
	stored := compare(of.From, of.Object)
	if err := j.copy(ctx, stored.lanes(j.hasher.Lanes()), j.request); err != nil {
		return "", err
	}
	if sha256, err = j.hasher.SHA256Hex(); err == nil {
		err = stored.check(ctx, sha256, p.logger.With("executionId", of.Name))
	}
	if errors.Is(err, bucket.ErrChecksum) {
		err = errors.Join(err, j.list.Cut(0)) // all of it is read again
	}
	return sha256, err
}

// Tag stands for the bytes of an object, and for how they are cut, in what a Pull leaves.
func Tag(etag string, l *manifest.Layout) string {
	return fmt.Sprintf("%s %d %s", etag, l.Size, l.Scheme)
}

// job is one Pull under way, or one Receive.
type job struct {
	*Puller
	Pull
	// giveBack takes a block that every lane has hashed.
	giveBack func([]byte)
	hasher   *manifest.Hasher
	list     *cache.Segments

	// stores are by segment; nil before it is begun, and after its end. request sets one
	// before it sends a block of it.
	stores []store
	// hashed is in bytes, whole counts segments. They are of took, which whoever has a
	// block last calls: he has had those before, so it is one after the other.
	hashed int64
	whole  int
}

func (p *Puller) job(of Pull, giveBack func([]byte)) *job {
	return &job{Puller: p, Pull: of, giveBack: giveBack, hasher: manifest.NewHasher(of.Layout), stores: make([]store, of.Layout.NumSegments())}
}

// takeKnown takes the segments that a former Pull has brought, pinned, and returns how
// many bytes they are.
func (j *job) takeKnown() (bytes int64, err error) {
	for i, infohash := range j.list.Known[:min(len(j.list.Known), len(j.stores))] {
		e, err := j.cache.Pinned(infohash, j.Name)
		switch {
		case errors.Is(err, cache.ErrNotKept):
		case err != nil:
			return 0, err
		case e.Whole() && e.Shape() == j.Layout.SegmentShape(i):
			j.stores[i] = pulled{e}
			bytes += e.Shape().Size
		default:
			e.Unpin()
		}
	}
	return bytes, nil
}

// store returns where the blocks of a segment go.
func (j *job) store(i int) (store, error) {
	if s := j.stores[i]; s != nil {
		return s, nil
	}
	_, length := j.Layout.SegmentRange(i)
	s, err := j.cache.Pull(j.Name, i, j.Object.ETag, length, j.Room)
	if err != nil {
		return nil, err
	}
	j.stores[i] = s
	return s, nil
}

// took notes that so many bytes more are hashed in every lane, and ends the segments that
// are whole with them.
func (j *job) took(bytes int64) error {
	j.hashed += bytes
	j.Progress(j.hashed)
	for j.whole < j.Layout.NumSegments() {
		offset, length := j.Layout.SegmentRange(j.whole)
		if j.hashed < offset+length {
			return nil
		}
		if err := j.finish(j.whole); err != nil {
			return err
		}
		j.whole++
	}
	return nil
}

// finish makes an entry of a segment whose bytes are here.
func (j *job) finish(i int) (err error) {
	m := j.hasher.Segment(i)
	s := j.stores[i]
	j.stores[i] = nil
	var e *cache.Entry
	switch s := s.(type) {
	case pulled:
		if e = s.Entry; e.InfoHash() != m.InfoHash() {
			return j.damaged(i, e)
		}
	case *cache.Pulling:
		if e, err = s.Commit(m); err != nil {
			return err
		}
	}
	if err := j.note(i, e.InfoHash()); err != nil {
		e.Unpin()
		return err
	}
	return j.Segment(i, e)
}

// damaged has the next Pull read a segment again that the disk has changed since it was
// pulled.
func (j *job) damaged(i int, e *cache.Entry) error {
	defer e.Unpin()
	err := fmt.Errorf("segment %d of %s is not on the disk as it was pulled, it is read again", i, j.Object.Key)
	for piece := range e.Shape().NumPieces() {
		if bad := e.Verify(piece); bad != nil && !errors.Is(bad, cache.ErrCorrupt) {
			err = errors.Join(err, bad)
		}
	}
	if e.Whole() { // it is another one
		err = errors.Join(err, j.list.Cut(i))
	}
	return err
}

// note has the list say what a segment is.
func (j *job) note(i int, infohash manifest.InfoHash) error {
	if i < len(j.list.Known) {
		if j.list.Known[i] == infohash {
			return nil
		}
		if err := j.list.Cut(i); err != nil {
			return err
		}
	}
	return j.list.Add(infohash)
}

// end leaves what was begun for the next pull, or removes it.
func (j *job) end(leave bool) error {
	var errs []error
	for _, s := range j.stores {
		switch s := s.(type) {
		case pulled:
			s.Unpin()
		case *cache.Pulling:
			if leave {
				errs = append(errs, s.Leave())
			} else {
				errs = append(errs, s.Abort())
			}
		}
	}
	return errors.Join(errs...)
}

// request begins to fill the blocks of an object, in order, and sends each to every lane.
type request func(ctx context.Context, fail context.CancelCauseFunc, running *sync.WaitGroup, lanes []chan *block) error

// copy writes the object to the cache, and to each lane in order. The first error ends
// all of it.
func (j *job) copy(ctx context.Context, writers []io.Writer, begin request) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	if j.Turn != nil {
		j.Turn.reads(fail)
		defer j.Turn.reads(nil)
	}
	var running sync.WaitGroup
	lanes := make([]chan *block, len(writers))
	for i, w := range writers {
		lanes[i] = make(chan *block, maxBlocks) // all there are: nobody waits
		running.Go(func() { j.hash(ctx, fail, w, lanes[i]) })
	}
	if err := begin(ctx, fail, &running, lanes); err != nil {
		fail(err)
	}
	for _, lane := range lanes {
		close(lane)
	}
	running.Wait()
	return context.Cause(ctx)
}

// rangeLength is how long the ranges of a segment are, in bytes: those that are asked for
// together are no longer than the segment, which is waited for whole.
func rangeLength(segment int64) int64 {
	length := int64(blockLength)
	for length > leastRange && length*pullParallel > segment {
		length /= 2
	}
	return length
}

// block waits for the next range's turn.
func (j *job) block(ctx context.Context) ([]byte, error) {
	waits := false
	b, err := j.Turn.next(ctx, func() {
		if !waits && j.Waits != nil {
			waits = true
			j.Waits(true)
		}
	})
	if waits {
		j.Waits(false)
	}
	return b, err
}

// first lets ranges beyond the first segment through, as long as that is not here only so
// many as pullAhead says.
type first struct {
	lacks atomic.Int64  // ranges of the first segment that have not ended
	here  chan struct{} // closed when there are none
	ahead chan struct{} // has a value for each that was let through before that
}

func newFirst(l *manifest.Layout) *first {
	f := &first{here: make(chan struct{}), ahead: make(chan struct{}, pullAhead)}
	_, length := l.SegmentRange(0)
	step := rangeLength(length)
	f.lacks.Store((length + step - 1) / step)
	return f
}

// pass waits until a range of a segment may be asked for; ended is to be called at its end.
func (f *first) pass(ctx context.Context, segment int, turn *Turn) (ended func(), err error) {
	if segment == 0 {
		return func() {
			if f.lacks.Add(-1) == 0 {
				close(f.here)
			}
		}, nil
	}
	select {
	case <-f.here: // looked at first
		return func() {}, nil
	default:
	}
	turn.setUrgent(true)
	defer turn.setUrgent(false)
	select {
	case <-f.here:
		return func() {}, nil
	case f.ahead <- struct{}{}:
		return func() { <-f.ahead }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// request starts the ranged GETs, in order, as their turn comes.
func (j *job) request(ctx context.Context, fail context.CancelCauseFunc, running *sync.WaitGroup, lanes []chan *block) error {
	first := newFirst(j.Layout)
	for i := range j.Layout.NumSegments() {
		start, length := j.Layout.SegmentRange(i)
		file, err := j.store(i)
		if err != nil {
			return err
		}
		step := rangeLength(length)
		for offset := start; offset < start+length; offset += step {
			ended, err := first.pass(ctx, i, j.Turn)
			if err != nil {
				return err
			}
			buf, err := j.block(ctx)
			if err != nil {
				return err
			}
			b := &block{offset: offset, buf: buf[:min(step, start+length-offset)], filled: make(chan struct{})}
			b.lanes.Store(int32(len(lanes)))
			for _, lane := range lanes {
				lane <- b
			}
			running.Go(func() {
				whole := false
				defer func() { j.Turn.done(whole) }()
				defer ended()
				defer close(b.filled)
				if whole = file.Kept(b.buf, b.offset-start); whole {
					return
				}
				err := readRange(ctx, j.From, j.Object, b, j.Turn.hear)
				if err == nil {
					whole = true
					j.read.Add(int64(len(b.buf)))
					_, err = file.WriteAt(b.buf, b.offset-start)
				}
				if err != nil {
					fail(err)
				}
			})
		}
	}
	return nil
}

// hash feeds one lane, and gives a block back when it was the last to need it. After a
// failure, of whatever lane or block, it goes on to do that alone.
func (j *job) hash(ctx context.Context, fail context.CancelCauseFunc, w io.Writer, blocks <-chan *block) {
	for b := range blocks {
		<-b.filled
		if ctx.Err() == nil {
			if _, err := w.Write(b.buf); err != nil {
				fail(err)
			}
		}
		if b.lanes.Add(-1) > 0 {
			continue
		}
		if ctx.Err() == nil {
			if err := j.took(int64(len(b.buf))); err != nil {
				fail(err)
			}
		}
		j.giveBack(b.buf)
	}
}

// readRange fills a block. A connection that breaks in the middle of a body is
// beyond the SDK's own retries, so it is asked for again here. heard is called when bytes
// have come.
func readRange(ctx context.Context, from *bucket.Bucket, o *bucket.Object, b *block, heard func()) error {
	stalled := 0
	again := retry.Policy{
		First: firstBackoff, Max: maxBackoff, Tries: rangeTries,
		Settled: func(err error) bool {
			if errors.Is(err, answers.ErrStalled) {
				stalled++
			}
			return stalled == stalledTries || errors.Is(err, bucket.ErrChanged) || errors.Is(err, bucket.ErrNotFound) || bucket.Permanent(err)
		},
		Failed: func(_ int, err error) {
			tracing.Failed(ctx, "retry", err, attribute.Int64("landfall.offset", b.offset))
		},
	}
	return again.Do(ctx, func() error { return readRangeOnce(ctx, from, o, b, heard) })
}

func readRangeOnce(ctx context.Context, from *bucket.Bucket, o *bucket.Object, b *block, heard func()) error {
	body, err := from.GetRange(ctx, o.Key, o.ETag, b.offset, int64(len(b.buf)))
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.ReadFull(&listened{body, heard}, b.buf); err != nil {
		return fmt.Errorf("reading %s at %d: %w", o.Key, b.offset, err)
	}
	return nil
}

// listened calls heard when bytes have come.
type listened struct {
	io.Reader
	heard func()
}

func (l *listened) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if n > 0 {
		l.heard()
	}
	return n, err
}
