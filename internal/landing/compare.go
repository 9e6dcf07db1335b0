package landing

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// Comparison is of an object that a bucket has with a build whose segments become known,
// part by part: while all agree, nothing is to be fetched.
type Comparison struct {
	// ETag is the object's.
	ETag string
	// Segments are the first ones, so many of which have all their parts in the object.
	Segments int
	// Differs: a part of the next one is another.
	Differs bool
	// Alike: the object says itself that it may be the build.
	Alike bool

	layout *manifest.Layout
	parts  []byte // their SHA-256, one after the other
}

// Compare begins to compare the parts that a bucket names of an object with a build. Nil
// when they cannot be: the object has another size or other headers than the build, says
// that it is something else, or is not cut as the build is.
func Compare(o *bucket.Object, parts []bucket.Part, r *ledger.Record, layout *manifest.Layout) *Comparison {
	digest := o.Metadata[digestMetadata]
	if o.Size != r.Size || len(lacking(r, o)) > 0 || digest != "" && r.SHA256 != "" && digest != r.SHA256 || len(parts) != layout.NumParts() {
		return nil
	}
	c := &Comparison{ETag: o.ETag, layout: layout}
	for i, p := range parts {
		if _, length := layout.PartRange(i); p.Size != length || len(p.SHA256) != sha256.Size {
			return nil
		}
		c.parts = append(c.parts, p.SHA256...)
	}
	if c.composite() != o.Composite { // by which it is known in the end
		return nil
	}
	return c
}

// Next compares the next segment.
func (c *Comparison) Next(m *manifest.Manifest) {
	first, end := c.layout.SegmentParts(c.Segments)
	if bytes.Equal(m.Parts, c.parts[first*sha256.Size:end*sha256.Size]) {
		c.Segments++
	} else {
		c.Differs, c.parts = true, nil
	}
}

// Composite is that of the build, once all of its segments have been found in the object;
// empty before, and of a nil Comparison.
func (c *Comparison) Composite() string {
	if c == nil || c.Segments < c.layout.NumSegments() {
		return ""
	}
	return c.composite()
}

func (c *Comparison) composite() string {
	sum := sha256.Sum256(c.parts)
	return fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(sum[:]), c.layout.NumParts())
}
