//go:build linux

package chaos

import (
	"context"
	"math/bits"
	"os"
	"path/filepath"
	"strings"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// Execution is the seeder's view of one; nil when it does not answer.
func (w *World) Execution(id string) *api.Execution {
	e, err := w.Seeder.Execution(context.Background(), id)
	if err != nil {
		return nil
	}
	return e
}

// Have is the bitmap of the pieces that are verified on a member's disk, as BEP 3
// writes it; nil where there is none.
func (m *Member) Have(infohash string) []byte {
	b, err := os.ReadFile(filepath.Join(m.Dir, "cache", infohash, "have"))
	if err != nil {
		return nil
	}
	return b
}

// pieces counts those of a bitmap.
func pieces(have []byte) (n int) {
	for _, b := range have {
		n += bits.OnesCount8(b)
	}
	return n
}

// missing is how many bytes a bitmap lacks of a build, the last piece counted as
// if it were whole.
func missing(have []byte, size int) int64 {
	length := manifest.PieceLength(int64(size))
	total := (int64(size) + length - 1) / length
	return (total - int64(pieces(have))) * length
}

// union is what members hold between them.
func union(infohash string, members []*Member) (have []byte) {
	for _, m := range members {
		b := m.Have(infohash)
		if have == nil {
			have = make([]byte, len(b))
		}
		for i := range min(len(have), len(b)) {
			have[i] |= b[i]
		}
	}
	return have
}

// Identity is the name that an agent made up at its first start.
func (m *Member) Identity() string {
	b, err := os.ReadFile(filepath.Join(m.Dir, "name"))
	if err != nil {
		m.w.t().Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// Leader waits until one of a bucket's agents has begun the landing, and returns
// it.
func (w *World) Leader(v *Version, bucket string) *Member {
	w.t().Helper()
	var leader *Member
	w.Until("a landing of "+v.Key+" in "+bucket, func() bool {
		r := w.Record(v.Key)
		if r == nil || r.SourceETag != v.ETag {
			return false
		}
		for _, a := range w.Agents {
			if begun := r.Landings[bucket]; a.Bucket == bucket && begun.UploadID != "" && begun.Agent == a.Identity() {
				leader = a
			}
		}
		return leader != nil
	})
	return leader
}

// Taken is how often the stores took each part of a key, over all members.
func (w *World) Taken(key string) map[PartID]int {
	sum := make(map[PartID]int)
	for _, m := range w.Members() {
		m.Gate.partsTaken(sum)
	}
	for p := range sum {
		if p.Key != key {
			delete(sum, p)
		}
	}
	return sum
}

// OnceUp fails the test when a part of the version went up twice into a bucket, or
// more than one upload was used for it.
func (w *World) OnceUp(v *Version) {
	w.t().Helper()
	uploads := make(map[string]string)
	for p, n := range w.Taken(v.Key) {
		if n > 1 {
			w.t().Errorf("part %s of %s went up to %s %d times", p.Part, v.Key, p.Bucket, n)
		}
		if id, ok := uploads[p.Bucket]; ok && id != p.UploadID {
			w.t().Errorf("more than one upload of %s to %s got parts", v.Key, p.Bucket)
		}
		uploads[p.Bucket] = p.UploadID
	}
}

// Ops is how many calls of an operation all members together had success with.
func (w *World) Ops(op string) (n int) {
	for _, m := range w.Members() {
		n += m.Gate.Ops(op)
	}
	return n
}
