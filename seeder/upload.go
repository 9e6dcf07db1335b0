package seeder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/awserr"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/tracing"
	"github.com/landfall-dist/landfall/internal/web"
)

const (
	// maxInStep bounds the uploads that are distributed while they go up, at a time. Each
	// holds 4 MiB, a connection or two, and an execution; more of them are stored first.
	maxInStep = 16
	// partsAtOnce is how many parts of one upload go to the bucket at a time.
	partsAtOnce = 3
	// cleanedWithin is how long whoever uploads waits, after it was broken off, for what it
	// has left to be gone: the next try meets nothing of it then.
	cleanedWithin = 10 * time.Second
	// interruptAgain is how often a Read is interrupted that must end, until it has.
	interruptAgain = 50 * time.Millisecond
)

var (
	errUploadCancelled = &web.Error{Code: http.StatusConflict, Err: errors.New("the upload was cancelled by request; nothing is stored, and nothing distributed")}
	errUploadLost      = errors.New("the upload was broken off by a fault in the seeder")
)

// upload is a body on its way into the global bucket.
type upload struct {
	key       string
	body      io.Reader
	size      int64 // bytes; -1 where nobody knows
	headers   bucket.Headers
	condition bucket.Condition
	// destinations are where the build goes; nil for nowhere yet.
	destinations []string
	high         bool // it goes before what is not
	// interrupt ends a Read of body that is under way; nil where none waits for long.
	interrupt func()

	// Of one that is distributed while it goes up.
	ctx      context.Context
	cancel   context.CancelCauseFunc
	id       string // of its execution
	uploadID string // of the multipart upload
	room     *cache.Room
	// closed is closed when nobody reads body any more: then object and begun, or err, say
	// what came of it. cleaned is closed when nothing is left of it.
	closed, cleaned chan struct{}
	object          *bucket.Object
	begun           *ledger.Begun
	err             error

	mu         sync.Mutex
	taken      bool // by a worker
	completing bool // it cannot be cancelled any more
}

// uploads are those that are distributed while they go up, by execution.
type uploads struct {
	mu sync.Mutex
	of map[string]*upload
}

// add takes one in; false when there are too many.
func (u *uploads) add(one *upload) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.of) >= maxInStep {
		return false
	}
	if u.of == nil {
		u.of = make(map[string]*upload)
	}
	u.of[one.id] = one
	return true
}

// get is nil for an execution that is none of them.
func (u *uploads) get(id string) *upload {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.of[id]
}

func (u *uploads) remove(id string) *upload {
	u.mu.Lock()
	defer u.mu.Unlock()
	one := u.of[id]
	delete(u.of, id)
	return one
}

// bring stores a body in the global bucket, and has it distributed while it goes up where
// that can be; else begun is nil. The key is reserved, and stays so for its publish.
func (s *Seeder) bring(ctx context.Context, up *upload) (*bucket.Object, *ledger.Begun, error) {
	inStep, err := s.beginUpload(ctx, up)
	if err == nil && inStep {
		return s.awaitUpload(ctx, up)
	}
	defer s.reserved.uploaded(up.key, nil)
	if err != nil {
		return nil, nil, err
	}
	object, err := s.cfg.Bucket.UploadIf(ctx, up.key, up.body, up.size, up.headers, up.condition)
	if err != nil {
		return nil, nil, refused(err)
	}
	s.cfg.Logger.Info("uploaded", "key", up.key, "bytes", object.Size)
	return object, nil, nil
}

// beginUpload has an execution for a body that is about to come; false where it is to be
// stored first: its length is not known, the disk has no room for it, or the table does not
// take it now.
func (s *Seeder) beginUpload(ctx context.Context, up *upload) (bool, error) {
	logger := s.cfg.Logger.With("key", up.key)
	if up.size <= 0 || up.size > manifest.MaxSize || len(up.destinations) == 0 || !s.isLoaded() || up.headers.Check(landing.AddedMetadata) != nil {
		return false, nil
	}
	if err := s.cfg.Bucket.Holds(ctx, up.key, up.condition); err != nil {
		return false, refused(err)
	}
	s.evict(up.size)
	room, err := s.cfg.Cache.Reserve(up.size, false) // which keeps nothing free for what only a header says
	if err != nil {
		logger.Info("the upload is distributed when it is in the bucket", "reason", err)
		return false, nil
	}
	up.room = room
	up.closed, up.cleaned = make(chan struct{}), make(chan struct{})
	up.ctx, up.cancel = context.WithCancelCause(ctx)
	r, err := s.noteUpload(ctx, up)
	var answer *web.Error
	if err != nil {
		room.Free()
		up.cancel(nil)
		if errors.As(err, &answer) || ctx.Err() != nil {
			return false, err
		}
		logger.Warn("the upload is distributed when it is in the bucket", "reason", err)
		return false, nil
	}
	s.index.putUpload(r)
	if !s.start(ctx, r, asUploaded) { // the seeder ends; the next start clears it away
		s.index.dropUpload(up.id)
		s.uploads.remove(up.id)
		room.Free()
		return false, web.Errorf(http.StatusServiceUnavailable, "the seeder is ending; upload %s again when it is back", up.key)
	}
	logger.Info("upload is distributed while it goes up", "executionId", up.id, "bytes", up.size, "destinations", up.destinations)
	return true, nil
}

// noteUpload begins the multipart upload and has its execution stand beside the key's.
// One that stands there of a former process is ended.
func (s *Seeder) noteUpload(ctx context.Context, up *upload) (*ledger.Record, error) {
	k := ledger.Key{FileKey: up.key, SourceBucket: s.cfg.Bucket.Name()}
	release, err := s.turns.Take(ctx, k)
	if err != nil {
		return nil, err
	}
	defer release()
	now := time.Now()
	id, beside, err := s.cfg.Ledger.NewUpload(ctx, k, now)
	if err != nil {
		return nil, err
	}
	up.id = id
	up.headers = up.headers.With(map[string]string{landing.ExecutionMetadata: id})
	if up.uploadID, err = s.cfg.Bucket.CreateUpload(ctx, up.key, up.headers); err != nil {
		return nil, refused(err)
	}
	r, err := s.cfg.Ledger.BeginUpload(ctx, k, ledger.Upload{
		ExecutionID: id, UploadID: up.uploadID, Size: up.size, Destinations: up.destinations, High: up.high, StartTime: now.UTC(),
		Scheme: string(newScheme),
	}, beside)
	if err == nil && !s.uploads.add(up) {
		err = fmt.Errorf("%d others are distributed while they go up", maxInStep)
	}
	if err != nil {
		// It may be written all the same, and the answer lost.
		settling, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanedWithin)
		defer cancel()
		if err := s.cfg.Ledger.EndUpload(settling, k, id); err != nil {
			s.cfg.Logger.Warn("an upload that did not begin may be noted in the table until the next of its key", "key", up.key, "executionId", id, "error", err)
		}
		return nil, errors.Join(err, s.cfg.Bucket.AbortAlways(ctx, up.key, up.uploadID))
	}
	r.Headers = up.headers.Map()
	if beside != nil && beside.Upload != nil {
		if err := s.endUpload(ctx, k, beside.Upload); err != nil {
			s.cfg.Logger.Warn("an upload that was broken off before is not cleared away", "key", k.FileKey, "executionId", beside.Upload.ExecutionID, "error", err)
		}
	}
	return r, nil
}

// awaitUpload waits for what comes of an upload. Its client may go meanwhile.
func (s *Seeder) awaitUpload(ctx context.Context, up *upload) (*bucket.Object, *ledger.Begun, error) {
	select {
	case <-up.closed:
	case <-s.running.Done():
		if up.take() { // nobody has begun with it
			return nil, nil, web.Errorf(http.StatusServiceUnavailable, "the seeder is ending; upload %s again when it is back", up.key)
		}
		<-up.closed
	}
	up.cancel(nil)
	if up.err == nil {
		s.reserved.uploaded(up.key, up.begun)
		return up.object, up.begun, nil
	}
	select {
	case <-up.cleaned:
	case <-ctx.Done():
	case <-time.After(cleanedWithin):
	}
	return nil, nil, refused(fmt.Errorf("uploading %s to %s: %w", up.key, s.cfg.Bucket.Name(), up.err))
}

// receive is fetch for a build that is going up: its bytes are kept as they pass, and go to
// the bucket from here. It returns its SHA-256 when the execution has the key.
func (c *carrier) receive(ctx context.Context, r *ledger.Record, h *held, take func(int, *cache.Entry) error) (sha256 string, err error) {
	up := c.uploads.get(c.id)
	if up == nil || !up.take() {
		return "", errUploadLost
	}
	outcome := errUploadLost // after a panic
	defer func() {
		if up.err = outcome; outcome == nil {
			c.uploads.remove(c.id)
		}
		up.room.Free()
		close(up.closed)
	}()
	c.owner.Tell(turned{api.PhaseUploading})
	sha256, outcome = c.takeIn(ctx, up, r, h.layout, take)
	if outcome == nil && !up.begun.Adopted {
		return "", ledger.ErrOvertaken // its object is another execution's, which distributes it
	}
	return sha256, outcome
}

// takeIn brings an upload from its first byte to the key.
func (c *carrier) takeIn(ctx context.Context, up *upload, r *ledger.Record, layout *manifest.Layout, take func(int, *cache.Entry) error) (sha256 string, err error) {
	passing, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(up.ctx, func() { cancel(context.Cause(up.ctx)) })()
	uploading, span := tracing.Start(passing, "upload", attribute.Int64("landfall.bytes", up.size))
	sha256, parts, err := c.pass(uploading, up, layout, take)
	span.End(err)
	if err != nil {
		return "", err
	}
	if err := c.mayComplete(passing); err != nil {
		return "", err
	}
	if up.object, err = c.complete(ctx, up, r, parts); err != nil {
		return "", err
	}
	c.logger.Info("uploaded", "bytes", up.size, "etag", up.object.ETag)
	up.begun, err = c.takeKey(ctx, up, layout)
	return sha256, err
}

func (up *upload) take() bool {
	up.mu.Lock()
	defer up.mu.Unlock()
	if up.taken {
		return false
	}
	up.taken = true
	return true
}

// complete reports whether the upload may be completed; then it is not cancelled any more.
func (up *upload) complete() bool {
	up.mu.Lock()
	defer up.mu.Unlock()
	up.completing = up.ctx.Err() == nil
	return up.completing
}

// stop cancels the upload, unless it is being completed.
func (up *upload) stop(cause error) bool {
	up.mu.Lock()
	defer up.mu.Unlock()
	if up.completing {
		return false
	}
	up.cancel(cause)
	return true
}

// pass keeps and hashes what comes, and sends it on, part by part.
func (c *carrier) pass(ctx context.Context, up *upload, layout *manifest.Layout, take func(int, *cache.Entry) error) (sha256 string, parts []bucket.Part, err error) {
	group, ctx := errgroup.WithContext(ctx)
	parts = make([]bucket.Part, layout.NumParts())
	type whole struct {
		part int
		from io.ReaderAt // of its segment
		at   int64
	}
	queue := make(chan whole, layout.NumParts())
	group.Go(func() (err error) {
		defer close(queue)
		read := make(chan struct{})
		defer context.AfterFunc(ctx, func() { up.interruptUntil(read) })()
		defer close(read)
		sha256, err = c.puller.Receive(ctx, source.Received{
			Body: &endingBody{ctx, up.body}, Layout: layout, Name: c.id, Room: up.room,
			Progress: func(bytes int64) { c.owner.Tell(pulled{bytes}) },
			Segment: func(i int, e *cache.Entry) error {
				if err := take(i, e); err != nil {
					return err
				}
				offset, _ := layout.SegmentRange(i)
				first, end := layout.SegmentParts(i)
				for part := first; part < end; part++ {
					at, length := layout.PartRange(part)
					parts[part] = bucket.Part{Number: part, Size: length, SHA256: e.Manifest().PartSHA256(part - first)}
					queue <- whole{part, e, at - offset}
				}
				return nil
			},
		})
		return err
	})
	for range partsAtOnce {
		group.Go(func() (err error) {
			for w := range queue {
				p := &parts[w.part]
				p.ETag, err = c.cfg.Bucket.UploadPart(ctx, up.key, up.uploadID, p.Number, io.NewSectionReader(w.from, w.at, p.Size), p.Size, p.SHA256)
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	err = group.Wait()
	if cause := context.Cause(ctx); err != nil && cause != nil && errors.Is(err, context.Canceled) {
		err = cause
	}
	return sha256, parts, err
}

// interruptUntil ends the Read of the body that is under way, and what begins before it is
// heard of, until nobody reads any more.
func (up *upload) interruptUntil(read <-chan struct{}) {
	for up.interrupt != nil {
		up.interrupt()
		select {
		case <-read:
			return
		case <-time.After(interruptAgain):
		}
	}
}

// endingBody reads no more when its context is over.
type endingBody struct {
	ctx context.Context
	io.Reader
}

func (b *endingBody) Read(p []byte) (int, error) {
	if err := context.Cause(b.ctx); err != nil {
		return 0, err
	}
	n, err := b.Reader.Read(p)
	if cause := context.Cause(b.ctx); cause != nil && err != nil && err != io.EOF {
		err = cause
	}
	return n, err
}

// mayComplete finds out whether the execution still stands beside the key's, however long
// the table is away.
func (c *carrier) mayComplete(ctx context.Context) error {
	again := c.again("all of an upload is here, and the table is not read yet, trying again")
	var unreadable *ledger.Unreadable
	again.Settled = func(err error) bool { return errors.Is(err, ledger.ErrNotFound) || errors.As(err, &unreadable) }
	var newest *ledger.Record
	err := again.Do(ctx, func() (err error) {
		newest, err = c.cfg.Ledger.Get(ctx, c.key)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && !again.Settled(err):
		return err
	case err != nil || newest.Of(c.id) == nil:
		return &web.Error{Code: http.StatusConflict, Err: fmt.Errorf("%w: another upload of the key has begun", ledger.ErrSuperseded)}
	}
	return nil
}

// complete makes the object, unless the upload was cancelled meanwhile.
func (c *carrier) complete(ctx context.Context, up *upload, r *ledger.Record, parts []bucket.Part) (*bucket.Object, error) {
	if !up.complete() {
		return nil, context.Cause(up.ctx)
	}
	etag, err := c.cfg.Bucket.CompleteUpload(ctx, up.key, up.uploadID, parts, up.condition)
	object, headErr := c.cfg.Bucket.Head(ctx, up.key)
	if err != nil && headErr != nil && !errors.Is(headErr, bucket.ErrNotFound) {
		again := c.again("it is not known yet whether an upload is complete, asking again")
		again.Settled = func(err error) bool { return errors.Is(err, bucket.ErrNotFound) }
		headErr = again.Do(ctx, func() (err error) {
			object, err = c.cfg.Bucket.Head(ctx, up.key)
			return err
		})
	}
	is := headErr == nil && object.Metadata[landing.ExecutionMetadata] == c.id
	switch {
	case is && (err != nil || object.ETag == etag): // the answer may have got lost
		return object, nil
	case err != nil:
		return nil, err
	}
	// Somebody has replaced it already, or it cannot be seen just now.
	return &bucket.Object{Key: up.key, ETag: etag, Size: r.Size, Headers: up.headers}, nil
}

// takeKey has the execution take the key, however long the table is away: its object is
// complete.
func (c *carrier) takeKey(ctx context.Context, up *upload, layout *manifest.Layout) (*ledger.Begun, error) {
	if err := c.cfg.Cache.RetagSegments(c.id, source.ReceivedTag(layout), source.Tag(up.object.ETag, layout)); err != nil {
		c.logger.Warn("after a restart the build is read from the bucket again", "error", err)
	}
	var begun *ledger.Begun
	err := c.again("upload not recorded yet, trying again").Do(ctx, func() (err error) {
		start := c.startOf(c.key.SourceBucket, up.object, up.destinations, up.high)
		start.Sealing = true
		begun, err = c.begin(ctx, start)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.sayAccepted(ctx, begun, up.object)
	if !begun.Adopted {
		c.start(ctx, begun.Record, asAccepted)
	}
	return begun, nil
}

// again tries until it succeeds, is told what another try does not change, or ends.
func (c *carrier) again(message string) retry.Policy {
	return retry.Policy{
		First: firstRetry, Max: maxRetry, Logger: c.logger, Level: slog.LevelWarn, Message: message,
		Settled: func(err error) bool { return errors.Is(err, ledger.ErrOwned) || errors.Is(err, ledger.ErrTooMany) },
	}
}

// drop removes what an upload that was broken off has left in the global bucket and the
// table, however long either is away.
func (c *carrier) drop(ctx context.Context, r *ledger.Record) error {
	up := c.uploads.get(c.id)
	err := c.again("an upload that was broken off is not cleared away yet, trying again").Do(ctx, func() error {
		if up != nil {
			if err := c.removeUpload(ctx, r.Key, up.uploadID, c.logger); err != nil {
				return err
			}
		}
		return c.cfg.Ledger.EndUpload(ctx, r.Key, c.id)
	})
	return errors.Join(err, c.cfg.Cache.ForgetPull(c.id, false))
}

// brokenOff takes an upload off the lists when nothing of it is left.
func (c *carrier) brokenOff() {
	c.logger.Warn("upload was broken off", "error", c.machine.live.err, "seconds", since(c.machine.since))
	c.index.dropUpload(c.id)
	if up := c.uploads.remove(c.id); up != nil {
		c.reserved.uploaded(up.key, nil)
		close(up.cleaned)
	}
}

// endUpload ends the execution of an upload that a former process has left.
func (s *Seeder) endUpload(ctx context.Context, k ledger.Key, u *ledger.Upload) error {
	if r, ok := s.index.get(u.ExecutionID); !ok || r.Key == k { // else somebody has copied the item
		s.retire(ctx, k, u.ExecutionID, announce.Failed)
	}
	logger := s.cfg.Logger.With("key", k.FileKey, "executionId", u.ExecutionID)
	if err := s.removeUpload(ctx, k, u.UploadID, logger); err != nil {
		return err
	}
	if err := s.cfg.Ledger.EndUpload(ctx, k, u.ExecutionID); err != nil {
		return err
	}
	logger.Info("an upload that a former start has left was broken off")
	return nil
}

// removeUpload removes what has gone up. Where the seeder may not, that is not tried again.
func (s *Seeder) removeUpload(ctx context.Context, k ledger.Key, uploadID string, logger *slog.Logger) error {
	err := s.cfg.Bucket.AbortUpload(ctx, k.FileKey, uploadID)
	if err != nil && (bucket.Permanent(err) || awserr.Code(err) == "AccessDenied") {
		logger.Warn("upload not removed, a lifecycle rule for unfinished uploads does it", "error", err)
		return nil
	}
	return err
}

// recoverUpload goes on with the execution of an upload that a former process has left: if
// its object is complete it takes the key, else it ends.
func (s *Seeder) recoverUpload(ctx context.Context, k ledger.Key, u *ledger.Upload) error {
	object, err := s.cfg.Bucket.Head(ctx, k.FileKey)
	switch {
	case err == nil && object.Metadata[landing.ExecutionMetadata] == u.ExecutionID:
		if layout, err := manifest.NewLayout(schemeOf(u.Scheme), object.Size); err == nil {
			err = s.cfg.Cache.RetagSegments(u.ExecutionID, source.ReceivedTag(layout), source.Tag(object.ETag, layout))
			if err != nil {
				s.cfg.Logger.Warn("the build is read from the bucket again", "key", k.FileKey, "executionId", u.ExecutionID, "error", err)
			}
		}
		_, err = s.accept(ctx, k.SourceBucket, object, u.Destinations, u.High)
		if !errors.Is(err, ledger.ErrOwned) && !errors.Is(err, ledger.ErrTooMany) {
			return err
		}
		s.cfg.Logger.Warn("upload is complete, and cannot be distributed", "key", k.FileKey, "executionId", u.ExecutionID, "error", err)
	case err != nil && !errors.Is(err, bucket.ErrNotFound):
		return err
	}
	return s.endUpload(ctx, k, u)
}

// cancelUpload breaks an upload off, and returns how its execution was.
func (s *Seeder) cancelUpload(ctx context.Context, id string) (*api.Execution, error) {
	up := s.uploads.get(id)
	was, ok := s.index.one(id)
	if up == nil || !ok || !up.stop(errUploadCancelled) {
		return nil, web.Errorf(http.StatusConflict, "the upload of execution %s has just come to its end; ask again", id)
	}
	select {
	case <-up.cleaned:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(cleanedWithin):
	}
	now := time.Now().UTC()
	was.Status, was.Phase, was.CompletedAt, was.Error = string(ledger.Cancelled), api.PhaseEnded, &now, errUploadCancelled.Error()
	for i := range was.Destinations {
		was.Destinations[i].State, was.Destinations[i].Error = api.StateCancelled, ledger.CancelledError
	}
	s.cfg.Logger.Info("upload cancelled", "key", was.Key, "executionId", id)
	return &was, nil
}
