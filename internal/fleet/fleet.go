// Package fleet is an agent's side of the hosts: the streams that they hold to it, what it
// knows of each by what the host itself says, goals and beats passed down at once, recipes of
// the builds that goals name, leave to switch so that not too many do at a time, who trades
// with whom, those of the region's other agents among them (near.go), and what seeders are
// told of all of them.
//
// One goroutine owns it (machine.go); streams tell it what they hear and have an outbox for
// what is to be said. It decides nothing about pieces, and what hosts run is the goals' to
// say: it believes a host nothing but how its own services stand.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/seldom"
	"github.com/landfall-dist/landfall/internal/survive"
)

const (
	// DefaultMaxHosts bounds the hosts of one agent: 5,000 when a third of a region's agents
	// is away, and as many again.
	DefaultMaxHosts = 10_000
	// tick is how often neighbours, recipes and counts that have changed are told.
	tick = time.Second
	// countSoon is how long after something has changed in the region's count that is told,
	// and leaseTimeout bounds a try to write its lease.
	countSoon    = 100 * time.Millisecond
	leaseTimeout = 3 * time.Second
	// maxEvents bounds the events that wait: who brings more waits itself.
	maxEvents = 1024
	// sayInterval and maxSaid bound lines of the log about the same.
	sayInterval, maxSaid = time.Minute, 256
)

// Config says whose hosts are served, and with what.
type Config struct {
	// Listener is where hosts connect; Run closes it.
	Listener net.Listener
	// Identity is this agent's; nil without TLS.
	Identity *identity.Source
	Region   string
	// Shelf has the goals and the beat.
	Shelf *goal.Shelf
	// Agents says at which URLs the region's agents have streams with hosts, this one among
	// them, where they hand builds out, and what the others are called as members. It is asked
	// once a second, as Recipe is for what is known of each build that a goal names: both must
	// be short.
	Agents func() (urls []string, sources []hostwire.Peer, others []string)
	// Near has the region's other agents get the newest of each of the Buckets lists of this
	// one's hosts, of at most MaxBucket bytes, by HearNear; it must not wait. Nil for nobody.
	Near   func(list int, hosts []byte)
	Recipe func(executionID string) (hostwire.Recipe, bool)
	// Lease is the right to count the region's hosts that switch; nil for none: then this
	// agent counts its own hosts alone. Name is this agent's as a member then, and Tally has
	// the region's other agents get the newest of each service, of at most MaxTally bytes, by
	// HearTally; it must not wait.
	Lease Lease
	Name  func() string
	Tally func(service string, tally []byte)
	// PeerID is the peer id of a name in the swarm, for Host; nil where nobody asks.
	PeerID func(name string) [20]byte
	// Renew is hostwire.ServeConfig's.
	Renew func(from identity.Peer, request []byte) ([]byte, error)
	// Report gets what seeders are to be told; it must not wait.
	Report func([]goal.Counts)
	// MaxHosts defaults to DefaultMaxHosts.
	MaxHosts int
	Logger   *slog.Logger

	// clock is set by tests; nil for time.Now.
	clock func() time.Time
}

// Lease is the right to count a region's hosts that switch, as arrivals.Lease has it. It is
// used by one goroutine.
type Lease interface {
	Hold(ctx context.Context, hosts int64) (arrivals.Held, error)
	Release(ctx context.Context) error
	Forget()
}

// Fleet is the hosts of one agent.
type Fleet struct {
	cfg    Config
	began  time.Time
	events chan func(*machine)
	lines  *seldom.Lines
	seen   atomic.Pointer[View]
	// passed counts what passes over streams.
	passed          hostwire.Counters
	slowed, refused atomic.Int64
	// names are the hosts by peer id.
	names struct {
		mu sync.Mutex
		of map[[20]byte]string
	}
	// owned ends when the machine of now has: with the process, or by a fault.
	owned atomic.Pointer[context.Context]
}

// View is what others may know of the fleet, as it was within the last second.
type View struct {
	// Hosts are all that are counted, Connected those that have a stream.
	Hosts, Connected int
	Services         []goal.Counts
	// Leaves are hosts that have leave to switch, or do.
	Leaves int
	// Waits says, of services whose hosts have waited for leave to switch for waitsLong, why.
	Waits map[string]string
	stats stats
}

// New returns a fleet without hosts, to be Run.
func New(cfg Config) *Fleet {
	if cfg.MaxHosts <= 0 {
		cfg.MaxHosts = DefaultMaxHosts
	}
	if cfg.clock == nil {
		cfg.clock = time.Now
	}
	f := &Fleet{cfg: cfg, began: cfg.clock(), events: make(chan func(*machine), maxEvents), lines: seldom.New(sayInterval, maxSaid)}
	f.seen.Store(&View{})
	return f
}

// Run serves hosts until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	f.owned.Store(&ctx)
	group.Go(func() error {
		return hostwire.Serve(ctx, hostwire.ServeConfig{
			Listener: f.cfg.Listener, Identity: f.cfg.Identity, MaxStreams: f.cfg.MaxHosts,
			Handle: f.stream, Renew: f.cfg.Renew, Refused: f.refuse, Slowed: f.slow, Counters: &f.passed, Logger: f.cfg.Logger,
		})
	})
	group.Go(func() error {
		for {
			// After a fault all streams end with the machine: hosts open others, and say in their
			// hellos what the next one has to know.
			owned, cancel := context.WithCancel(ctx)
			f.owned.Store(&owned)
			err := survive.Run(f.cfg.Logger, func() error { f.own(ctx); return nil })
			cancel()
			if err == nil || !retry.Wait(ctx, tick) {
				return nil
			}
		}
	})
	return group.Wait()
}

// own is the goroutine of the machine.
func (f *Fleet) own(ctx context.Context) {
	m := newMachine(f.cfg.Region, f.cfg.MaxHosts, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), f.warn)
	m.now = f.cfg.clock()
	if f.cfg.PeerID != nil {
		f.names.mu.Lock()
		f.names.of = make(map[[20]byte]string)
		f.names.mu.Unlock()
		m.named = f.named
	}
	for _, g := range f.cfg.Shelf.Goals() {
		m.follow(g, f.cfg.Shelf.Wire(g.Service))
	}
	if wire := f.cfg.Shelf.Wire(""); wire != nil {
		m.beats(wire)
	}
	for _, name := range []string{goal.Recalls, goal.RecallBeats} {
		if wire := f.cfg.Shelf.Wire(name); wire != nil {
			m.recall(name, wire)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	errands := make(chan errand, 1)
	if f.cfg.Lease != nil {
		m.counter = newCounter(f.cfg.Name(), f.began)
		beside.Go(func() { f.doErrands(ctx, m, errands) })
	}
	f.refresh(m)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var soon <-chan time.Time
	reported, failures := time.Time{}, int64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-f.events:
			m.now = f.cfg.clock()
			e(m)
			if m.countDue && m.counter != nil && soon == nil {
				soon = time.After(countSoon)
			}
			// Failures at once, but for those that come within a second of others.
			if m.stats.failures == failures || m.now.Sub(reported) < tick {
				continue
			}
		case <-soon:
			m.now, soon = f.cfg.clock(), nil
			f.recount(m, errands)
			continue
		case <-ticker.C:
			m.now = f.cfg.clock()
			f.refresh(m)
			m.tick()
			f.recount(m, errands)
		}
		failures = m.stats.failures
		if counts := m.report(); len(counts) > 0 {
			reported = m.now
			f.cfg.Report(counts)
		}
		f.seen.Store(m.view())
	}
}

// refresh asks for what others know.
func (f *Fleet) refresh(m *machine) {
	urls, sources, others := f.cfg.Agents()
	m.agents(urls, sources)
	if m.counter != nil {
		m.counter.knows(others, m.now)
	}
	m.forgetNear(others)
	m.cook(f.cfg.Recipe)
	if f.cfg.Near != nil {
		for list, text := range m.nearLists() {
			f.cfg.Near(list, text)
		}
	}
}

// recount takes part in the region's count of hosts that switch.
func (f *Fleet) recount(m *machine, errands chan<- errand) {
	letters, do := m.recount()
	for _, l := range letters {
		f.cfg.Tally(l.service, l.text)
	}
	if do != nil {
		errands <- *do // there is one at a time, and room for it
	}
}

// doErrands does with the lease what the machine wants, until ctx ends.
func (f *Fleet) doErrands(ctx context.Context, m *machine, errands <-chan errand) {
	lease := f.cfg.Lease
	lease.Forget() // it was another machine's
	for {
		var e errand
		select {
		case <-ctx.Done():
			return
		case e = <-errands:
		}
		bounded, cancel := context.WithTimeout(ctx, leaseTimeout)
		var held arrivals.Held
		var err error
		if e.release {
			err = lease.Release(bounded)
		} else {
			held, err = lease.Hold(bounded, e.hosts)
		}
		cancel()
		f.tell(ctx, func(now *machine) {
			if now == m { // not one after a fault
				m.counter.leased(held, err, m.now)
				m.countDue = true
			}
		})
	}
}

// tell has the machine do something. It waits while too much is to be done, and reports
// false when ctx has ended.
func (f *Fleet) tell(ctx context.Context, e func(*machine)) bool {
	select {
	case f.events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// ask is tell, and waits until it is done.
func (f *Fleet) ask(ctx context.Context, e func(*machine)) bool {
	done := make(chan struct{})
	if !f.tell(ctx, func(m *machine) { e(m); close(done) }) {
		return false
	}
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// Follow takes what was added to the shelf for a service, the beat where service is empty, the
// recalls where it is goal.Recalls or their beat where it is goal.RecallBeats, and passes it
// down; what is there no more is passed down no more.
func (f *Fleet) Follow(ctx context.Context, service string) {
	f.tell(ctx, func(m *machine) {
		if service == "" {
			m.beats(f.cfg.Shelf.Wire(""))
			return
		}
		if service == goal.Recalls || service == goal.RecallBeats {
			m.recall(service, f.cfg.Shelf.Wire(service))
			return
		}
		// A later one may be added between these two: then it is passed down twice.
		if g := f.cfg.Shelf.Goal(service); g != nil {
			m.follow(g, f.cfg.Shelf.Wire(service))
			m.cook(f.cfg.Recipe)
		} else {
			m.unfollow(service)
		}
	})
}

// HearNear takes what another agent of the region, by its name as a member, says of its
// hosts.
func (f *Fleet) HearNear(ctx context.Context, agent string, hosts []byte) error {
	b, err := decodeBucket(hosts)
	if err == nil {
		f.tell(ctx, func(m *machine) { m.hearsNear(agent, b) })
	}
	return err
}

// HearTally takes what another agent of the region, by its name as a member, says of its
// hosts that switch.
func (f *Fleet) HearTally(ctx context.Context, agent string, text []byte) error {
	t, err := decodeTally(text)
	if err == nil {
		f.tell(ctx, func(m *machine) {
			if m.counter != nil {
				m.counter.hears(agent, t)
				m.countDue = true
			}
		})
	}
	return err
}

// Roster is the hashes of a service's hosts that were seen within the last minute, in order.
func (f *Fleet) Roster(ctx context.Context, service string) (hashes []uint32) {
	f.ask(ctx, func(m *machine) { hashes = m.roster(service) })
	return hashes
}

// Hosts are a service's hosts in a state, all for the empty one, whose names come after one in
// their order, and not more than most; all is how many there are in that state, rest how many
// come after the last.
func (f *Fleet) Hosts(ctx context.Context, service, state, after string, most int) (all, rest int, hosts []api.HostView) {
	f.ask(ctx, func(m *machine) { all, rest, hosts = m.list(service, state, after, most) })
	return all, rest, hosts
}

func (f *Fleet) named(host, start string, here bool) {
	id := f.cfg.PeerID(hostwire.NameOf(host, start))
	f.names.mu.Lock()
	defer f.names.mu.Unlock()
	if here {
		f.names.of[id] = host
	} else {
		delete(f.names.of, id)
	}
}

// Host is the name of the host with a peer id, of those that have a stream here or had one
// of late. It does not wait.
func (f *Fleet) Host(peerID [20]byte) (name string, ok bool) {
	f.names.mu.Lock()
	defer f.names.mu.Unlock()
	name, ok = f.names.of[peerID]
	return name, ok
}

// Recheck ends the streams of hosts whose certificates are not believed any more.
func (f *Fleet) Recheck(ctx context.Context) {
	var links []*streamLink
	f.ask(ctx, func(m *machine) {
		for _, h := range m.hosts {
			if l, ok := h.link.(*streamLink); ok {
				links = append(links, l)
			}
		}
	})
	for _, l := range links {
		if _, err := f.cfg.Identity.Verify(l.stream.Peer.Chain); err != nil {
			l.close(fmt.Errorf("the host's certificate is not believed any more: %w", err))
		}
	}
}

// View is what is known of the fleet.
func (f *Fleet) View() *View { return f.seen.Load() }

// warn says what is wrong with a host or a service, each of them seldom.
func (f *Fleet) warn(message string, args ...any) {
	name := message
	for i := 1; i < len(args); i += 2 {
		if s, ok := args[i].(string); ok && (args[i-1] == "host" || args[i-1] == "service") {
			name += " " + s
		}
	}
	if omitted, due := f.lines.Pass(name); due {
		f.cfg.Logger.Warn(message, append(args, "omitted", omitted)...)
	}
}

func (f *Fleet) refuse(from netip.AddrPort, err error) {
	f.refused.Add(1)
	if omitted, due := f.lines.Pass("refused " + from.Addr().String()); due {
		f.cfg.Logger.Warn("host refused", "from", from.String(), "error", err, "omitted", omitted)
	}
}

func (f *Fleet) slow(host string) {
	f.slowed.Add(1)
	f.warn("host sends more than it may, it is read slowly", "host", host)
}

// streamLink is the stream of a host.
type streamLink struct {
	outbox
	stream *hostwire.Stream
}

// stream has a host's stream until its end.
func (f *Fleet) stream(_ context.Context, s *hostwire.Stream, hello *hostwire.Hello) {
	l := &streamLink{outbox{stream: s}, s}
	name, from := hello.Host, s.Remote.Addr()
	owned := *f.owned.Load()
	defer context.AfterFunc(owned, func() { l.close(errFault) })()
	var h *host
	if !f.ask(owned, func(m *machine) {
		m.join(hello, from, l)
		h = m.hosts[name]
	}) || h == nil {
		l.end(errFull)
		return
	}
	hello = nil // it is long, and the stream lives long
	why := f.receive(owned, s, h, l)
	l.end(why)
	inOrder := errors.Is(why, io.EOF)
	if !inOrder && owned.Err() == nil {
		f.cfg.Logger.Debug("host's stream has ended", "host", name, "from", s.Remote.String(), "error", why)
	}
	f.tell(owned, func(m *machine) {
		if m.hosts[name] == h { // not of a machine before this one
			m.ended(h, l, inOrder)
		}
	})
}

var errFault = errors.New("this agent ends, or begins its list of hosts anew")

// receive tells the machine what the host says, until the stream ends; then it returns why.
func (f *Fleet) receive(owned context.Context, s *hostwire.Stream, h *host, l *streamLink) error {
	for {
		got, err := s.Receive()
		if err != nil {
			if errors.Is(err, hostwire.ErrInvalid) {
				f.warn("host says what is no message, its stream is ended", "host", h.name, "error", err.Error())
			}
			return err
		}
		var e func(*machine)
		switch got := got.(type) {
		case *hostwire.State:
			e = func(m *machine) { m.said(h, &got.ServiceState) }
		case *hostwire.Holds:
			e = func(m *machine) { m.holds(h, got) }
		default:
			return fmt.Errorf("%w: %T is not for a host to say", hostwire.ErrInvalid, got)
		}
		if !f.tell(owned, func(m *machine) {
			if m.hosts[h.name] == h && h.link == link(l) { // it may have another stream by now
				e(m)
			}
		}) {
			return errFault
		}
	}
}
