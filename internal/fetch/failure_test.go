package fetch

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/survive"
)

// Whatever goes wrong with a build, it is tried again; when that has been so MaxFailures
// times it is told, and the build comes all the same when it can.
func TestFailures(t *testing.T) {
	t.Parallel()
	b := newBuildOf(t, 12, 11<<20)
	for name, of := range map[string]struct {
		step  string // in which there is a fault
		spoil func(cache string) (mend func() error, err error)
	}{
		"a fault of its own":         {step: "step"},
		"a fault as a segment opens": {step: "open"},
		"a fault as a segment comes": {step: "bring"},
		"a disk that fails": {spoil: func(cache string) (func() error, error) {
			away := cache + ".away"
			if err := os.Rename(cache, away); err != nil {
				return nil, err
			}
			return func() error { return errors.Join(os.Remove(cache), os.Rename(away, cache)) }, os.WriteFile(cache, nil, 0o600)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAgent(t, nil, "host")
			for i := range b.known.NumSegments() {
				a.has(t, b, i)
			}
			var fails atomic.Bool
			fails.Store(true)
			dir := t.TempDir()
			h := newHost(t, nil, "host", dir, func(c *Config) {
				c.Again = retry.Policy{First: 10 * time.Millisecond, Max: 100 * time.Millisecond}
				c.reached = func(step string) {
					if step == of.step && fails.Load() {
						panic("made by the test")
					}
				}
			})
			mend := func() error { fails.Store(false); return nil }
			if of.spoil != nil {
				var err error
				if mend, err = of.spoil(filepath.Join(dir, "cache")); err != nil {
					t.Fatal(err)
				}
			}
			h.Peers(nil, []Peer{a.peer})
			got, err := h.Build(b.whole())
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, func() bool { return errors.Is(got.Progress().Err, ErrFailing) })
			if fault := new(survive.Panic); errors.As(got.Progress().Err, &fault) != (of.step != "") {
				t.Errorf("%v", got.Progress().Err)
			}
			if err := mend(); err != nil {
				t.Fatal(err)
			}
			arrive(t, got, b)
			eventually(t, func() bool { return got.Progress().Err == nil })
			got.Drop()
			if n := len(h.users); n > 0 {
				t.Errorf("%d segments are still wanted by nobody", n)
			}
		})
	}
}
