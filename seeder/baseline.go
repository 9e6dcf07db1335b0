package seeder

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// versionOf is an object as the baseline remembers it. Key and ETag alone: a bucket
// that is restored or copied keeps them, while its times are new.
func versionOf(o bucket.Object) ledger.ObjectVersion {
	return ledger.ObjectVersion{Key: hash64(o.Key), ETag: hash64(o.ETag)}
}

// fingerprint stands for two texts, such as an object's key and its bucket.
type fingerprint [16]byte

func fingerprintOf(a, b string) fingerprint {
	sum := sha256.Sum256([]byte(a + "\x00" + b))
	return fingerprint(sum[:16])
}

func hash64(s string) uint64 {
	sum := sha256.Sum256([]byte(s))
	return binary.BigEndian.Uint64(sum[:])
}

// seen are the newest versions, by key, of objects that are not to be sent by
// themselves. What was there at the start is sorted, which takes a third of a map's
// memory.
type seen struct {
	sorted []ledger.ObjectVersion
	later  map[uint64]uint64 // key → ETag
}

// newSeen takes versions in order: of two of one key the later counts. It keeps the
// slice.
func newSeen(versions []ledger.ObjectVersion) seen {
	slices.SortStableFunc(versions, func(a, b ledger.ObjectVersion) int { return cmp.Compare(a.Key, b.Key) })
	kept := versions[:0]
	for i, v := range versions {
		if i+1 == len(versions) || versions[i+1].Key != v.Key {
			kept = append(kept, v)
		}
	}
	return seen{kept, make(map[uint64]uint64)}
}

func (s *seen) has(v ledger.ObjectVersion) bool {
	if etag, ok := s.later[v.Key]; ok {
		return etag == v.ETag
	}
	i, ok := slices.BinarySearchFunc(s.sorted, v.Key, func(o ledger.ObjectVersion, key uint64) int { return cmp.Compare(o.Key, key) })
	return ok && s.sorted[i].ETag == v.ETag
}

func (s *seen) add(v ledger.ObjectVersion) { s.later[v.Key] = v.ETag }

// readBaseline learns from the table what is not new. What a first start, or the first
// with this prefix and suffix, finds in the bucket is old.
func (w *watcher) readBaseline(ctx context.Context) error {
	b, err := w.cfg.Ledger.Baseline(ctx, w.cfg.Bucket.Name())
	if errors.Is(err, ledger.ErrNoBaseline) {
		b, err = ledger.NewBaseline(w.cfg.Bucket.Name()), nil
	}
	if err != nil {
		return err
	}
	old := b.Old
	if scope := (ledger.Scope{Prefix: w.cfg.Prefix, Suffix: w.cfg.Suffix}); !slices.Contains(b.Scopes, scope) {
		more, err := w.oldObjects(ctx, b, scope)
		if err != nil {
			return err
		}
		if err := w.cfg.Ledger.Extend(ctx, b, scope, more); err != nil {
			return err
		}
		if len(more) > 0 {
			w.cfg.Logger.Info("objects were in the bucket before the first start and are not sent; start with --backfill to send them, or publish one with `seeder publish s3://BUCKET/KEY`",
				"bucket", w.cfg.Bucket.Name(), "prefix", w.cfg.Prefix, "suffix", w.cfg.Suffix, "objects", len(more))
		}
		old = append(old, more...)
	}
	if w.cfg.Backfill {
		old = nil
	}
	w.seen = newSeen(append(old, b.Sent...))
	b.Old, b.Sent = nil, nil // seen holds them
	w.baseline, w.unsaved = b, nil
	return nil
}

// oldObjects lists what a scope covers that is there already and that no scope before
// it covered: that has come since, unseen.
func (w *watcher) oldObjects(ctx context.Context, b *ledger.Baseline, scope ledger.Scope) ([]ledger.ObjectVersion, error) {
	// An earlier version kept the baseline of its first start in a file.
	isOld, err := readBaselineFile(w.cfg.BaselineFile)
	first := len(b.Scopes) == 0
	switch {
	case first && err == nil:
	case w.cfg.Backfill:
		return nil, nil
	case first && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	default:
		// What is put there while it is listed is new, by the clock of the bucket's
		// server. That tells seconds: within the one that the listing began in, an
		// object counts as old.
		began, err := w.cfg.Bucket.Clock(ctx)
		if err != nil {
			return nil, err
		}
		began = began.Truncate(time.Second)
		isOld = func(o bucket.Object) bool { return o.LastModified.Before(began.Add(time.Second)) }
	}
	var old []ledger.ObjectVersion
	err = w.cfg.Bucket.List(ctx, scope.Prefix, func(o bucket.Object) error {
		if scope.Covers(o.Key) && !b.Covers(o.Key) && isOld(o) {
			if len(old) == ledger.MaxVersions {
				return fmt.Errorf("bucket %s holds more than %d objects from before the first start; choose fewer with --prefix, or send them with --backfill",
					w.cfg.Bucket.Name(), ledger.MaxVersions)
			}
			old = append(old, versionOf(o))
		}
		return ctx.Err()
	})
	return old, err
}

// saveSent writes what has been seen to have an execution since the last time. What
// cannot be written is tried again by the next poll.
func (w *watcher) saveSent(ctx context.Context) {
	if len(w.unsaved) == 0 || ctx.Err() != nil {
		return
	}
	saved, err := w.cfg.Ledger.AddSent(ctx, w.baseline, w.unsaved)
	w.unsaved = slices.Delete(w.unsaved, 0, saved)
	switch {
	case err == nil:
	case errors.Is(err, ledger.ErrBaselineChanged):
		w.cfg.Logger.Warn("another seeder watches the same bucket, the baseline is read again", "bucket", w.cfg.Bucket.Name())
		w.baseline = nil
	case ctx.Err() == nil:
		w.cfg.Logger.Warn("what was sent is not noted in the table, the next poll tries again", "bucket", w.cfg.Bucket.Name(), "error", err)
	}
}

// readBaselineFile reads the file that versions before the table's baseline wrote: 16
// bytes of a hash for each object. It returns what tells those from others.
func readBaselineFile(file string) (isOld func(bucket.Object) bool, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the baseline: %w", err)
	}
	const length = len(fingerprint{})
	if len(b)%length != 0 {
		return nil, fmt.Errorf("baseline %s is damaged: remove it, and the bucket's present objects count as sent", file)
	}
	old := make(map[fingerprint]struct{}, len(b)/length)
	for ; len(b) > 0; b = b[length:] {
		old[fingerprint(b[:length])] = struct{}{}
	}
	return func(o bucket.Object) bool {
		_, ok := old[fingerprintOf(o.Key, o.ETag)]
		return ok
	}, nil
}
