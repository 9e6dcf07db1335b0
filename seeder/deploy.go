package seeder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/web"
)

// errNoDestinations is why nothing can be sent anywhere.
var errNoDestinations = errors.New("no destination: name buckets in the request, or start the seeder with --destinations")

// deploy accepts an execution: it is in the table when deploy returns, and goes
// on by itself.
func (s *Seeder) deploy(ctx context.Context, r api.DeployRequest) (*api.DeployAnswer, error) {
	begun, err := s.send(ctx, r)
	if err != nil {
		return nil, err
	}
	s.reserved.release(r.SourceKey)
	answer := &api.DeployAnswer{Joined: begun.Joined, Superseded: begun.Superseded, Inherited: begun.Inherited}
	answer.Execution, _ = s.index.one(begun.Record.ExecutionID)
	return answer, nil
}

// send is deploy without the answer; a reservation stays.
func (s *Seeder) send(ctx context.Context, r api.DeployRequest) (*ledger.Begun, error) {
	if r.SourceBucket == "" {
		r.SourceBucket = s.cfg.Bucket.Name()
	}
	high, err := api.IsHigh(r.Priority)
	if err != nil {
		return nil, &web.Error{Code: http.StatusBadRequest, Err: err}
	}
	destinations, err := s.destinations(r)
	if err != nil {
		return nil, err
	}
	if err := announce.CheckKey(r.SourceKey); err != nil {
		return nil, &web.Error{Code: http.StatusBadRequest, Err: fmt.Errorf("sourceKey: %w", err)}
	}
	if own(r.SourceKey) {
		return nil, web.Errorf(http.StatusBadRequest, "sourceKey: keys that begin with %s are Landfall's own and are not distributed", bucket.OwnPrefix)
	}
	if err := announce.CheckBucketName(r.SourceBucket); err != nil {
		return nil, &web.Error{Code: http.StatusBadRequest, Err: fmt.Errorf("sourceBucket: %w", err)}
	}
	if r.SourceBucket != s.cfg.Bucket.Name() && !slices.Contains(s.cfg.SourceBuckets, r.SourceBucket) {
		return nil, web.Errorf(http.StatusForbidden,
			"sourceBucket: %s is not among the buckets that this seeder reads builds from; --source-buckets names those beside %s", r.SourceBucket, s.cfg.Bucket.Name())
	}
	source, err := s.sources.Get(ctx, r.SourceBucket)
	if err != nil {
		if errors.Is(err, bucket.ErrNoBucket) {
			return nil, &web.Error{Code: http.StatusNotFound, Err: err}
		}
		return nil, err
	}
	object, err := source.Head(ctx, r.SourceKey)
	if err != nil {
		if errors.Is(err, bucket.ErrNotFound) {
			return nil, &web.Error{Code: http.StatusNotFound, Err: err}
		}
		return nil, refused(err)
	}
	if begun := s.begunBy(r.SourceBucket, object, destinations, high); begun != nil {
		return begun, nil
	}
	begun, err := s.accept(ctx, r.SourceBucket, object, destinations, high)
	if err == nil && begun.Adopted && !covers(begun.Record, destinations) {
		begun, err = s.accept(ctx, r.SourceBucket, object, destinations, high)
	}
	if errors.Is(err, ledger.ErrOwned) || errors.Is(err, ledger.ErrTooMany) {
		return nil, &web.Error{Code: http.StatusConflict, Err: err}
	}
	return begun, err
}

// begunBy is what the upload of an object has begun a moment ago, where that is all that is
// asked for and goes well so far; else nil. Whoever uploads publishes next, as a rule, and
// a small build has arrived by then.
func (s *Seeder) begunBy(source string, o *bucket.Object, destinations []string, high bool) *ledger.Begun {
	begun := s.reserved.begunBy(o.Key)
	if begun == nil || source != s.cfg.Bucket.Name() {
		return nil
	}
	r, ok := s.index.get(begun.Record.ExecutionID)
	if !ok || r.SourceETag != o.ETag || r.Status != ledger.InProgress && r.Status != ledger.Completed || !covers(r, destinations) ||
		high && !r.High && r.Status == ledger.InProgress {
		return nil
	}
	return begun
}

// covers reports whether an execution goes to all of the destinations.
func covers(r *ledger.Record, destinations []string) bool {
	return !slices.ContainsFunc(destinations, func(b string) bool { return !slices.Contains(r.Destinations, b) })
}

// errIntoSource is why a build does not go into a bucket that builds come from: it
// would take its own object's place, and be found there and sent on.
var errIntoSource = errors.New("a bucket that builds come from is no destination")

// destinations are the buckets that a request names, else the seeder's.
func (s *Seeder) destinations(r api.DeployRequest) ([]string, error) {
	asked := r.DestinationBuckets
	if len(asked) == 0 {
		asked = s.cfg.Destinations
	}
	if len(asked) == 0 {
		return nil, &web.Error{Code: http.StatusBadRequest, Err: errNoDestinations}
	}
	for _, b := range asked {
		if err := s.checkDestination(r, b); err != nil {
			return nil, &web.Error{Code: http.StatusBadRequest, Err: fmt.Errorf("destinationBuckets: %w", err)}
		}
	}
	out := slices.Compact(slices.Sorted(slices.Values(asked)))
	if len(out) > announce.MaxDestinations {
		return nil, web.Errorf(http.StatusBadRequest, "destinationBuckets: %d buckets, at most %d", len(out), announce.MaxDestinations)
	}
	return out, nil
}

func (s *Seeder) checkDestination(r api.DeployRequest, b string) error {
	if err := announce.CheckBucketName(b); err != nil {
		return err
	}
	switch {
	case b == r.SourceBucket || b == s.cfg.Bucket.Name():
		return fmt.Errorf("%w: %s", errIntoSource, b)
	case r.Force || slices.Contains(s.cfg.Destinations, b) || s.isServed(b):
		return nil
	}
	return fmt.Errorf("nobody serves %s: it is not among the seeder's --destinations, and no living agent has it; "+
		"start its agent first, or ask with --force (\"force\":true) to have the build wait for one", b)
}

// accept writes the execution to the table and starts it; or the one that was begun for the
// object's upload, where that has not taken the key yet.
func (s *Seeder) accept(ctx context.Context, source string, o *bucket.Object, destinations []string, high bool) (*ledger.Begun, error) {
	return s.acceptInstead(ctx, "", source, o, destinations, high)
}

// acceptInstead is accept that does not join the execution named.
func (s *Seeder) acceptInstead(ctx context.Context, of, source string, o *bucket.Object, destinations []string, high bool) (*ledger.Begun, error) {
	start := s.startOf(source, o, destinations, high)
	start.Instead = of
	begun, err := s.begin(ctx, start)
	if err != nil {
		return nil, err
	}
	s.sayAccepted(ctx, begun, o)
	// One that is joined as well: when the answer to the write was lost, the
	// next try finds its own item, which nobody carries yet.
	s.start(ctx, begun.Record, asAccepted)
	return begun, nil
}

// startOf asks for an execution of an object.
func (s *Seeder) startOf(source string, o *bucket.Object, destinations []string, high bool) ledger.Start {
	return ledger.Start{
		Key:          ledger.Key{FileKey: o.Key, SourceBucket: source},
		SourceETag:   o.ETag,
		Size:         o.Size,
		Headers:      o.Headers.Map(),
		Destinations: destinations,
		High:         high,
		Scheme:       string(newScheme),
		Now:          time.Now(),
		Upload:       o.Metadata[landing.ExecutionMetadata],

		SourceModified: o.LastModified,
	}
}

// sayAccepted says how an execution has begun, and ends those that it takes the place of.
func (s *Seeder) sayAccepted(ctx context.Context, begun *ledger.Begun, o *bucket.Object) {
	ctx = context.WithoutCancel(ctx) // what is said is so, whether or not somebody waits for it
	r := begun.Record
	logger := s.cfg.Logger.With("key", o.Key, "executionId", r.ExecutionID)
	if begun.Replaced != nil {
		logger.Warn("item of the table that was no execution is replaced", "reason", begun.Replaced.Cause, "found", begun.Replaced.Detail)
	}
	switch {
	case begun.Raised:
		logger.Info("execution is under way already, and goes before others from now on")
	case begun.Joined && !begun.Adopted:
		logger.Info("execution is under way already")
	case begun.Superseded != "":
		logger.Info("execution accepted", "bytes", o.Size, "destinations", r.Destinations,
			"priority", priorityOf(r), "supersedes", begun.Superseded, "inherited", begun.Inherited)
		s.retire(ctx, r.Key, begun.Superseded, announce.Superseded)
	default:
		logger.Info("execution accepted", "bytes", o.Size, "destinations", r.Destinations, "priority", priorityOf(r))
	}
	if begun.Broken != nil {
		s.retire(ctx, r.Key, begun.Broken.ExecutionID, announce.Failed)
	}
}

func priorityOf(r *ledger.Record) string { return cmp.Or(api.Priority(r.High), api.PriorityNormal) }

// begin writes the execution to the table and takes it into the index, in turn with
// whoever else does so for its key.
func (s *Seeder) begin(ctx context.Context, start ledger.Start) (*ledger.Begun, error) {
	release, err := s.turns.Take(ctx, start.Key)
	if err != nil {
		return nil, err
	}
	defer release()
	start.IsAnothers = func(id string) bool {
		r, ok := s.index.get(id)
		return ok && r.Key != start.Key
	}
	if old := s.index.newest(start.Key); old != nil && old.Status == ledger.InProgress { // whose unfinished destinations it inherits
		s.foldKnown(ctx, old.ExecutionID)
		if start.Instead == "" && leftAlone(old) != nil {
			start.Instead = old.ExecutionID // nobody here would carry it
		}
	}
	begun, err := s.cfg.Ledger.Begin(ctx, start)
	if err != nil {
		return nil, err
	}
	s.put(begun.Record)
	return begun, nil
}

// cancel fails every destination that has not arrived.
func (s *Seeder) cancel(ctx context.Context, id string) error {
	r, ok := s.index.get(id)
	if !ok {
		return s.noExecution(id)
	}
	if r.Foreign {
		return notOurs(r)
	}
	if r.Uploading {
		return web.Errorf(http.StatusConflict, "the upload of execution %s has just come to its end; ask again", id)
	}
	s.foldKnown(ctx, id)
	if r, ok = s.index.get(id); !ok {
		return s.noExecution(id)
	}
	if r.Status == ledger.Completed {
		return web.Errorf(http.StatusConflict, "execution %s is completed, there is nothing to cancel", id)
	}
	for _, b := range r.Unfinished() {
		updated, err := s.cfg.Ledger.Fail(ctx, r.Key, id, b, ledger.Result{Timestamp: time.Now(), Error: ledger.CancelledError})
		if err != nil {
			return err
		}
		s.put(updated)
	}
	s.cfg.Logger.Info("execution cancelled", "key", r.FileKey, "executionId", id)
	return nil
}

// retry makes failed destinations pending again and sends to all that have not
// arrived.
func (s *Seeder) retry(ctx context.Context, id string) error {
	r, ok := s.index.get(id)
	if !ok {
		return s.noExecution(id)
	}
	if r.Foreign {
		return notOurs(r)
	}
	if r.Uploading {
		return web.Errorf(http.StatusConflict, "the build of execution %s is still going up, there is nothing to send again", id)
	}
	if r.Status == ledger.Completed {
		return web.Errorf(http.StatusConflict, "execution %s is completed, there is nothing to send again; `seeder publish` starts another", id)
	}
	if err := refuseLeftAlone(r); err != nil {
		return err
	}
	s.index.retrying(id) // before the write, so that nothing that it makes pending is found to be late
	updated, err := s.cfg.Ledger.Retry(ctx, r.Key, id)
	if err != nil {
		return err
	}
	s.put(updated)
	s.cfg.Logger.Info("execution is sent again", "key", r.FileKey, "executionId", id)
	s.start(ctx, updated, asRetried)
	return nil
}

// notOurs refuses to change what another system has written into the table.
func notOurs(r *ledger.Record) error {
	return web.Errorf(http.StatusConflict, "the table's item of %s is another system's and is only shown; `seeder publish s3://%s/%s` distributes it",
		r.FileKey, r.SourceBucket, r.FileKey)
}

// noExecution is the answer for an id that is not in the index: gone with its
// successor, or never known.
func (s *Seeder) noExecution(id string) error {
	if next, ok := s.index.successor(id); ok {
		return &web.Error{Code: http.StatusGone, Err: fmt.Errorf("execution %s was superseded", id), Successor: next}
	}
	if !s.isLoaded() {
		return web.Errorf(http.StatusServiceUnavailable, "execution %s is not known yet: the seeder is still reading the table", id)
	}
	return web.Errorf(http.StatusNotFound, "no execution %s", id)
}

// reservations are the keys that the seeder itself is uploading: the watcher
// leaves them to the publish that asked, which follows within reservedFor.
type reservations struct {
	mu   *sync.Mutex
	keys map[string]reservation
}

// reservation holds until a time, which is zero while the upload runs.
type reservation struct {
	until time.Time
	// begun is what the upload has begun by itself; nil for nothing.
	begun *ledger.Begun
}

// reservedFor is how long after its upload a key waits for its publish before
// the watcher takes it up: the publisher may have died.
const reservedFor = 30 * time.Second

func newReservations() reservations {
	return reservations{new(sync.Mutex), make(map[string]reservation)}
}

// take reserves a key; false when it is being uploaded already.
func (r reservations) take(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if own, ok := r.keys[key]; ok && own.until.IsZero() {
		return false
	}
	r.keys[key] = reservation{}
	return true
}

// uploaded ends the upload; the key stays reserved for its publish, which begun may be.
func (r reservations) uploaded(key string, begun *ledger.Begun) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys[key] = reservation{time.Now().Add(reservedFor), begun}
}

// begunBy is what the upload of a key has begun a moment ago; nil for nothing.
func (r reservations) begunBy(key string) *ledger.Begun {
	r.mu.Lock()
	defer r.mu.Unlock()
	if own := r.keys[key]; time.Now().Before(own.until) {
		return own.begun
	}
	return nil
}

func (r reservations) release(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if own, ok := r.keys[key]; ok && !own.until.IsZero() {
		delete(r.keys, key)
	}
}

// held reports whether the watcher has to leave the key alone for now.
func (r reservations) held(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	own, ok := r.keys[key]
	if ok && !own.until.IsZero() && time.Now().After(own.until) {
		delete(r.keys, key)
		return false
	}
	return ok
}

// progress takes an agent's report.
func (s *Seeder) progress(p gossip.Progress) {
	for _, b := range p.Builds {
		if r := s.index.heard(p, b, time.Now()); r != nil {
			s.start(context.Background(), r, asLate)
		}
	}
}

// links takes an agent's word on where its bytes came from.
func (s *Seeder) links(l gossip.Links) { s.index.heardLinks(l, time.Now()) }
