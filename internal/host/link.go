package host

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/fetch"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// usualRejoin is how long hosts whose agent has ended their streams, or died, take, all of
	// them, to come to the others: thousands at a moment would be more than those bear, and
	// who has no stream hears of no further segment of a build.
	usualRejoin = 5 * time.Second
	// silentTimes is how many times as long they take when their agent only fell silent: as a
	// rule the network was away then, for the hosts of other agents too, and all come back.
	silentTimes = 6
	// usualHome is within which time a host goes back to the agent that is first in its
	// order, so that all have about as many.
	usualHome = 10 * time.Minute
	// dialFirst and dialMax are between tries while no agent answers.
	dialFirst, dialMax = time.Second, 30 * time.Second
)

// link is the host's stream to one of its region's agents.
type link struct {
	host  *Host
	tls   *tls.Config
	dirty chan struct{} // has a value when there is something to say
	// passed counts what passes over streams.
	passed hostwire.Counters

	at atomic.Pointer[connected] // nil without a stream

	mu     sync.Mutex // held for a few lines
	agents []string   // learned from an agent
	states map[string]hostwire.ServiceState
	holds  map[string]hostwire.Holds
	newer  map[string]*goal.NewerError // goals that this version does not understand, by service
}

func newLink(h *Host) *link {
	l := &link{host: h, dirty: make(chan struct{}, 1), states: make(map[string]hostwire.ServiceState), holds: make(map[string]hostwire.Holds), newer: make(map[string]*goal.NewerError)}
	if h.cfg.Identity != nil {
		l.tls = hostwire.ClientTLS(h.cfg.Identity)
	}
	return l
}

// say has the agent know how a service stands, and the next one in the hello.
func (l *link) say(s hostwire.ServiceState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.states[s.Service] = s
	ask(l.dirty)
}

// has says how much of a build is here; none of it drops it from the hello.
func (l *link) has(h hostwire.Holds) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holds[h.ExecutionID] = h
	ask(l.dirty)
}

// order is which agents are asked for a stream, the first before all: as hostwire.Order has
// them, but that the one that was lost is the last.
func (l *link) order(lost string) []string {
	l.mu.Lock()
	agents := slices.Concat(l.agents, l.host.cfg.Agents)
	l.mu.Unlock()
	agents = hostwire.Order(l.host.cfg.Name, agents)
	if i := slices.Index(agents, lost); i >= 0 {
		agents = append(slices.Delete(agents, i, i+1), lost)
	}
	return agents
}

// addrs is where the region's agents are, as host:port: they renew certificates.
func (l *link) addrs() (addrs []string) {
	for _, agent := range l.order("") {
		if u, err := url.Parse(agent); err == nil && u.Host != "" {
			addrs = append(addrs, u.Host)
		}
	}
	return addrs
}

// connected is a stream, and to whom.
type connected struct {
	stream *hostwire.Stream
	url    string
	end    func() // of serving it
	// states and holds are what the other side knows.
	states map[string]hostwire.ServiceState
	holds  map[string]hostwire.Holds
}

// run keeps a stream until ctx ends.
func (l *link) run(ctx context.Context) {
	wait := retry.Policy{First: dialFirst, Max: dialMax}
	lost, try := "", 0
	for ctx.Err() == nil {
		c, err := l.dialAny(ctx, l.order(lost))
		if err != nil {
			try++
			if ctx.Err() == nil {
				l.host.warn("no agent takes this host's stream, what runs goes on", "error", err)
			}
			retry.Wait(ctx, wait.Delay(try))
			continue
		}
		try = 0
		for c != nil {
			lost = c.url
			c, err = l.serve(ctx, c)
		}
		retry.Wait(ctx, rand.N(l.rejoinWithin(err)))
	}
}

// rejoinWithin bounds the wait before another agent is asked for a stream, when one is over
// for this reason; nil for an orderly end.
func (l *link) rejoinWithin(why error) time.Duration {
	if errors.Is(why, hostwire.ErrLost) {
		return silentTimes * l.host.cfg.rejoin
	}
	return l.host.cfg.rejoin
}

// dialAny opens a stream to the first that takes it.
func (l *link) dialAny(ctx context.Context, urls []string) (*connected, error) {
	var all error
	for _, url := range urls {
		c, err := l.dial(ctx, url)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		all = errors.Join(all, err)
	}
	return nil, all
}

func (l *link) dial(ctx context.Context, url string) (*connected, error) {
	h := l.host
	l.mu.Lock()
	c := &connected{url: url, states: maps.Clone(l.states), holds: maps.Clone(l.holds)}
	l.mu.Unlock()
	hello := &hostwire.Hello{
		Version: hostwire.Version, Host: h.cfg.Name, Start: h.start, Zone: h.cfg.Zone, Labels: h.cfg.Labels, PeerPort: h.peerPort(),
		Program: h.cfg.Version,
	}
	for _, name := range h.cfg.Services {
		hello.Services = append(hello.Services, c.states[name])
	}
	for _, id := range slices.Backward(slices.Sorted(maps.Keys(c.holds))) { // the newest
		if held := c.holds[id]; held.Segments > 0 && len(hello.Holds) < hostwire.MaxHolds {
			hello.Holds = append(hello.Holds, held)
		}
	}
	var err error
	c.stream, err = hostwire.Dial(ctx, hostwire.DialConfig{URL: url, TLS: l.tls, Hello: hello, Counters: &l.passed})
	return c, err
}

// serve takes what an agent says, and says what has changed, until the stream is over. It
// returns the stream that takes its place, when home answers again; else nil, and why it is
// over, nil for an orderly end.
func (l *link) serve(ctx context.Context, c *connected) (next *connected, err error) {
	h := l.host
	h.cfg.Logger.Info("stream to an agent", "agent", c.url)
	ctx, cancel := context.WithCancel(ctx)
	c.end = cancel
	l.at.Store(c)
	h.metrics.streams.Inc()
	ask(l.dirty) // what has changed since the hello was written
	var group sync.WaitGroup
	group.Go(func() { l.send(ctx, c) })
	group.Go(func() {
		next = l.goHome(ctx, c.url)
		cancel()
	})
	context.AfterFunc(ctx, c.stream.Close)
	err = l.receive(c)
	cancel()
	c.stream.Close()
	group.Wait()
	l.at.Store(nil)
	if next == nil {
		if err != nil {
			h.warn("stream to an agent is lost", "agent", c.url, "error", err)
		} else {
			h.cfg.Logger.Info("stream to an agent has ended", "agent", c.url)
		}
	}
	return next, err
}

// another has the host ask another agent.
func (l *link) another() {
	if c := l.at.Load(); c != nil {
		c.end()
	}
}

// goHome waits until the agent that is first in the host's order takes a stream, and
// returns it; nil when ctx ends first, or this is the first one.
func (l *link) goHome(ctx context.Context, at string) *connected {
	for retry.Wait(ctx, rand.N(l.host.cfg.home)+time.Millisecond) {
		first := l.order("")[0]
		if first == at {
			continue
		}
		c, err := l.dial(ctx, first)
		if err == nil {
			return c
		}
		l.host.cfg.Logger.Debug("the agent that is first for this host does not answer", "agent", first, "error", err)
	}
	return nil
}

// send says what the agent does not know yet, whenever there is something.
func (l *link) send(ctx context.Context, c *connected) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.dirty:
		}
		for _, m := range l.news(c) {
			if err := c.stream.Send(m); err != nil {
				if errors.Is(err, hostwire.ErrInvalid) {
					l.host.warn("something about this host could not be said", "error", err)
					continue
				}
				ask(l.dirty) // the next stream says it
				return       // receive knows why
			}
		}
	}
}

// news is what a stream's other side does not know, from now on taken as known. A later
// version of the goal that changes nothing for the host is no news, nor is what the agent
// sees by itself of a host that has said it is healthy: atRest.
func (l *link) news(c *connected) (all []hostwire.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(l.holds)) {
		now, told := l.holds[id], c.holds[id]
		if now.Whole != told.Whole { // what it has of the rest nobody needs to know
			now.ExecutionID = id
			all = append(all, &now)
			c.holds[id] = now
		}
		if now.Segments == 0 && !now.Whole {
			delete(l.holds, id)
			delete(c.holds, id)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.states)) {
		now, told := l.states[name], c.states[name]
		if told.Goal = now.Goal; now == told || atRest(now) == told {
			continue // and what was said stays what the agent goes by
		}
		all = append(all, &hostwire.State{ServiceState: now})
		c.states[name] = now
	}
	return all
}

// atRest is a state but for what the agent knows without being told: of a host that goes on
// with what it runs and for which nothing has gone wrong, it has the goal, and whether all of
// the build is here says if the host is waiting or ready.
func atRest(s hostwire.ServiceState) hostwire.ServiceState {
	if (s.State == goal.Waiting || s.State == goal.Ready) && s.Wants == "" && s.Phase == "" && s.Error == "" {
		s.State = goal.Healthy
	}
	return s
}

// receive takes messages until the stream is over; nil for an orderly end.
func (l *link) receive(c *connected) error {
	for {
		m, err := c.stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = l.take(c, m)
		}
		if err != nil {
			return err
		}
	}
}

// take does what a message of a stream says. Its error ends the stream.
func (l *link) take(c *connected, m hostwire.Message) error {
	h := l.host
	switch m := m.(type) {
	case *hostwire.Welcome:
		if err := h.toldRegion(m.Region); err != nil {
			return err
		}
		l.mu.Lock()
		l.agents = m.Agents
		l.mu.Unlock()
		h.wake()
	case *hostwire.Neighbours:
		h.fetch.Peers(peersOf(m.Peers, false), peersOf(m.Sources, true))
	case *hostwire.Goal:
		l.shelve(m.Wire)
	case *hostwire.Beat:
		l.shelve(m.Wire)
	case *hostwire.Recipe:
		h.stock.recipe(m)
	case *hostwire.Leave:
		if s := h.services[m.Service]; s != nil {
			s.mayLeave(m, c)
		}
	default:
		return fmt.Errorf("%w: a %T comes from no agent", hostwire.ErrInvalid, m)
	}
	return nil
}

// shelve keeps a goal or beat. One that cannot be believed, or is an old one, changes
// nothing: agents pass on what others have signed.
func (l *link) shelve(wire []byte) {
	added, err := l.host.shelf.Add(wire)
	if newer := new(goal.NewerError); errors.As(err, &newer) {
		l.cannotFollow(newer)
	}
	switch {
	case errors.Is(err, goal.ErrOld):
		l.host.cfg.Logger.Debug("agent has an older goal than this host", "error", err)
	case err != nil:
		l.host.warn("goal not taken", "error", err)
	case added:
		l.host.wake()
	}
}

// cannotFollow keeps the newest goal of one of the host's services that is a newer version's.
func (l *link) cannotFollow(e *goal.NewerError) {
	s := l.host.services[e.Service]
	if s == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if before := l.newer[e.Service]; before == nil || before.Version < e.Version {
		l.newer[e.Service] = e
		ask(s.wake)
	}
}

// forgetNewer is for other rules of trust: who has signed such goals may not be believed any
// more. An agent sends them again.
func (l *link) forgetNewer() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.newer)
}

// beyond is why the newest goal of a service is not followed, which has a greater version
// than this one; nil where the newest one is.
func (l *link) beyond(service string, version int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.newer[service]; e != nil && e.Version > version {
		return fmt.Errorf("%w: %w", errNewer, e)
	}
	return nil
}

// peersOf are hosts, or agents that hand out, as the fetcher names them.
func peersOf(peers []hostwire.Peer, agents bool) (all []fetch.Peer) {
	for _, p := range peers {
		all = append(all, fetch.Peer{Name: p.Name, ID: p.ID, Agent: agents, Addr: p.Addr})
	}
	return all
}
