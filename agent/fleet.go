package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/fleet"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/swarm"
)

// Fleet says how an agent serves its region's hosts; the zero value serves none.
type Fleet struct {
	// Listener is where hosts have their streams, Peers where builds are handed out to them;
	// the agent closes both. Peers may be nil, where hosts get builds from each other alone.
	Listener, Peers net.Listener
	// Goals is the directory that keeps services' goals over a restart; empty for memory
	// alone.
	Goals string
	// Table is where the seeder writes goals; nil where they are heard of from other members
	// alone.
	Table GoalsTable
	// Authority renews hosts' certificates; nil where its key is not here.
	Authority *ca.RegionDir
	// Recipes is the directory that keeps what builds are made of over a restart; empty for
	// memory alone: then they are read from the bucket.
	Recipes string
}

// close closes the listeners that there are.
func (f Fleet) close() (err error) {
	for _, l := range []net.Listener{f.Listener, f.Peers} {
		if l != nil {
			if closeErr := l.Close(); !errors.Is(closeErr, net.ErrClosed) {
				err = errors.Join(err, closeErr)
			}
		}
	}
	return err
}

// hosts is what an agent has to do with hosts.
type hosts struct {
	*fleet.Fleet
	shelf *goal.Shelf
	// recheck asks whether hosts' certificates are still believed.
	recheck chan struct{}
}

// openFleet makes the agent serve hosts: g, of which there is no member yet, gets what that
// needs.
func (a *Agent) openFleet(g *gossip.Config) error {
	cfg := a.cfg
	if cfg.Fleet.Listener == nil {
		return nil
	}
	if err := goal.CheckName("region", cfg.Region); err != nil {
		return fmt.Errorf("serving hosts: %w", err)
	}
	shelf, odd := goal.OpenShelf(cfg.Fleet.Goals, cfg.Trust)
	switch {
	case shelf == nil:
		return odd
	case odd != nil:
		cfg.Logger.Warn("goals from before the start were left out, members send them again", "error", odd)
	}
	own := cfg.Identity
	if cfg.TLS == identity.Off || cfg.TLS == "" {
		own = nil
		if !isLoopback(cfg.Fleet.Listener) {
			cfg.Logger.Warn("hosts are served without TLS: whoever reaches this address can say that it is one", "address", cfg.Fleet.Listener.Addr().String(), "next", "give --tls require")
		}
	}
	a.hosts = &hosts{shelf: shelf, recheck: make(chan struct{}, 1)}
	a.hosts.Fleet = fleet.New(fleet.Config{
		Listener: cfg.Fleet.Listener,
		Identity: own,
		Region:   cfg.Region,
		Shelf:    shelf,
		Agents:   a.fleetAgents,
		Recipe:   func(id string) (hostwire.Recipe, bool) { return a.kept.recipe(id) },
		PeerID:   peerwire.PeerID,
		Renew:    a.renewHost(),
		Near: func(list int, hosts []byte) {
			if err := a.gossip.SendNear(list, hosts); err != nil {
				cfg.Logger.Warn("hosts not told to the region's other agents", "error", err)
			}
		},
		Lease: a.fleetLease(),
		Name:  func() string { return a.gossip.Name() },
		Tally: func(service string, tally []byte) {
			if err := a.gossip.SendTally(service, tally); err != nil {
				cfg.Logger.Warn("hosts that switch not told to the region's other agents", "service", service, "error", err)
			}
		},
		Report: func(counts []goal.Counts) {
			if err := a.gossip.ReportCounts(counts...); err != nil {
				cfg.Logger.Warn("counts of hosts not told to the seeders", "error", err)
			}
		},
		Logger: cfg.Logger,
	})
	if own != nil {
		own.OnChange(func() { ask(a.hosts.recheck) })
	}
	g.Fleet = port(cfg.Fleet.Listener)
	if cfg.Fleet.Peers != nil {
		g.FleetPeers = port(cfg.Fleet.Peers)
	}
	g.OnGoal = a.goal
	g.OnRosterAsked = func(service string) []uint32 { return a.hosts.Roster(a.ctx(), service) }
	g.OnNear = func(from gossip.Member, hosts []byte) error { return a.hosts.HearNear(a.ctx(), from.Name, hosts) }
	g.OnTally = func(from gossip.Member, tally []byte) error {
		return a.hosts.HearTally(a.ctx(), from.Name, tally)
	}
	g.OnHostsAsked = a.hostsAsked
	return nil
}

// hostsAsked is which hosts there are here, of those that a seeder asks for.
func (a *Agent) hostsAsked(q gossip.HostsQuestion) (out gossip.HostsAnswer) {
	after, some := q.In(a.cfg.Region)
	if !some {
		q.Limit = 0
	}
	if out.All, out.Rest, out.Hosts = a.hosts.Hosts(a.ctx(), q.Service, q.State, after, q.Limit); !some {
		out.Rest = 0
	}
	return out
}

// fleetLease is the right to count the region's hosts that switch; nil without a table of
// arrivals.
func (a *Agent) fleetLease() fleet.Lease {
	if a.cfg.Arrivals == nil {
		return nil
	}
	return arrivals.NewLease(a.cfg.Arrivals, a.cfg.Region, a.cfg.Gossip.ID, a.process)
}

// renewHost makes hosts' certificates; nil without their authority's key.
func (a *Agent) renewHost() func(identity.Peer, []byte) ([]byte, error) {
	authority := a.cfg.Fleet.Authority
	if authority == nil {
		return nil
	}
	return func(p identity.Peer, request []byte) ([]byte, error) {
		pem, err := authority.RenewFor(p, request)
		if err != nil {
			a.cfg.Logger.Warn("certificate of a host not renewed", "id", p.ID.String(), "error", err)
			return nil, err
		}
		a.cfg.Logger.Debug("certificate of a host renewed", "id", p.ID.String(), "fingerprint", p.Fingerprint.String())
		return pem, nil
	}
}

// swarmFleet is the swarm's listener for hosts; nil for none.
func (a *Agent) swarmFleet() *swarm.Fleet {
	if a.cfg.Fleet.Peers == nil {
		return nil
	}
	return &swarm.Fleet{Listener: a.cfg.Fleet.Peers, Host: a.hostPeer, Mine: func(id identity.ID) bool {
		return id.Kind == identity.Host && id.Region == a.cfg.Region
	}}
}

// hostPeer is the host with a peer id. Without TLS, where the id is all that there is to
// know, it may also be one that has its stream to another agent of the region.
func (a *Agent) hostPeer(id [20]byte) peerwire.Member {
	name, ok := a.hosts.Host(id)
	switch {
	case ok:
	case a.secure():
		return peerwire.Member{}
	default:
		name = fmt.Sprintf("host-%x", id)
	}
	return peerwire.Member{Name: name, ID: name, Region: a.cfg.Region, Host: true, Certified: a.secure()}
}

func isLoopback(l net.Listener) bool {
	addr, ok := l.Addr().(*net.TCPAddr)
	return ok && addr.IP.IsLoopback()
}

// ctx is the context of Run.
func (a *Agent) ctx() context.Context {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running
}

// runFleet serves hosts until ctx ends.
func (a *Agent) runFleet(ctx context.Context) error {
	a.keepBuilds()
	for _, g := range a.hosts.shelf.Goals() {
		a.passOn(g.Service, a.hosts.shelf.Wire(g.Service))
	}
	for _, name := range []string{"", goal.Recalls, goal.RecallBeats} {
		if wire := a.hosts.shelf.Wire(name); wire != nil {
			a.passOn(name, wire)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	beside.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-a.hosts.recheck:
				a.hosts.Recheck(ctx)
			}
		}
	})
	beside.Go(func() { a.collectGarbage(ctx) })
	if a.cfg.Fleet.Table != nil {
		beside.Go(func() { a.watchHead(ctx) })
	}
	if authority := a.cfg.Fleet.Authority; authority != nil {
		beside.Go(func() { authority.Run(ctx, a.cfg.Logger) })
	}
	a.cfg.Logger.Info("hosts are served", "address", a.cfg.Fleet.Listener.Addr().String(), "goals", len(a.hosts.shelf.Goals()))
	return a.hosts.Run(ctx)
}

// passOn has the region's other agents get a goal, or what else a Shelf has under a name.
func (a *Agent) passOn(service string, wire []byte) {
	if err := a.gossip.SendGoal(service, wire); err != nil {
		a.cfg.Logger.Warn("goal not passed on to the region's other agents", "service", service, "error", err)
	}
}

// goal takes a goal or a beat from another member. The error says that it is not believed.
func (a *Agent) goal(wire []byte) error {
	shelf := a.hosts.shelf
	added, err := shelf.Add(wire)
	switch {
	case errors.Is(err, goal.ErrOld):
		return nil
	case err != nil || !added:
		return err
	}
	doc, err := goal.Open(wire, a.cfg.Trust, time.Now())
	if err != nil {
		return err
	}
	service := ""
	switch d := doc.(type) {
	case *goal.Goal:
		service = d.Service
		a.cfg.Logger.Info("goal of a service", "service", service, "version", d.Version, "key", d.Target.Key, "executionId", d.Target.ExecutionID)
	case *goal.Beat:
		a.wantGoals(d)
	case *goal.Recall:
		service = goal.Recalls
		a.cfg.Logger.Info("list of recalled builds", "version", d.Version, "builds", len(d.SHA256), "by", d.By)
	case *goal.RecallBeat:
		service = goal.RecallBeats
		if shelf.RecallsBehind() {
			a.want(goal.Recalls)
		}
	}
	a.keepBuilds()
	if wire := shelf.Wire(service); wire != nil { // a later one may have come by another way
		a.passOn(service, wire)
	}
	a.hosts.Follow(a.ctx(), service)
	return nil
}

// dropGoals lets go what is signed by nobody who is trusted any more. Who is trusted sends
// again what a beat names.
func (a *Agent) dropGoals() {
	dropped := a.hosts.shelf.Recheck()
	for _, name := range dropped {
		a.cfg.Logger.Warn("goal dropped: its key is not trusted any more", "service", name)
		if a.hosts.shelf.Wire(name) == nil { // nothing else has come meanwhile
			a.gossip.DropGoal(name)
		}
		a.hosts.Follow(a.ctx(), name)
	}
	if len(dropped) > 0 {
		a.keepBuilds()
	}
}

// lacking are the services, in order, whose goals a beat names and are not here.
func (a *Agent) lacking(b *goal.Beat) (lacking []string) {
	for service, version := range b.Versions {
		if g := a.hosts.shelf.Goal(service); g == nil || g.Version < version {
			lacking = append(lacking, service)
		}
	}
	slices.Sort(lacking)
	return lacking
}

// wantGoals asks for goals that a beat names and that are not here.
func (a *Agent) wantGoals(b *goal.Beat) {
	if lacking := a.lacking(b); len(lacking) > 0 {
		a.want(lacking...)
	}
}

// want asks for what is lacking here.
func (a *Agent) want(lacking ...string) {
	if err := a.gossip.WantGoals(lacking...); err != nil {
		a.cfg.Logger.Warn("goals that are lacking here are not asked for", "services", len(lacking), "error", err)
	}
}

// fleetAgents says where the region's agents have streams with hosts, this one first, and
// where they hand builds out; and what the others are called.
func (a *Agent) fleetAgents() (urls []string, sources []hostwire.Peer, others []string) {
	scheme := "http://"
	if a.secure() {
		scheme = "https://"
	}
	add := func(m gossip.Member, addr, peers netip.Addr) {
		if len(urls) < hostwire.MaxAgents {
			urls = append(urls, scheme+netip.AddrPortFrom(addr, m.Fleet).String())
			if m.FleetPeers != 0 {
				sources = append(sources, hostwire.Peer{Name: m.Name, ID: m.ID, Addr: netip.AddrPortFrom(peers, m.FleetPeers)})
			}
		}
	}
	members := a.gossip.Members()
	for _, m := range members {
		if m.Name == a.gossip.Name() {
			add(m, boundTo(a.cfg.Fleet.Listener, m.Addr), boundTo(a.cfg.Fleet.Peers, m.Addr))
		}
	}
	for _, m := range members {
		if m.Name != a.gossip.Name() && m.Role == gossip.Agent && m.Region == a.cfg.Region && m.Fleet != 0 {
			add(m, m.Addr, m.Addr)
			others = append(others, m.Name)
		}
	}
	slices.SortFunc(sources, func(x, y hostwire.Peer) int { return strings.Compare(x.Name, y.Name) })
	return urls, sources, others
}

// boundTo is the one address that a listener is bound to, else the other.
func boundTo(l net.Listener, other netip.Addr) netip.Addr {
	if l != nil {
		if addr, ok := l.Addr().(*net.TCPAddr); ok && !addr.IP.IsUnspecified() {
			return addr.AddrPort().Addr().Unmap()
		}
	}
	return other
}

// secure reports whether TLS is spoken with hosts.
func (a *Agent) secure() bool { return a.cfg.TLS != "" && a.cfg.TLS != identity.Off }

// fleetStatus is what GET /status says of the hosts; nil where none are served.
func (a *Agent) fleetStatus() *api.AgentFleet {
	if a.hosts == nil {
		return nil
	}
	v := a.hosts.View()
	urls, _, _ := a.fleetAgents()
	s := &api.AgentFleet{Hosts: v.Hosts, Connected: v.Connected, Agents: urls, Services: []api.AgentService{}}
	if age, known, behind := a.hosts.shelf.Age(time.Now()); known {
		seconds := age.Seconds()
		s.GoalsAge, s.Behind = &seconds, behind
	}
	for _, c := range v.Services {
		s.Services = append(s.Services, api.AgentService{Service: c.Service, Version: c.Version, Waits: v.Waits[c.Service], Hosts: api.HostCounts{
			Total: c.Hosts, Waiting: c.Waiting, Ready: c.Ready, Switching: c.Switching, Healthy: c.Healthy,
			Failed: c.Failed, Absent: c.Absent, Sick: c.Sick, Target: c.OnTarget, Stable: c.HoldStable,
		}})
	}
	return s
}

// check reports what is wrong with it.
func (f Fleet) check() error {
	if f.Listener == nil && f.Peers != nil {
		return fmt.Errorf("builds are to be handed out to hosts at %s, and hosts have nowhere to connect: give --fleet-listen, too", f.Peers.Addr())
	}
	return nil
}
