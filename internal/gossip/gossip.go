// Package gossip is the membership of the cluster: who is there, in which role,
// where its peers connect, and how documents and progress get from one member
// to the others. It wraps memberlist and knows nothing of builds.
//
// Announcements can be larger than a gossip packet, so they go to each member
// over memberlist's reliable messages; push/pull brings them to whoever missed
// them. One that fits goes as a packet as well, which is there a round trip
// earlier. The revisions by which one grows go as packets alone, until the last. Progress goes to the seeders alone, in packets.
// What the fleet of hosts is to run, and does, is in messages of its own (fleet.go).
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/seldom"
)

// Role is what a member does.
type Role string

// The two roles.
const (
	Seeder Role = "seeder"
	Agent  Role = "agent"
)

const (
	// maxName bounds id and region, which share memberlist's 512 bytes of meta
	// with a bucket's 63.
	maxName = 64
	// maxTable bounds a table's region, account and name.
	maxTable = 128
	// sendTimeout bounds a reliable message to one member.
	sendTimeout = 10 * time.Second
	// maxPacket is the longest message that is sent as a packet, in bytes: with
	// memberlist's encryption and the headers it stays below an Ethernet frame.
	maxPacket = 1300
	// leaveTimeout bounds saying good-bye. When nobody hears it, as when all
	// leave at once, the others find out by themselves.
	leaveTimeout = time.Second
)

// Meta is what a member tells of itself; JSON of at most 512 bytes.
type Meta struct {
	ID       string `json:"id"` // the same after a restart
	Role     Role   `json:"role"`
	Region   string `json:"region,omitempty"`
	Bucket   string `json:"bucket,omitempty"`
	PeerPort uint16 `json:"peer"`
	HTTPPort uint16 `json:"http"`
	// Key names the key that a seeder signs with, Trusts those that an agent
	// trusts, as announce.KeyID has them; empty where a member does not say.
	Key    string   `json:"key,omitempty"`
	Trusts []string `json:"trusts,omitempty"`
	// Table is where a member records arrivals, as ledger.Place has it; empty where
	// it does not say. At most maxTable bytes.
	Table string `json:"table,omitempty"`
	// ArrivalsTable is the table of arrivals that an agent records in, or a seeder reads, as
	// arrivals.Table has it; empty where it does not say. At most maxTable bytes.
	ArrivalsTable string `json:"rows,omitempty"`
	// Arrivals: a seeder reads what agents record in the table of arrivals.
	Arrivals bool `json:"arrivals,omitempty"`
	// Wire is the announce.Version that a member understands, which New sets; 0 where it
	// does not say.
	Wire int `json:"wire,omitempty"`
	// Fleet is where an agent has streams with hosts, FleetPeers where it hands builds out to
	// them; 0 for an agent that serves no hosts.
	Fleet      uint16 `json:"fleet,omitempty"`
	FleetPeers uint16 `json:"fsrc,omitempty"`
	// Cert is the fingerprint of the member's certificate, Hello a digest of what it
	// says of itself over TLS; empty where it speaks none. New sets them.
	Cert  string `json:"cert,omitempty"`
	Hello string `json:"hello,omitempty"`
}

// Age says how a member's version is to be called that understands other documents than
// this process: "older" or "newer"; empty for one that understands the same.
func (m Meta) Age() string {
	switch {
	case m.Wire < announce.Version:
		return "older"
	case m.Wire > announce.Version:
		return "newer"
	}
	return ""
}

// Member is one process in the cluster.
type Member struct {
	Meta
	// Name is unique to one start of the process: the id and a ULID.
	Name string
	// Addr is where the others reach it.
	Addr netip.Addr
	// State is alive: who has left or is dead is no member any more, and whom
	// memberlist suspects it does not tell.
	State string
}

// PeerAddr is where its swarm listens.
func (m Member) PeerAddr() netip.AddrPort { return netip.AddrPortFrom(m.Addr, m.PeerPort) }

// HasHosts reports whether it serves hosts, in a region that a goal can name.
func (m Member) HasHosts() bool {
	return m.Role == Agent && m.Fleet != 0 && goal.CheckName("region", m.Region) == nil
}

// Config says who this member is and whom it serves.
type Config struct {
	Meta
	// Listen is the host and port to bind, TCP and UDP; port 0 picks one, no port
	// means DefaultPort, no host every address.
	Listen string
	// Advertise is the host, or host and port, that the others are told; empty for
	// the address bound, or for the only one there is when every one is.
	Advertise string
	// Join names members to join through, as host or host:port; more are learned.
	Join []string
	// Remember is a file that keeps who the members are over a restart; empty keeps
	// nobody.
	Remember string
	// Keys encrypt the gossip; the first one is used to send. Nil is allowed
	// on loopback only.
	Keys [][]byte
	// KeyFile is where they were read, and are read again when it changes; empty for
	// those alone.
	KeyFile string
	// Book keeps the documents.
	Book *announce.Book
	// OnDocument is called for each document that is news; from one goroutine.
	OnDocument func(announce.Added)
	// OnContradiction is called for each document that contradicts an announcement which
	// holds, with the reason; nil where nobody asks. From the same goroutine.
	OnContradiction func(*announce.Announcement, error)
	// OnProgress is called for each progress message; nil where nobody asks.
	// From the same goroutine as OnDocument.
	OnProgress func(Progress)
	// OnLinks is the same for where an agent's bytes came from.
	OnLinks func(Links)
	// OnGoal is called for each goal and beat that comes, at an agent, whoever signed it: the
	// error says that it is not believed. OnRosterAsked returns the hashes of the hosts of a
	// service that were seen of late, in order, at most MaxRoster, and OnHostsAsked the answer
	// to a question about hosts; what is beyond its Limit is left out. OnGoal has a goroutine of
	// its own; the others, and the next two, share one.
	OnGoal        func(wire []byte) error
	OnRosterAsked func(service string) []uint32
	OnHostsAsked  func(HostsQuestion) HostsAnswer
	// OnNear is called for each list of hosts that another agent of the region tells, at an
	// agent; the error says what is wrong with it. It shares the others' goroutine.
	OnNear func(from Member, hosts []byte) error
	// OnTally is the same for hosts that switch.
	OnTally func(from Member, tally []byte) error
	// OnCounts and OnRoster are called for what agents say, at a seeder.
	OnCounts func(from Member, counts []goal.Counts)
	OnRoster func(from Member, service string, hashes []uint32)
	// OnMembers is called after the membership changed, from a goroutine of its
	// own; several changes may be told once.
	OnMembers func()
	Logger    *slog.Logger

	// Identity is who this member is by its certificate, TLS where it is used; nil and
	// Off for no TLS. The identity's kind, name and region must be those of Meta.
	Identity *identity.Source
	TLS      identity.Mode
	// Serves are the buckets that regions' agents serve, of a seeder; ServesFile keeps
	// at an agent what a seeder said of that, empty to forget it at the end.
	Serves     call.Serves
	ServesFile string
	// Authority makes the members' certificates, of a seeder that has its key; nil where
	// it is not here. FixedIdentity leaves the own certificate to who else replaces its
	// files; else it is renewed daily.
	Authority     *ca.Dir
	FixedIdentity bool
	// Enrolment gives first certificates, of a seeder with the authority's key; nil for
	// none.
	Enrolment *call.Enrolment

	// wide is set by tests on loopback that want the timing of a wide network.
	wide bool
	// network is set by tests; the zero value means hostNetwork.
	network network
}

// Gossip is this process's membership.
type Gossip struct {
	cfg Config
	// renewalsDone and renewalsFailed are tries to renew the own certificate.
	renewalsDone, renewalsFailed atomic.Int64
	name                         string
	list                         *memberlist.Memberlist
	ports                        *transport
	// listed is closed once list is set: members are heard before New returns.
	listed chan struct{}
	// ctx ends what runs in the background.
	ctx    context.Context
	cancel context.CancelFunc

	roster     *roster
	remembered *remembered
	meetings   *meetings
	announced  atomic.Int64 // how many documents this member has announced
	inbox      *inbox
	outbox     *outbox
	fleet      *fleet
	named      atomic.Pointer[[]string] // the addresses of --join when last looked up
	// changed, toKeep and lost have a value when the membership has changed, and
	// when a member is gone.
	changed, toKeep, lost chan struct{}
	closing               sync.Once

	// epoch counts the changes of membership.
	epoch    atomic.Int64
	news     chan news
	byes     byes
	doubts   doubts
	reach    reach
	refusals refusals
	asks     asks
	keyring  *memberlist.Keyring // nil without keys
	vouching *vouching           // nil without TLS
	told     string              // the address that the others are told
	// every30s bounds the lines about trouble that lasts, or that others can make.
	every30s *seldom.Lines
	trusts   atomic.Pointer[[]string] // set once they have changed since the start
}

// New binds the gossip port. It fails when the port is taken, when the address
// is beyond loopback without keys, and when the meta would be too large.
func New(cfg Config) (*Gossip, error) {
	cfg.Wire = announce.Version
	if cfg.network.lookup == nil {
		cfg.network = hostNetwork
	}
	at, err := cfg.network.placeOf(context.Background(), cfg.Listen, cfg.Advertise)
	if at.wide && len(cfg.Keys) == 0 {
		return nil, fmt.Errorf("gossip address %s is reachable from outside: give --gossip-key FILE (make one with `seeder keygen`), or listen on loopback", cfg.Listen)
	}
	if err != nil {
		return nil, err
	}
	if cfg.Join, err = ParseJoin(cfg.Join); err != nil {
		return nil, err
	}
	for what, name := range map[string]string{"id": cfg.ID, "region": cfg.Region} {
		if len(name) > maxName {
			return nil, fmt.Errorf("%s %q is longer than %d bytes", what, name, maxName)
		}
	}
	if err := cfg.checkIdentity(); err != nil {
		return nil, err
	}
	before, err := remember(cfg.Remember, time.Now())
	if err != nil {
		cfg.Logger.Warn("members from before the start are not known, others are found by --join alone", "error", err)
	}
	name := cfg.ID + "-" + before.start
	g := &Gossip{
		cfg:        cfg,
		name:       name,
		roster:     newRoster(name),
		remembered: before,
		meetings:   newMeetings(),
		inbox:      newInbox(),
		changed:    make(chan struct{}, 1),
		toKeep:     make(chan struct{}, 1),
		lost:       make(chan struct{}, 1),
		listed:     make(chan struct{}),
		news:       make(chan news, maxNews),
		every30s:   seldom.New(sayInterval, maxSaid),
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.outbox = newOutbox(g)
	g.fleet = newFleet(g)
	g.named.Store(new([]string))
	g.roster.prefer(before.addresses()...)
	mc := memberlist.DefaultWANConfig()
	if !at.wide && !cfg.wide {
		mc = memberlist.DefaultLocalConfig()
	}
	mc.Name = g.name
	mc.BindAddr, mc.BindPort = at.bind.Addr().String(), int(at.bind.Port())
	mc.AdvertiseAddr, mc.AdvertisePort = at.advertise.Addr().String(), int(at.advertise.Port())
	mc.TCPTimeout = sendTimeout
	mc.Delegate, mc.Events, mc.Alive = delegate{g}, events{g}, events{g}
	mc.Logger = log.New(newMemberLog(cfg.Logger), "", 0)
	if len(cfg.Keys) > 0 {
		if mc.Keyring, err = memberlist.NewKeyring(cfg.Keys, cfg.Keys[0]); err != nil {
			return nil, fmt.Errorf("gossip key: %w", err)
		}
		g.keyring = mc.Keyring
	}
	g.vouching = newVouching(g)
	g.roster.said = g.vouching.saidOf()
	ports, err := newTransport(g, mc)
	if err != nil {
		g.cancel()
		return nil, errors.Join(fmt.Errorf("listening for gossip on %s: %w; choose another --gossip-listen", cfg.Listen, err), g.vouching.close())
	}
	g.ports, mc.Transport = ports, ports
	mc.BindPort = ports.GetAutoBindPort()
	if mc.AdvertisePort == 0 {
		mc.AdvertisePort = mc.BindPort
	}
	g.told = netip.AddrPortFrom(at.advertise.Addr().Unmap(), uint16(mc.AdvertisePort)).String()
	if g.list, err = memberlist.Create(mc); err != nil {
		g.cancel()
		return nil, errors.Join(fmt.Errorf("gossip on %s: %w", cfg.Listen, err), ports.Shutdown(), g.vouching.close())
	}
	close(g.listed)
	at.say(cfg.Logger, g.Addr())
	return g, nil
}

// Name is this member's, unique to this start.
func (g *Gossip) Name() string { return g.name }

// Addr is the address the others are told, as host:port.
func (g *Gossip) Addr() string { return g.told }

// Run joins the cluster and works until ctx ends; then it leaves politely. It
// keeps trying to reach who is missing.
func (g *Gossip) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, f := range []func(context.Context){g.work, g.workGoals, g.workFleet, g.tellMembers, g.logNews, g.join, g.greet, g.keepMembers, g.vouch, g.watchIdentity, g.renew, g.watchKeys} {
		wg.Go(func() { f(ctx) })
	}
	<-ctx.Done()
	wg.Wait()
	return g.Close()
}

// Close leaves the cluster and frees the port. Run does it by itself.
func (g *Gossip) Close() error {
	var err error
	g.closing.Do(func() {
		g.meetings.close(g.cancel)
		g.outbox.close()
		g.fleet.close()
		g.sayBye()
		if err := g.list.Leave(leaveTimeout); err != nil {
			g.cfg.Logger.Debug("left without a good-bye", "error", err)
		}
		err = errors.Join(g.list.Shutdown(), g.vouching.close())
	})
	if err != nil {
		return fmt.Errorf("leaving the cluster: %w", err)
	}
	return nil
}

// Broadcast puts a signed document into the own book and sends it to every
// member: as a packet if it fits, and over TCP. A revision that is not the last goes as
// an increment instead, if that fits. It waits for nobody: whoever is not
// reached gets it by an exchange of states. tried is called once all were tried,
// from another goroutine; nil where nobody asks.
func (g *Gossip) Broadcast(wire []byte, tried func()) error {
	added, err := g.cfg.Book.Add(wire)
	if err != nil {
		return fmt.Errorf("announcing: %w", err)
	}
	g.announced.Add(1) // before it is looked who is a member
	message, others := append([]byte{kindDocument}, wire...), g.others()
	packet, small := message, len(message) <= maxPacket
	if added.Before != nil {
		packet, small = packRevision(added)
	}
	if small {
		for _, n := range others {
			if err := g.list.SendBestEffort(&n, packet); err != nil {
				g.cfg.Logger.Debug("packet not sent", "member", n.Name, "error", err)
			}
		}
	}
	if small && added.Before != nil && !added.Announcement.Sealed() { // who lacks it asks
		others = nil
	}
	var left atomic.Int64
	left.Store(int64(len(others)) + 1)
	one := func() {
		if left.Add(-1) == 0 && tried != nil {
			tried()
		}
	}
	for _, n := range others {
		g.outbox.send(n, message, one)
	}
	one()
	return nil
}

// Report sends progress to every seeder, best effort.
func (g *Gossip) Report(p Progress) { g.tellSeeders(p) }

// ReportLinks sends to every seeder where bytes came from, best effort.
func (g *Gossip) ReportLinks(l Links) { g.tellSeeders(l) }

func (g *Gossip) tellSeeders(m message) {
	message, err := m.encode()
	if err != nil {
		g.cfg.Logger.Warn("progress not sent", "error", err)
		return
	}
	now := g.roster.now()
	for i, m := range now.members {
		if m.Role != Seeder {
			continue
		}
		if g.vouching != nil && m.Cert != "" {
			g.vouching.queues.send(now.nodes[i].Address(), message)
			continue
		}
		if err := g.list.SendBestEffort(&now.nodes[i], message); err != nil {
			g.cfg.Logger.Debug("progress not sent", "member", m.Name, "error", err)
		}
	}
}

// sendPacket sends a message to an address, of which no member need be known.
func (g *Gossip) sendPacket(addr string, message []byte) error {
	return g.list.SendToAddress(memberlist.Address{Addr: addr}, message)
}

func (g *Gossip) tellMembers(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.changed:
			g.fleet.goals.sync()
			g.fleet.counts.sync()
			g.fleet.near.sync()
			if g.cfg.OnMembers != nil {
				g.cfg.OnMembers()
			}
		}
	}
}

// changes notes that the membership has changed, for who looks at it.
func (g *Gossip) changes() {
	g.epoch.Add(1)
	wake(g.changed)
	wake(g.toKeep)
}

// warn logs a message that others can cause, once in a while.
func (g *Gossip) warn(message string, attrs ...any) {
	if omitted, due := g.every30s.Pass(message); due {
		g.cfg.Logger.Warn(message, append(attrs, "omitted", omitted)...)
	}
}

// wake tells whoever waits for c to look again.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // somebody is about to look anyway
	}
}
