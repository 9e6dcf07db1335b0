package gossip

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// How members find each other. memberlist exchanges states with a member that is
// named to it, and with a random one once a minute; who is learnt of by gossip hears
// no document before that minute. Therefore:
//
//   - A seeder meets, that is exchanges states with, every member that appears.
//   - A member that has just started makes its view whole by an exchange with somebody
//     once it has changed and then rested.
//   - Who was a member before a restart is met at the start.
//   - Who is named by --join is met until a living member is at that address.
//   - Every member greets the seeders, and who is at the addresses of --join, all the
//     time. One that does not know who greets, since it has started again at the
//     address of its predecessor, meets him.

const (
	// joinInterval is the time between tries to reach who is missing, after some
	// quicker ones.
	joinInterval, firstJoinInterval = 5 * time.Second, 500 * time.Millisecond
	// lookupTimeout bounds the lookup of a name of --join.
	lookupTimeout = 2 * time.Second
	// helloInterval is the time between greetings: 512 agents are 256 packets a
	// second at a seeder.
	helloInterval = 2 * time.Second
	// youngFor is how long after its start a member whose view has changed makes it
	// whole by an exchange with somebody: of many that start together, gossip alone
	// leaves some unknown to each other until the periodic exchange.
	youngFor = 30 * time.Second
	// maxHello bounds a greeting in bytes: a name and an address.
	maxHello = 512
	// hellosAnswered bounds the strangers that are met because they greet, a second
	// and at once.
	hellosAnswered, hellosAtOnce = 64, 2 * maxMembers
	// maxMeetings bounds the members that wait to be met, parallelMeetings those
	// that are met at a time. One that does not answer takes sendTimeout.
	maxMeetings, parallelMeetings = 2 * maxMembers, 64
	// metFor is how long an address that has answered is not tried again, though no
	// living member is known by it: one that advertises another address.
	metFor = time.Minute
	// lingers is how long who has left may still answer: twice what a good-bye takes.
	// An answer from before its end, or from before somebody left, may be the leaver's,
	// whose successor at the same address is to be found as soon as it is there.
	lingers = 2 * leaveTimeout
	// quickRounds is how many rounds of tries, some 30 s, remembered members are
	// given; after that a few of them, rememberedTries, once in rememberedInterval.
	quickRounds        = 8
	rememberedTries    = 16
	rememberedInterval = time.Minute
)

// meetings are the exchanges of states that were asked for.
type meetings struct {
	mu      sync.Mutex
	closed  bool
	pending map[string]*meeting // by address
	met     map[string]time.Time
	left    time.Time // when somebody left last
	slots   chan struct{}
	hellos  *rate.Limiter
	wg      sync.WaitGroup
}

// meeting is one that is under way or waits. What is announced once it has begun may be no
// part of it, and go to nobody who becomes a member by it: again is set when such a one asks
// for a meeting.
type meeting struct {
	begun, again bool
	said         int64 // what this member had announced when it began
}

func newMeetings() *meetings {
	return &meetings{
		pending: make(map[string]*meeting),
		met:     make(map[string]time.Time),
		slots:   make(chan struct{}, parallelMeetings),
		hellos:  rate.NewLimiter(hellosAnswered, hellosAtOnce),
	}
}

// meet exchanges states with the member at an address, as host:port with the number
// of both, in the background, and then calls tried, which may be nil. Where that is
// under way or waits already, and where too many wait, it does nothing, but that one which
// lacks what was announced since it began is followed by another.
func (g *Gossip) meet(addr string, tried func(error)) {
	m := g.meetings
	m.mu.Lock()
	defer m.mu.Unlock()
	if under := m.pending[addr]; under != nil {
		under.again = under.again || under.begun && g.announced.Load() != under.said
		return
	}
	if m.closed || len(m.pending) >= maxMeetings {
		return
	}
	one := &meeting{}
	m.pending[addr] = one
	m.wg.Go(func() {
		for again := true; again; again = m.over(addr) {
			g.meetOnce(addr, one, tried)
		}
	})
}

func (g *Gossip) meetOnce(addr string, one *meeting, tried func(error)) {
	m := g.meetings
	select {
	case <-g.listed:
	case <-g.ctx.Done():
		return
	}
	select {
	case m.slots <- struct{}{}:
		defer func() { <-m.slots }()
	case <-g.ctx.Done():
		return
	}
	m.mu.Lock()
	one.begun, one.again, one.said = true, false, g.announced.Load()
	m.mu.Unlock()
	err := g.exchange(addr)
	if err != nil && g.ctx.Err() == nil {
		g.cfg.Logger.Debug("member not reached", "addr", addr, "error", err)
	}
	if tried != nil && g.ctx.Err() == nil {
		tried(err)
	}
}

// over ends a meeting, unless it is to be held again.
func (m *meetings) over(addr string) (again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if one := m.pending[addr]; one.again && !m.closed {
		return true
	}
	delete(m.pending, addr)
	return false
}

// exchange is memberlist's push/pull with one address.
func (g *Gossip) exchange(addr string) error {
	if _, err := g.list.Join([]string{addr}); err != nil {
		return err
	}
	m := g.meetings
	m.mu.Lock()
	defer m.mu.Unlock()
	for a, at := range m.met {
		if time.Since(at) > metFor {
			delete(m.met, a)
		}
	}
	m.met[addr] = time.Now()
	return nil
}

func (m *meetings) metLately(addr string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, ok := m.met[addr]
	return ok && time.Since(at) < metFor && at.After(m.left.Add(lingers))
}

// somebodyLeft has addresses tried again that have answered before.
func (m *meetings) somebodyLeft() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left = time.Now()
}

// close gives what is under way leaveTimeout, since a good-bye reaches those alone
// whom one knows, and then cancels and waits for it.
func (m *meetings) close(cancel func()) {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	timer := time.AfterFunc(leaveTimeout, cancel)
	defer timer.Stop()
	m.wg.Wait()
	cancel()
}

// join reaches for the members named by --join and for those remembered, at once
// and then again while any of them is missing: two halves of a cluster that started
// apart, or that a long partition made forget each other, must find together.
func (g *Gossip) join(ctx context.Context) {
	wait := firstJoinInterval
	var tried time.Time // when remembered ones were, after the quick rounds
	for round := 0; ; round++ {
		g.reachOut(ctx)
		remembered := g.absent(g.remembered.addresses())
		switch {
		case round < quickRounds:
		case time.Since(tried) < rememberedInterval:
			remembered = nil
		default:
			tried = time.Now()
			rand.Shuffle(len(remembered), func(i, j int) { remembered[i], remembered[j] = remembered[j], remembered[i] })
			remembered = remembered[:min(len(remembered), rememberedTries)]
		}
		for _, addr := range remembered {
			g.meet(addr, nil)
		}
		select {
		case <-ctx.Done():
			return
		case <-g.lost:
			wait = firstJoinInterval
		case <-time.After(wait):
			wait = min(2*wait, joinInterval)
		}
	}
}

// absent returns the addresses at which no living member is known.
func (g *Gossip) absent(addrs []string) []string {
	known := g.roster.addresses()
	var out []string
	for _, addr := range addrs {
		if !known[addr] && !g.meetings.metLately(addr) {
			out = append(out, addr)
		}
	}
	return out
}

// resolve returns host:port with the number of both, for every address that the
// host has.
func (n network) resolve(ctx context.Context, addr string) ([]string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []string{net.JoinHostPort(ip.Unmap().String(), port)}, nil
	}
	ips, err := n.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	out := make([]string, 0, len(ips))
	for _, ip := range ips {
		out = append(out, net.JoinHostPort(ip.Unmap().String(), port))
	}
	return out, nil
}

// hello is a greeting.
type hello struct {
	Name string `json:"n"`
	Addr string `json:"a"` // of the gossip, as host:port
}

// greet sends greetings, and asks superseded members whether they are alive.
func (g *Gossip) greet(ctx context.Context) {
	body, err := json.Marshal(hello{g.name, g.Addr()})
	if err != nil || len(body) >= maxHello {
		g.cfg.Logger.Warn("greeting not sent", "error", err, "bytes", len(body))
		return
	}
	message := append([]byte{kindHello}, body...)
	ticker := time.NewTicker(helloInterval)
	defer ticker.Stop()
	began := time.Now()
	var seen, whole int64 // epochs
	for {
		if now := g.epoch.Load(); now == seen && now != whole && time.Since(began) < youngFor {
			if others := g.others(); len(others) > 0 {
				g.meet(others[rand.N(len(others))].Address(), nil)
			}
			whole = now
		} else {
			seen = now
		}
		g.greetOnce(message)
		g.askSuperseded()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (g *Gossip) greetOnce(message []byte) {
	to := make(map[string]bool)
	known := g.roster.addresses()
	for _, addr := range *g.named.Load() {
		to[addr] = known[addr] // else it is tried over TCP, which says why it fails
	}
	now := g.roster.now()
	for i, m := range now.members {
		if m.Role == Seeder && m.Name != g.name {
			to[now.nodes[i].Address()] = true
		}
	}
	delete(to, g.Addr())
	for addr, wanted := range to {
		if !wanted {
			continue
		}
		if err := g.sendPacket(addr, message); err != nil {
			g.cfg.Logger.Debug("greeting not sent", "addr", addr, "error", err)
		}
	}
}

// readGreeting reads who greets, and from where.
func readGreeting(body []byte) (name string, addr netip.AddrPort, err error) {
	if len(body) >= maxHello {
		return "", addr, fmt.Errorf("greeting of %d bytes, at most %d", len(body), maxHello)
	}
	var h hello
	if err := json.Unmarshal(body, &h); err != nil {
		return "", addr, fmt.Errorf("greeting: %w", err)
	}
	if addr, err = netip.ParseAddrPort(h.Addr); err != nil {
		return "", addr, fmt.Errorf("greeting: %w", err)
	}
	return h.Name, addr, nil
}

// greeted meets a stranger that greets.
func (g *Gossip) greeted(body []byte) error {
	name, addr, err := readGreeting(body)
	if err != nil {
		return err
	}
	if name != g.name && !g.roster.alive(name) && g.meetings.hellos.Allow() {
		g.meet(addr.String(), nil)
	}
	return nil
}

// askSuperseded asks who was superseded whether he is alive: then two processes
// have one name, and both are members.
func (g *Gossip) askSuperseded() {
	for i, n := range g.roster.now().superseded {
		if i == rememberedTries {
			return
		}
		addr := udpAddr(&n)
		go func() { // until ProbeTimeout, which nothing shortens; nobody waits for it
			if _, err := g.list.Ping(n.Name, addr); err != nil || !g.roster.twin(n.Name) {
				return
			}
			g.changes()
			g.warn("two members have one name, give each its own by --name or --data-dir", "member", n.Name, "addr", addr.String())
		}()
	}
}
