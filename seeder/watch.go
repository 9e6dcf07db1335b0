package seeder

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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

// fingerprint stands for one object as it was: its key and ETag.
type fingerprint [16]byte

func fingerprintOf(key, etag string) fingerprint {
	sum := sha256.Sum256([]byte(key + "\x00" + etag))
	return fingerprint(sum[:16])
}

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
	// baseline is what was there before the first start; nil until known.
	baseline map[fingerprint]struct{}
	named    map[string]bool
	// rewritten and unread are those to be looked at again.
	rewritten rewritten
	unread    unread
}

func (w *watcher) poll(ctx context.Context) error {
	if w.baseline == nil {
		if err := w.first(ctx); err != nil {
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
	if err == nil {
		w.unread.listed()
		w.metrics.unread.Set(float64(len(w.unread)))
	}
	return err
}

// known reports whether there is nothing to do about an object: the table has
// it, it was there before the first start, or its own publish is on the way. One that
// was there at the first start stays what it was when only its headers are corrected.
func (w *watcher) known(o bucket.Object) bool {
	r := w.sentRecord(o)
	if r != nil && r.SourceETag == o.ETag {
		return !w.rewritten.suspected(r, o, time.Now()) || w.reserved.held(o.Key)
	}
	if _, ok := w.baseline[fingerprintOf(o.Key, o.ETag)]; ok && r == nil {
		return true
	}
	return w.reserved.held(o.Key)
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
		_, err = w.accept(ctx, w.cfg.Bucket.Name(), head, destinations)
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

// first learns what was in the bucket before the first start: from the file
// where there is one, else by a listing that is then written to the file.
func (w *watcher) first(ctx context.Context) error {
	baseline, err := readBaseline(w.cfg.BaselineFile)
	if err == nil {
		if w.cfg.Backfill {
			baseline = map[fingerprint]struct{}{}
		}
		w.baseline = baseline
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	baseline = make(map[fingerprint]struct{})
	if !w.cfg.Backfill {
		err = w.cfg.Bucket.List(ctx, w.cfg.Prefix, func(o bucket.Object) error {
			baseline[fingerprintOf(o.Key, o.ETag)] = struct{}{}
			return ctx.Err()
		})
		if err != nil {
			return err
		}
	}
	if err := writeBaseline(w.cfg.BaselineFile, baseline); err != nil {
		return err
	}
	if len(baseline) > 0 {
		w.cfg.Logger.Info("objects were in the bucket before the first start and are not sent; start with --backfill to send them, or publish one with `seeder publish s3://BUCKET/KEY`",
			"bucket", w.cfg.Bucket.Name(), "objects", len(baseline))
	}
	w.baseline = baseline
	return nil
}

func readBaseline(file string) (map[fingerprint]struct{}, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the baseline: %w", err)
	}
	const length = len(fingerprint{})
	if len(b)%length != 0 {
		return nil, fmt.Errorf("baseline %s is damaged: remove it, and the bucket's present objects count as sent", file)
	}
	out := make(map[fingerprint]struct{}, len(b)/length)
	for ; len(b) > 0; b = b[length:] {
		out[fingerprint(b[:length])] = struct{}{}
	}
	return out, nil
}

// writeBaseline writes the file whole or not at all.
func writeBaseline(file string, baseline map[fingerprint]struct{}) error {
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return fmt.Errorf("writing the baseline: %w", err)
	}
	defer os.Remove(f.Name())
	b := make([]byte, 0, len(baseline)*len(fingerprint{}))
	for p := range baseline {
		b = append(b, p[:]...)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("writing the baseline: %w", err)
	}
	return nil
}
