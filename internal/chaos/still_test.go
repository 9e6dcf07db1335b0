//go:build linux

package chaos

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// longStop is how long the seeder stands still in a long run: a minute, and some.
const longStop = 65 * time.Second

// TestSeederStopped has the seeder stand still (SIGSTOP, as a machine that is moved does) in
// the middle of a pull, and between two segments of an upload whose client sends on. It is
// lost to the agents meanwhile. When it wakes it goes on where it was: everything arrives,
// and nothing goes up twice or has failed.
func TestSeederStopped(t *testing.T) {
	t.Parallel()
	const part = manifest.MinPartLength
	w := Start(t, Options{Agents: []int{1, 1}, Seed: 22})
	// wakes has it stand still until the agents have lost it, or longer, and then go on.
	wakes := func(t *testing.T, check func(a *Member)) {
		begun := time.Now()
		for _, a := range w.Agents {
			w.Until(a.Name+" has lost the seeder", func() bool { return !a.sees("seeder") })
		}
		if wait := time.Until(begun.Add(longStop)); *longFlag && wait > 0 {
			time.Sleep(wait)
		}
		for _, a := range w.Agents {
			check(a)
		}
		t.Logf("it stood still for %s", time.Since(begun).Round(time.Second))
		w.Seeder.Continue()
	}
	// arriving waits until some parts, and not all, are in every region's upload.
	arriving := func(key string, bytes int64) (id string) {
		w.Until("its first parts are in every region's upload", func() bool {
			e, err := w.Seeder.ByKey(context.Background(), key)
			if err == nil {
				id = e.ExecutionID
			}
			return err == nil && len(e.Destinations) > 0 &&
				!slices.ContainsFunc(e.Destinations, func(d api.Destination) bool { return d.LandedBytes < bytes })
		})
		return id
	}
	w.Sub(t, "in the pull", func(t *testing.T) {
		rule := w.Seeder.Gate.Break(Rule{When: op("GetObject"), Do: Slow(3 << 20)})
		v := w.Put("pulled.zip", 6*part+1)
		arriving(v.Key, part)
		w.Seeder.Stop()
		wakes(t, func(*Member) {})
		rule.Heal()
		w.Completed(v)
		w.OnceUp(v)
	})
	w.Sub(t, "in an upload", func(t *testing.T) {
		goesOn, ended := make(chan struct{}), make(chan error, 1)
		v := &Version{Key: "uploaded.zip", Size: 4*part + 1, seed: w.rng.Uint64()}
		go func() {
			ended <- w.upload(context.Background(), v, func(content io.Reader) io.Reader {
				first := make([]byte, 2*part+1)
				_, _ = io.ReadFull(content, first) // of so many bytes
				return io.MultiReader(bytes.NewReader(first), waiting{context.Background(), goesOn}, content)
			})
		}()
		id := arriving(v.Key, 2*part)
		w.Seeder.Stop()
		close(goesOn)
		wakes(t, func(a *Member) {
			if b := a.Build(id); b == nil || !b.Waiting || b.Error != "" || b.LandedBytes != 2*part {
				t.Errorf("%s does not wait for the rest: %+v", a.Name, b)
			}
		})
		if err := <-ended; err != nil {
			t.Errorf("the upload was answered with %v", err)
		}
		w.Settle()
		if now, wrong := w.found(v.Key); wrong != "" || now != v {
			t.Errorf("the upload has not the key: %s", wrong)
		}
		w.OnceUp(v)
	})
	for _, m := range w.Members() {
		for _, message := range []string{"destination failed", "execution failed", "upload was broken off"} {
			if strings.Contains(m.Said(), message) {
				t.Errorf("%s said %q", m.Name, message)
			}
		}
	}
	w.Settle()
}

// sees reports whether a member of a role is alive, as far as an agent knows; true where it
// does not answer.
func (m *Member) sees(role string) bool {
	s, err := m.AgentStatus(context.Background())
	return err != nil || slices.ContainsFunc(s.Members, func(m api.Member) bool { return m.Role == role && m.State == "alive" })
}
