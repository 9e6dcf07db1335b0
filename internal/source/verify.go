package source

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// Pull fetches an object in parallel ranges, each If-Match on the ETag, writes
// it to the cache and hashes it in order as it comes, each digest at its own
// pace. An object that changes underneath is bucket.ErrChanged, never a mix of
// two. A build of 0 bytes has a manifest and no entry.
//
// What was read is compared with the checksum that the store says of the object. Where it
// is not the same, all of it is read once more; then it is bucket.ErrChecksum.
//
// What a pull that broke off has brought, in this process or a former one, is not
// fetched again by the next of that name, as long as the object is the same.
// cache.ForgetPull removes it.
func (p *Puller) Pull(ctx context.Context, from *bucket.Bucket, o *bucket.Object, name string, progress func(pulled int64)) (*manifest.Manifest, *cache.Entry, error) {
	m, entry, err := p.pull(ctx, from, o, name, progress)
	first, ok := errors.AsType[*mismatch](err)
	if !ok {
		return m, entry, err
	}
	p.logger.Warn("what was read is not what was stored, reading it once more", "key", o.Key, "executionId", name, "error", err)
	m, entry, err = p.pull(ctx, from, o, name, progress)
	if second, ok := errors.AsType[*mismatch](err); ok {
		second.next = sameDamage
		if first.got != second.got {
			second.next = otherDamage
		}
	}
	return m, entry, err
}

// mismatch is an object whose bytes have not the checksum that its store says.
type mismatch struct {
	key, bucket string
	want        bucket.Checksum
	got         string
	next        string // what to do; empty after the first read
}

// What to do about a mismatch at two reads, whose bytes were the same or not.
const (
	sameDamage  = "; two reads gave the same bytes: what the store has is damaged, so upload the build again"
	otherDamage = "; two reads gave different bytes: look at what stands between (network, proxies) and at the store's disks, then `seeder retry`"
)

func (m *mismatch) Unwrap() error { return bucket.ErrChecksum }

func (m *mismatch) Error() string {
	return fmt.Sprintf("%v: the %s of %s in %s is %s, what was read has %s%s",
		bucket.ErrChecksum, m.want.Algorithm, m.key, m.bucket, m.want.Sum, m.got, m.next)
}

// comparison computes what is to be compared with an object's checksum.
type comparison struct {
	from   *bucket.Bucket
	object *bucket.Object
	hash   hash.Hash // nil where there is nothing to compute
}

func compare(from *bucket.Bucket, o *bucket.Object) *comparison {
	c := &comparison{from: from, object: o}
	if a := o.Checksum.Algorithm; a != "" && a != bucket.SHA256 { // the manifest has that
		c.hash = a.New()
	}
	return c
}

// lanes adds the writer that wants the whole object in order, if there is one.
func (c *comparison) lanes(writers []io.Writer) []io.Writer {
	if c.hash != nil {
		writers = append(writers, c.hash)
	}
	return writers
}

// check compares, after all is written. Where the object has no checksum, or an ETag that
// may be none, nothing is known and nothing is wrong.
func (c *comparison) check(ctx context.Context, m *manifest.Manifest, logger *slog.Logger) error {
	want := c.object.Checksum
	logger = logger.With("key", c.object.Key, "bucket", c.from.Name())
	if want.Algorithm == "" {
		logger.Info("not compared with the source: its object has no checksum of the whole", "etag", c.object.ETag)
		return nil
	}
	sum := m.SHA256[:]
	if c.hash != nil {
		sum = c.hash.Sum(nil)
	}
	got := want.Algorithm.Format(sum)
	if got == want.Sum {
		if want.Algorithm == bucket.ETagMD5 {
			c.from.SawMD5ETag()
		}
		logger.Info("compared with the source's checksum", "algorithm", string(want.Algorithm), "sum", got)
		return nil
	}
	if want.Algorithm == bucket.ETagMD5 {
		are, err := c.from.HasMD5ETags(ctx, c.object.Key)
		if err != nil {
			return fmt.Errorf("finding out whether ETags in %s are MD5s: %w", c.from.Name(), err)
		}
		if !are {
			logger.Info("not compared with the source: its object has no checksum, and its ETag is no MD5", "etag", c.object.ETag)
			return nil
		}
	}
	return &mismatch{key: c.object.Key, bucket: c.from.Name(), want: want, got: got}
}
