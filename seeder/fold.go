package seeder

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/awserr"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
)

const (
	// maxFolds bounds the executions that are folded at a time: each takes some calls of a
	// bucket and of the table.
	maxFolds = 16
	// foldBack is how far back executions that have failed are looked at when the seeder
	// starts: what has arrived since counts. A region that comes back lands as long.
	foldBack = 7 * 24 * time.Hour
	// refusedInterval and maxRefused bound the lines about arrivals that do not count.
	refusedInterval, maxRefused = 10 * time.Minute, 256
)

// errNotThere is why an arrival does not count.
var errNotThere = errors.New("the bucket does not have the build")

// fold takes in what the rows of arrivals say of the destinations that an execution has
// still to reach, and writes it into the item. composite is the build's; empty where it is
// not known. It returns the record as it is then, also beside an error. Without a table of
// arrivals it does nothing.
func (s *Seeder) fold(ctx context.Context, r *ledger.Record, composite string) (*ledger.Record, error) {
	if s.cfg.Arrivals == nil || r.Foreign || r.Uploading || len(r.Unfinished()) == 0 {
		return r, nil
	}
	rows, err := s.cfg.Arrivals.Rows(ctx, placesOf(r))
	if err != nil {
		return r, err
	}
	return s.foldRows(ctx, r, composite, rows)
}

// placesOf are the rows of the destinations that an execution has still to reach.
func placesOf(r *ledger.Record) (places []arrivals.Place) {
	for _, b := range r.Unfinished() {
		places = append(places, arrivals.Place{Key: r.Key, Bucket: b})
	}
	return places
}

func (s *Seeder) foldRows(ctx context.Context, r *ledger.Record, composite string, rows map[arrivals.Place]*arrivals.Row) (*ledger.Record, error) {
	var failed []error
	for _, p := range placesOf(r) {
		row := rows[p]
		if row == nil || row.Arrival == nil || row.Arrival.ExecutionID != r.ExecutionID {
			continue
		}
		a := row.Arrival
		if !a.Success && (a.Retries != r.Retries || slices.Contains(r.Failed, p.Bucket)) {
			continue // it is sent again since, or known
		}
		counts, err := s.believes(ctx, r, row, composite)
		if err == nil && !counts {
			continue
		}
		next := r
		switch {
		case err != nil:
		case a.Success:
			next, err = s.cfg.Ledger.Arrive(ctx, r, p.Bucket, a.Result)
		default:
			next, err = s.cfg.Ledger.Fail(ctx, r.Key, r.ExecutionID, p.Bucket, a.Result)
		}
		if err != nil { // the other destinations need not wait for this one
			failed = append(failed, fmt.Errorf("counting the arrival in %s: %w", p.Bucket, err))
			continue
		}
		r = next
		s.metrics.folded.WithLabelValues("counted").Inc()
	}
	return r, errors.Join(failed...)
}

// believes reports whether what a row says counts. An error is about something that may
// pass.
func (s *Seeder) believes(ctx context.Context, r *ledger.Record, row *arrivals.Row, composite string) (bool, error) {
	err := s.checkRow(r, row)
	if err == nil && row.Arrival.Success {
		err = s.looks(ctx, r, row.Bucket, composite)
	}
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, errNotThere) && !errors.Is(err, errFalse) {
		return false, err
	}
	s.metrics.folded.WithLabelValues("refused").Inc()
	if omitted, due := s.refused.Pass(r.ExecutionID + row.Bucket); due {
		s.cfg.Logger.Warn("an arrival does not count", "key", r.FileKey, "executionId", r.ExecutionID, "bucket", row.Bucket,
			"agent", row.Arrival.Agent, "error", err, "omitted", omitted)
	}
	return false, nil
}

// errFalse is why what a row says cannot be so.
var errFalse = errors.New("what the row says cannot be so")

// checkRow compares what a row says with the execution, and checks its signature.
func (s *Seeder) checkRow(r *ledger.Record, row *arrivals.Row) error {
	a := row.Arrival
	switch {
	case a.Success && a.Bytes != r.Size:
		return fmt.Errorf("%w: the build has %d bytes, not %d", errFalse, r.Size, a.Bytes)
	case a.Success && r.SHA256 != "" && a.SHA256 != r.SHA256:
		return fmt.Errorf("%w: the build has the SHA-256 %s, not %.64q", errFalse, r.SHA256, a.SHA256)
	case s.cfg.Checker == nil:
		return nil
	}
	if err := row.Verify(s.cfg.Checker); err != nil {
		return fmt.Errorf("%w: %w", errFalse, err)
	}
	return nil
}

// looks reports whether a regional bucket has the build, where this seeder may look there.
func (s *Seeder) looks(ctx context.Context, r *ledger.Record, name, composite string) error {
	b, err := s.regional.Get(ctx, name)
	var object *bucket.Object
	var there bool
	if err == nil {
		object, there, err = landing.Present(ctx, b, r, composite)
	}
	switch {
	case awserr.Status(err) == http.StatusForbidden:
		if _, due := s.mayNotLook.Pass(name); due {
			s.cfg.Logger.Info("arrivals in a bucket count without a look at it, which its owner does not allow: with s3:GetObject and s3:ListBucket there the seeder looks",
				"bucket", name, "signed", s.cfg.Checker != nil)
		}
		return nil
	case errors.Is(err, bucket.ErrNoBucket):
		return fmt.Errorf("%w: %w", errNotThere, err)
	case err != nil:
		return fmt.Errorf("looking for the build in %s: %w", name, err)
	case !there:
		return errNotThere
	case composite != "" && object.Composite != "" && object.Composite != composite:
		return fmt.Errorf("%w: the object's SHA-256 is %s, the build's %s", errNotThere, object.Composite, composite)
	}
	return nil
}

// foldKnown folds an execution as it is known, before something is decided that depends on
// where it has arrived. What cannot be found out now counts later all the same.
func (s *Seeder) foldKnown(ctx context.Context, id string) {
	r, ok := s.index.get(id)
	if !ok || r.Status == ledger.Completed {
		return
	}
	next, err := s.fold(ctx, r, "")
	if next != r {
		s.put(next)
	}
	if err != nil && ctx.Err() == nil {
		s.cfg.Logger.Warn("not all arrivals are counted yet", "key", r.FileKey, "executionId", id, "error", err)
	}
}

// foldAll folds several executions.
func (s *Seeder) foldAll(ctx context.Context, all []*ledger.Record) error {
	if s.cfg.Arrivals == nil || len(all) == 0 {
		return nil
	}
	var places []arrivals.Place
	for _, r := range all {
		places = append(places, placesOf(r)...)
	}
	rows, err := s.cfg.Arrivals.Rows(ctx, places)
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(maxFolds)
	for _, r := range all {
		group.Go(func() error {
			next, err := s.foldRows(ctx, r, "", rows)
			if next != r {
				s.put(next)
			}
			if errors.Is(err, ledger.ErrSuperseded) {
				return nil
			}
			return err
		})
	}
	return group.Wait()
}

// foldAtStart takes in what has arrived while no seeder was there.
func (s *Seeder) foldAtStart(ctx context.Context) {
	var all []*ledger.Record
	for _, r := range s.index.unfinished() {
		if r.Status == ledger.InProgress || time.Since(executionid.Time(r.ExecutionID)) < foldBack {
			all = append(all, r)
		}
	}
	if err := s.foldAll(ctx, all); err != nil && ctx.Err() == nil {
		s.cfg.Logger.Warn("not all arrivals of before are counted yet", "error", err)
	}
}

// foldAgain takes in arrivals again and again, until ctx ends, of executions whose owners do
// something else than wait for them.
func (s *Seeder) foldAgain(ctx context.Context) error {
	ticker := time.NewTicker(rereadInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := s.foldAll(ctx, s.index.notFollowed()); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn("arrivals not read", "error", err, "retryIn", rereadInterval.String())
		}
	}
}

// notFollowed are the running executions whose owner does not read the table by itself.
func (x *index) notFollowed() (out []*ledger.Record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.byID {
		if r := e.record; r.Status == ledger.InProgress && !r.Uploading && !r.Foreign && e.live.phase != api.PhaseDistributing {
			out = append(out, r)
		}
	}
	return out
}

// composite is the build's, once all of it is here; else empty. h may be nil.
func (h *held) composite() string {
	if h == nil {
		return ""
	}
	segments, _ := h.all()
	if len(segments) == 0 || len(segments) < h.layout.NumSegments() {
		return ""
	}
	b := manifest.NewBuild(h.layout)
	for i, s := range segments {
		if err := b.Know(i, s.entry.Manifest()); err != nil {
			return ""
		}
	}
	return b.Composite()
}
