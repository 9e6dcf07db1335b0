//go:build linux

package chaos

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// Execution is the seeder's view of one; nil when it does not answer.
func (w *World) Execution(id string) *api.Execution {
	e, err := w.Seeder.Execution(context.Background(), id)
	if err != nil {
		return nil
	}
	return e
}

// Have says of each piece of a build whether it is verified on a member's disk.
func (m *Member) Have(v *Version) []bool {
	have := make([]bool, v.Build.NumPieces())
	for i := range v.Build.NumSegments() {
		segment := v.Build.Segment(i)
		first, _ := v.Build.SegmentPieces(i)
		bitmap, err := os.ReadFile(filepath.Join(m.Dir, "cache", segment.InfoHash().String(), "have")) // as BEP 3 writes it
		if err != nil {
			continue // nothing of it
		}
		for piece := range segment.NumPieces() {
			have[first+piece] = piece/8 < len(bitmap) && bitmap[piece/8]&(0x80>>(piece%8)) != 0
		}
	}
	return have
}

// missing is how many bytes of a build are not there, the last piece counted as if it were
// whole.
func missing(have []bool, v *Version) (bytes int64) {
	for _, there := range have {
		if !there {
			bytes += v.Build.PieceLength
		}
	}
	return bytes
}

// union is what members hold between them.
func union(v *Version, members []*Member) []bool {
	have := make([]bool, v.Build.NumPieces())
	for _, m := range members {
		for i, there := range m.Have(v) {
			have[i] = have[i] || there
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

// Landings is the item of a key with what the rows say beside it; nil when there is none.
func (w *World) Landings(key string) *ledger.Record {
	r := w.Record(key)
	if r == nil {
		return nil
	}
	var places []arrivals.Place
	for _, b := range r.Destinations {
		places = append(places, arrivals.Place{Key: r.Key, Bucket: b})
	}
	rows, err := w.Arrivals.Rows(context.Background(), places)
	if err != nil {
		return nil
	}
	for _, row := range rows {
		r = row.Over(r)
	}
	return r
}

// Leader waits until one of a bucket's agents has begun the landing, and returns
// it.
func (w *World) Leader(v *Version, bucket string) *Member {
	w.t().Helper()
	var leader *Member
	w.Until("a landing of "+v.Key+" in "+bucket, func() bool {
		r := w.Landings(v.Key)
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
