package source

import (
	"context"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"log/slog"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// mismatch is an object whose bytes have not the checksum that its store says.
type mismatch struct {
	key, bucket string
	want        bucket.Checksum
	got         string
}

func (m *mismatch) Unwrap() error { return bucket.ErrChecksum }

func (m *mismatch) Error() string {
	return fmt.Sprintf("%v: the %s of %s in %s is %s, what was read has %s; look at what stands between (network, proxies) and at the store's disks, then upload the build again",
		bucket.ErrChecksum, m.want.Algorithm, m.key, m.bucket, m.want.Sum, m.got)
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
func (c *comparison) check(ctx context.Context, sha256Hex string, logger *slog.Logger) error {
	want := c.object.Checksum
	logger = logger.With("key", c.object.Key, "bucket", c.from.Name())
	if want.Algorithm == "" {
		logger.Info("not compared with the source: its object has no checksum of the whole", "etag", c.object.ETag)
		return nil
	}
	sum, err := hex.DecodeString(sha256Hex)
	if err != nil {
		return fmt.Errorf("SHA-256 %q: %w", sha256Hex, err)
	}
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
