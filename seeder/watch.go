package seeder

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/survive"
)

// maxNamed bounds the keys remembered as named in the log, and so the memory
// that a bucket full of other things costs.
const maxNamed = 100_000

// watch lists the global bucket again and again, until ctx ends. The next
// listing starts Poll after the last has ended.
func (s *Seeder) watch(ctx context.Context) error {
	w := &watcher{
		Seeder: s, named: make(map[string]bool), unread: make(unread),
		rewritten: rewritten{since: time.Now(), done: make(map[string]looked)},
	}
	for {
		err := survive.Run(s.cfg.Logger, func() error { return w.poll(ctx) })
		if ctx.Err() == nil {
			s.metrics.polled(err)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && w.baseline == nil:
			// Without a first listing nobody knows what is new.
			s.setReady(err)
			s.cfg.Logger.Error("bucket not listed", "bucket", s.cfg.Bucket.Name(), "error", err)
		case err != nil:
			s.cfg.Logger.Warn("bucket not listed", "bucket", s.cfg.Bucket.Name(), "error", err)
		default:
			s.setReady(nil)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.cfg.Poll):
		}
	}
}

// watcher decides which of the listed objects are new.
type watcher struct {
	*Seeder
	// baseline is what the table remembers of the bucket; nil until it is read.
	baseline *ledger.Baseline
	seen     seen
	// unsaved are versions in seen that the table does not have yet.
	unsaved []ledger.ObjectVersion
	named   map[string]bool
	// rewritten and unread are those to be looked at again.
	rewritten rewritten
	unread    unread
}

func (w *watcher) poll(ctx context.Context) error {
	if w.baseline == nil {
		if err := w.readBaseline(ctx); err != nil {
			return err
		}
	}
	err := w.cfg.Bucket.List(ctx, w.cfg.Prefix, func(o bucket.Object) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if own(o.Key) || w.known(o) || w.unread.waits(o, time.Now()) {
			return nil
		}
		if !strings.HasSuffix(o.Key, w.cfg.Suffix) {
			w.name(o.Key)
			return nil
		}
		w.take(ctx, o)
		return nil
	})
	w.saveSent(ctx)
	if err == nil {
		w.unread.listed()
		w.metrics.unread.Set(float64(len(w.unread)))
	}
	return err
}

// known reports whether there is nothing to do about an object: it has or had an
// execution, it was there before the first start, or its own publish is on the way. One
// that was there at the first start stays what it was when only its headers are
// corrected.
func (w *watcher) known(o bucket.Object) bool {
	v, r := versionOf(o), w.sentRecord(o)
	if r != nil && r.SourceETag == o.ETag {
		if !w.seen.has(v) {
			w.seen.add(v)
			w.unsaved = append(w.unsaved, v)
		}
		return !w.rewritten.suspected(r, o, time.Now()) || w.reserved.held(o.Key)
	}
	// An item without an ETag is another system's and tells no version from another.
	return (r == nil || r.SourceETag == "") && w.seen.has(v) || w.reserved.held(o.Key)
}

// sentRecord is what the table has of an object's key; nil for nothing, or what another
// system wrote, which says nothing of what Landfall has sent.
func (w *watcher) sentRecord(o bucket.Object) *ledger.Record {
	r := w.index.newest(w.keyOf(o))
	if r == nil || r.Foreign {
		return nil
	}
	return r
}

func (w *watcher) keyOf(o bucket.Object) ledger.Key {
	return ledger.Key{FileKey: o.Key, SourceBucket: w.cfg.Bucket.Name()}
}

// name says once that a key does not start by itself.
func (w *watcher) name(key string) {
	if w.named[key] || len(w.named) >= maxNamed {
		return
	}
	w.named[key] = true
	w.cfg.Logger.Info("object is not sent by itself: its key lacks the suffix", "key", key, "suffix", w.cfg.Suffix)
}

// take starts the distribution of a new object, or of one with new headers. The
// listing lacks what HEAD knows, and the object may have changed since.
func (w *watcher) take(ctx context.Context, o bucket.Object) {
	if w.changesAgain(w.keyOf(o)) > 0 {
		return // a later poll takes it
	}
	head, err := w.cfg.Bucket.Head(ctx, o.Key)
	most := maxUnread
	if err == nil {
		most, err = maxUnreadTable, w.send(ctx, o, head)
	}
	switch {
	case ctx.Err() != nil, errors.Is(err, bucket.ErrNotFound): // deleted since the listing
	case err != nil:
		w.notTaken(o, most, err)
	default:
		delete(w.unread, o.Key)
	}
}

// send accepts an execution of the object, unless it was only written again.
func (w *watcher) send(ctx context.Context, o bucket.Object, head *bucket.Object) error {
	r := w.sentRecord(o)
	if r != nil && r.SourceETag == head.ETag {
		if corrected, err := w.corrected(ctx, r, head); err != nil || !corrected {
			return err
		}
	}
	destinations, err := w.destinations(api.DeployRequest{SourceBucket: w.cfg.Bucket.Name()})
	if err == nil {
		_, err = w.accept(ctx, w.cfg.Bucket.Name(), head, destinations, false)
	}
	if err == nil {
		w.changes.began(w.keyOf(o), time.Now())
	}
	return err
}

// changesAgain is how long an object that goes on to change waits for its next
// execution, which is said once; 0 for one that need not.
func (s *Seeder) changesAgain(k ledger.Key) time.Duration {
	wait, news := s.changes.due(k, time.Now())
	if news {
		s.cfg.Logger.Warn("object changes again and again, its executions begin at growing intervals",
			"key", k.FileKey, "bucket", k.SourceBucket, "atMost", maxChangeWait.String())
	}
	return wait
}
