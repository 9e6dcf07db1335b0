//go:build linux

package chaos

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestPullContinues kills the seeder in mid-pull: what had reached its disk is not
// read from the global bucket again.
func TestPullContinues(t *testing.T) {
	t.Parallel()
	const (
		size  = 40 << 20
		block = 512 << 10 // is what one GET asks for of segments of 5 MiB
		// The journal beside a segment has 32 bytes for what is pulled and 16 for
		// each block on the disk, the list of segments that are whole 20 for each.
		fingerprint, record, listed = 32, 16, 20
	)
	w := Start(t, Options{Agents: []int{1}, Seed: 60})
	slow := w.Seeder.Gate.Break(Rule{When: op("GetObject"), Do: Slow(16 << 20)})
	v := w.Put("build.zip", size)
	r := w.Begun(v)
	pulls := filepath.Join(w.Seeder.Dir, "cache", "pulls", r.ExecutionID)
	entries := func(file string, length int64) int64 {
		info, err := os.Stat(file)
		if err != nil {
			return 0
		}
		return max(0, info.Size()-fingerprint) / length
	}
	kept := func() (bytes int64) {
		whole := entries(pulls+".segments", listed)
		for i := range v.Build.NumSegments() {
			if _, length := v.Build.SegmentRange(i); int64(i) < whole {
				bytes += length
			} else {
				bytes += entries(fmt.Sprintf("%s.%d.blocks", pulls, i), record) * block
			}
		}
		return bytes
	}
	w.Until("half of it is on the disk", func() bool { return kept() >= size/2 })
	w.Seeder.Kill()
	w.Until("its calls have ended", func() bool { return w.Seeder.Gate.Open() == 0 })
	// Calls are counted, not bytes: those on their way to the killed process are
	// still read from the store.
	had, before := kept(), w.Seeder.Gate.Ops("GetObject")
	slow.Heal()
	w.Seeder.Run()
	w.Completed(v)
	calls := int64(w.Seeder.Gate.Ops("GetObject") - before)
	t.Logf("%d bytes were on the disk, %d blocks were read after the kill", had, calls)
	if calls > (size-had)/block {
		t.Errorf("%d blocks were read for %d bytes that were missing", calls, size-had)
	}
	w.Settle()
}

// TestSourceIsTheLastResort has the seeder vanish for good while nobody has all of
// the build: the agents read the rest from the global bucket, each piece about
// once.
func TestSourceIsTheLastResort(t *testing.T) {
	if !*longFlag {
		t.Skip("the agents are patient for half a minute: -chaos.long")
	}
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1, 1}, Link: link / 4, Seed: 61})
	w.NeedsNetwork()
	v, _ := progressed(5)(t, w, "build.zip")
	w.Seeder.Kill()
	lacking := missing(union(v, w.Agents), v)
	if lacking == 0 {
		t.Fatal("the agents hold all of it between them")
	}
	w.Completed(v)
	var read int64
	for _, a := range w.Agents {
		read += a.Gate.Pulled(w.Global, v.Key)
	}
	t.Logf("%d bytes were missing between them, %d were read", lacking, read)
	if read == 0 || read > 2*lacking { // some pieces were still on their way
		t.Errorf("%d bytes were read for %d that were missing", read, lacking)
	}
	w.OnceUp(v)
	w.Settle()
}
