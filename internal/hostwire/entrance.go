package hostwire

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/admission"
	"github.com/landfall-dist/landfall/internal/identity"
)

// connsOfOne bounds the connections of one host with a certificate: that of its stream, the one
// before that may not be known to be lost, and renewals.
const connsOfOne = 4

var (
	errCrowded  = errors.New("too many connections are open, the oldest of those of which most are goes")
	errTooOften = errors.New("too many of its address have shown no certificate that holds, just now")
)

// entrance bounds the connections at a listener, for all that serve it. Who has shown whose it
// is gives way to nobody but the next one of its own; the others have places of their own, and
// of them the oldest of the network that has most goes. Without certificates it is a stream that
// shows it.
type entrance struct {
	net.Listener
	refused          func(netip.AddrPort, error)
	strangers, hosts admission.Room[*guest]
	failures         *admission.Rates[netip.Addr]

	mu    sync.Mutex
	homes map[netip.Addr]int // the addresses of hosts
}

// newEntrance lets in so many connections beside those that have shown whose they are. Without
// certificates hosts are not told apart.
func newEntrance(l net.Listener, most int, certificates bool, refused func(netip.AddrPort, error)) *entrance {
	e := &entrance{
		Listener: l, refused: refused,
		strangers: admission.Room[*guest]{Most: most},
		hosts:     admission.Room[*guest]{Most: most},
		failures:  admission.NewFailures(),
		homes:     make(map[netip.Addr]int),
	}
	if certificates {
		e.hosts.PerOrigin = connsOfOne
	}
	return e
}

// guest is a connection that was let in.
type guest struct {
	net.Conn
	at   *entrance
	from admission.Origin
	// home is the address that it has made known; of the entrance's mu.
	home  netip.Addr
	heard atomic.Bool // something has come
}

func (e *entrance) Accept() (net.Conn, error) {
	for {
		c, err := e.Listener.Accept()
		if err != nil {
			return nil, err
		}
		at, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		g := &guest{Conn: c, at: e, from: admission.From(at.Addr(), e.isHome(at.Addr()))}
		if !e.failures.Left(g.from.Addr, g.from.Known, time.Now()) {
			e.refused(at, errTooOften)
			c.Close()
			continue
		}
		e.enter(&e.strangers, g, g.from)
		return g, nil
	}
}

func (e *entrance) enter(room *admission.Room[*guest], g *guest, from admission.Origin) {
	out, full := room.Enter(g, from)
	if !full {
		return
	}
	at, _ := netip.ParseAddrPort(out.RemoteAddr().String())
	e.refused(at, errCrowded)
	out.Close()
}

func (e *entrance) isHome(addr netip.Addr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.homes[addr.Unmap()] > 0
}

// showed notes that a connection has shown a certificate, or without those has a stream.
func (g *guest) showed(id identity.ID) {
	at, _ := netip.ParseAddrPort(g.RemoteAddr().String())
	g.at.mu.Lock()
	if !g.home.IsValid() {
		g.home = at.Addr().Unmap()
		g.at.homes[g.home]++
	}
	g.at.mu.Unlock()
	g.at.strangers.Leave(g)
	from := admission.From(at.Addr(), true)
	if id != (identity.ID{}) {
		from = admission.Of(id)
	}
	g.at.enter(&g.at.hosts, g, from)
}

// failed notes that a connection has shown nothing that holds. One that has said nothing has
// cost nothing, and who had to go for another has nothing to answer for.
func (g *guest) failed() {
	if g.heard.Load() && g.at.strangers.Has(g) {
		g.at.failures.Take(g.from.Addr, g.from.Known, time.Now())
	}
}

func (g *guest) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	if n > 0 && !g.heard.Load() {
		g.heard.Store(true)
	}
	return n, err
}

// Close may come more than once: who had to go for another may have shown itself meanwhile.
func (g *guest) Close() error {
	g.at.strangers.Leave(g)
	g.at.hosts.Leave(g)
	g.leaveHome()
	return g.Conn.Close()
}

func (g *guest) leaveHome() {
	g.at.mu.Lock()
	defer g.at.mu.Unlock()
	if !g.home.IsValid() {
		return
	}
	if g.at.homes[g.home]--; g.at.homes[g.home] == 0 {
		delete(g.at.homes, g.home)
	}
	g.home = netip.Addr{}
}
