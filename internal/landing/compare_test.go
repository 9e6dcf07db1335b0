package landing

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"testing"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// Segment by segment, an object is a build, or is not from the first part on that differs.
func TestCompare(t *testing.T) {
	const size = 6*manifest.MinPartLength + 1
	layout, err := manifest.NewLayout(manifest.Ramp, size)
	if err != nil {
		t.Fatal(err)
	}
	var parts []bucket.Part
	var sums []byte
	for i := range layout.NumParts() {
		_, length := layout.PartRange(i)
		sum := sha256.Sum256([]byte{byte(i)})
		parts = append(parts, bucket.Part{Number: i, Size: length, SHA256: sum[:]})
		sums = append(sums, sum[:]...)
	}
	all := sha256.Sum256(sums)
	object := bucket.Object{Key: "k", ETag: "e", Size: size, Composite: fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(all[:]), len(parts)),
		Headers: bucket.Headers{ContentType: "application/zip"}}
	record := &ledger.Record{Size: size, Headers: object.Headers.Map()}
	segment := func(i int) *manifest.Manifest {
		first, end := layout.SegmentParts(i)
		return &manifest.Manifest{Shape: layout.SegmentShape(i), Parts: sums[first*sha256.Size : end*sha256.Size]}
	}
	c := Compare(&object, parts, record, layout)
	if c == nil || c.Composite() != "" {
		t.Fatalf("%+v", c)
	}
	for i := range layout.NumSegments() {
		if c.Next(segment(i)); c.Differs || c.Segments != i+1 {
			t.Fatalf("segment %d: %+v", i, c)
		}
	}
	if c.Composite() != object.Composite {
		t.Errorf("%s, want %s", c.Composite(), object.Composite)
	}
	c = Compare(&object, parts, record, layout)
	c.Next(segment(0))
	other := segment(1)
	other.Parts = slices.Clone(other.Parts)
	other.Parts[0]++
	if c.Next(other); !c.Differs || c.Segments != 1 || c.Composite() != "" {
		t.Errorf("another part: %+v", c)
	}
	if none := (*Comparison)(nil); none.Composite() != "" {
		t.Error("nothing has a composite")
	}

	for name, change := range map[string]func(o *bucket.Object, r *ledger.Record, parts *[]bucket.Part){
		"another size":              func(o *bucket.Object, r *ledger.Record, _ *[]bucket.Part) { o.Size++ },
		"another composite":         func(o *bucket.Object, _ *ledger.Record, _ *[]bucket.Part) { o.Composite = "x-7" },
		"no composite":              func(o *bucket.Object, _ *ledger.Record, _ *[]bucket.Part) { o.Composite = "" },
		"other headers":             func(o *bucket.Object, _ *ledger.Record, _ *[]bucket.Part) { o.CacheControl = "no-store" },
		"no parts":                  func(_ *bucket.Object, _ *ledger.Record, p *[]bucket.Part) { *p = nil },
		"a part less":               func(_ *bucket.Object, _ *ledger.Record, p *[]bucket.Part) { *p = (*p)[1:] },
		"a part more":               func(_ *bucket.Object, _ *ledger.Record, p *[]bucket.Part) { *p = append(*p, (*p)[0]) },
		"parts of another length":   func(_ *bucket.Object, _ *ledger.Record, p *[]bucket.Part) { (*p)[0].Size++; (*p)[1].Size-- },
		"a part without its digest": func(_ *bucket.Object, _ *ledger.Record, p *[]bucket.Part) { (*p)[3].SHA256 = nil },
		"another SHA-256": func(o *bucket.Object, r *ledger.Record, _ *[]bucket.Part) {
			r.SHA256, o.Metadata = "a", map[string]string{digestMetadata: "b"}
		},
	} {
		o, r, p := object, *record, slices.Clone(parts)
		if change(&o, &r, &p); Compare(&o, p, &r, layout) != nil {
			t.Errorf("%s: can be compared", name)
		}
	}
}
