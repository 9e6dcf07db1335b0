package clustertest

import (
	"bytes"
	"net/http"
	"slices"
	"testing"

	"github.com/anacrolix/torrent/metainfo"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// zeroParts is how many parts of a sparse build are equal, each a segment of its own.
const zeroParts = 12

// sparse is a build of many equal segments between others, the last of which is short.
func sparse(t *testing.T) []byte {
	t.Helper()
	b := slices.Concat(content(1, part), make([]byte, zeroParts*part), content(2, part), make([]byte, 1234))
	layout, err := manifest.NewLayout(manifest.Ramp, int64(len(b)))
	if err != nil || layout.NumSegments() != zeroParts+3 {
		t.Fatalf("%d segments, %v", layout.NumSegments(), err)
	}
	return b
}

// described fails the test unless the .torrent of an execution is the content's.
func (c *Cluster) described(id string, content []byte) {
	c.t.Helper()
	info, err := c.torrent(id).UnmarshalInfo()
	if err != nil {
		c.t.Fatal(err)
	}
	pieces, err := metainfo.GeneratePieces(bytes.NewReader(content), info.PieceLength, nil)
	if err != nil || info.Length != int64(len(content)) || !bytes.Equal(info.Pieces, pieces) {
		c.t.Errorf("its .torrent is of %d bytes, of %d, or of others: %v", info.Length, len(content), err)
	}
}

// Equal segments of a build that is pulled are one torrent, and all of them land, in every
// region, also when the seeder begins again between them: what it has read is not read twice.
func TestEqualSegmentsArePulled(t *testing.T) {
	source := &reads{key: "sparse.bin"}
	cfg := source.config()
	d := newDam("/sparse.bin")
	d.RoundTripper = cfg.HTTPClient.(*http.Client).Transport
	cfg.HTTPClient = &http.Client{Transport: d}
	c := Start(t, cloud, Options{Regions: 2, AWS: cfg})
	want := sparse(t)
	c.Put("sparse.bin", want, nil)
	landed := func(parts int64) {
		t.Helper()
		for _, a := range c.Agents {
			c.Until("the first segments are in the upload", func() bool {
				b := c.build(a, "sparse.bin")
				return b != nil && b.LandedBytes == parts*part && b.Waiting
			})
		}
	}
	d.set(6 * part)
	id := c.Deploy("sparse.bin").ExecutionID
	landed(6)
	rangesOfAPart := source.n.Load() / 6
	c.StopSeeder()
	d.set(9 * part)
	c.StartSeeder()
	landed(9)
	d.set(1 << 40)
	c.Await(id, "COMPLETED")
	c.Holds("sparse.bin", want)
	c.described(id, want)
	if n := source.n.Load(); n > (zeroParts+2)*rangesOfAPart+1 {
		t.Errorf("%d ranges were read, a part has %d", n, rangesOfAPart)
	}
}

// So they are, and do, of one that is uploaded.
func TestEqualSegmentsAreUploaded(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2})
	want := sparse(t)
	g := c.upload("sparse.bin", len(want))
	g.send(want[:7*part])
	id := g.landed(6 * part).ExecutionID
	g.send(want[7*part:])
	if err := g.ends(); err != nil {
		t.Fatal(err)
	}
	c.Await(id, "COMPLETED")
	c.Holds("sparse.bin", want)
	if got, _ := c.Object(c.Global, "sparse.bin"); !bytes.Equal(got, want) {
		t.Errorf("%d bytes in the global bucket are not those that were sent", len(got))
	}
	c.described(id, want)
	if left := c.openUploads(); len(left) > 0 {
		t.Errorf("uploads are left: %v", left)
	}
}

// Two builds of the same bytes share segments, and go to one region each: the second lands
// while the first is on its way, and neither is where it does not belong.
func TestEqualBuildsOfDifferentDestinations(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2})
	want := sparse(t)
	g := c.upload("first.bin", len(want), c.Bucket(0))
	g.send(want[:7*part])
	first := g.landed(6 * part).ExecutionID
	c.Put("second.bin", want, nil)
	second := c.Await(c.Deploy("second.bin", c.Bucket(1)).ExecutionID, "COMPLETED")
	if e := g.execution(); e.ExecutionID != first || e.Phase != api.PhaseUploading || len(e.Destinations) != 1 {
		t.Errorf("the first one: %+v", e)
	}
	g.send(want[7*part:])
	if err := g.ends(); err != nil {
		t.Fatal(err)
	}
	c.Await(first, "COMPLETED")
	// Once more when all of it is everywhere but in the other's bucket.
	third := c.upload("third.bin", len(want), c.Bucket(1))
	third.send(want)
	if err := third.ends(); err != nil {
		t.Fatal(err)
	}
	c.Await(third.answer.ExecutionID, "COMPLETED")
	for key, to := range map[string]int{"first.bin": 0, "second.bin": 1, "third.bin": 1} {
		if got, _ := c.Object(c.Bucket(to), key); !bytes.Equal(got, want) {
			t.Errorf("%s in %s: %d bytes are not those that were sent", key, c.Bucket(to), len(got))
		}
		if got, _ := c.Object(c.Bucket(1-to), key); got != nil {
			t.Errorf("%s is in %s, too", key, c.Bucket(1-to))
		}
	}
	for _, id := range []string{first, second.ExecutionID, third.answer.ExecutionID} {
		c.described(id, want)
	}
}
