package host

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

// TestLeaveEndsWithItsStream: the next agent does not know of it, and may give it to others.
func TestLeaveEndsWithItsStream(t *testing.T) {
	dir := t.TempDir()
	a := newAgent(t)
	startHost(t, dir, nil, a.url)
	one := newBuild(t, 1)
	a.has(one)
	a.say(sign(t, goalOf(10, one, nil), key), &hostwire.Leave{Service: "web", Version: 10, Seconds: 600})
	a.mu.Lock()
	s, hellos := a.stream, len(a.hellos)
	a.mu.Unlock()
	s.Close()
	until(t, "another stream", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.hellos) > hellos && a.stream != nil })
	a.say(one.recipe)
	a.await("it wants leave", func(s hostwire.ServiceState) bool { return s.Wants == one.goal.ExecutionID })
	began := time.Now()
	until(t, "it had time to switch", func() bool { return time.Since(began) > 2*lookInterval })
	if runs(t, dir) != "" {
		t.Fatal("it has switched by the leave of a stream that has ended")
	}
	a.say(&hostwire.Leave{Service: "web", Version: 10, Seconds: 30})
	a.await("it runs", func(s hostwire.ServiceState) bool { return s.State == goal.Healthy })
}

// Hosts whose agent has died come to the others within seconds, or they would hear of no
// segment for as long; where the network was away, of many more hosts, it takes longer.
func TestRejoin(t *testing.T) {
	l := &link{host: &Host{cfg: Config{rejoin: usualRejoin}}}
	for name, c := range map[string]struct {
		why  error
		want time.Duration
	}{
		"ended in order": {nil, 5 * time.Second},
		"broken off":     {io.ErrUnexpectedEOF, 5 * time.Second},
		"silent":         {fmt.Errorf("receiving: %w", hostwire.ErrLost), 30 * time.Second},
	} {
		if got := l.rejoinWithin(c.why); got != c.want {
			t.Errorf("%s: within %s, want %s", name, got, c.want)
		}
	}
}
