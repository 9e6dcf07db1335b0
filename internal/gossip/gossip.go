// Package gossip is the membership of the cluster: who is there, in which role,
// where its peers connect, and how documents and progress get from one member
// to the others. It wraps memberlist and knows nothing of builds.
//
// Announcements can be larger than a gossip packet, so they go to each member
// over memberlist's reliable messages; push/pull brings them to whoever missed
// them. One that fits goes as a packet as well, which is there a round trip
// earlier. Progress goes to the seeders alone, in packets.
package gossip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/announce"
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
	// queueLength is how many received messages may wait to be worked on;
	// memberlist must never be blocked. What is dropped push/pull brings again.
	queueLength = 4096
	// sendTimeout bounds a reliable message to one member.
	sendTimeout = 10 * time.Second
	// maxPacket is the longest message that is sent as a packet, in bytes: with
	// memberlist's encryption and the headers it stays below an Ethernet frame.
	maxPacket = 1300
	// parallelSends bounds the members one document is sent to at a time.
	parallelSends = 32
	// joinInterval is the time between tries to reach the members named by
	// --join while none of them is in the cluster, after a first quick try.
	joinInterval, firstJoinInterval = 5 * time.Second, 500 * time.Millisecond
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

// Config says who this member is and whom it serves.
type Config struct {
	Meta
	// Listen is the host and port to bind, TCP and UDP; port 0 picks one.
	Listen string
	// Advertise is the host, or host and port, that the others are told;
	// empty for the address bound.
	Advertise string
	// Join names members to join through, as host:port; more are learned.
	Join []string
	// Keys encrypt the gossip; the first one is used to send. Nil is allowed
	// on loopback only.
	Keys [][]byte
	// Book keeps the documents.
	Book *announce.Book
	// OnDocument is called for each document that is news; from one goroutine.
	OnDocument func(announce.Added)
	// OnProgress is called for each progress message; nil where nobody asks.
	// From the same goroutine as OnDocument.
	OnProgress func(Progress)
	// OnLinks is the same for where an agent's bytes came from.
	OnLinks func(Links)
	// OnMembers is called after the membership changed, from a goroutine of its
	// own; several changes may be told once.
	OnMembers func()
	Logger    *slog.Logger
}

// Gossip is this process's membership.
type Gossip struct {
	cfg     Config
	name    string
	list    *memberlist.Memberlist
	queue   chan []byte
	changed chan struct{}
	dropped atomic.Int64
	closing sync.Once

	// epoch counts the changes of membership.
	epoch    atomic.Int64
	news     chan news
	byes     byes
	reach    reach
	refusals refusals
	// every30s bounds the lines about trouble that lasts.
	every30s *seldom.Lines
}

// New binds the gossip port. It fails when the port is taken, when the address
// is beyond loopback without keys, and when the meta would be too large.
func New(cfg Config) (*Gossip, error) {
	host, port, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("gossip address %q: %w", cfg.Listen, err)
	}
	portNumber, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("gossip address %q: port: %w", cfg.Listen, err)
	}
	loopback := isLoopback(host)
	if !loopback && len(cfg.Keys) == 0 {
		return nil, fmt.Errorf("gossip address %s is reachable from outside: give --gossip-key FILE (make one with `seeder keygen`), or listen on loopback", cfg.Listen)
	}
	for what, name := range map[string]string{"id": cfg.ID, "region": cfg.Region} {
		if len(name) > maxName {
			return nil, fmt.Errorf("%s %q is longer than %d bytes", what, name, maxName)
		}
	}
	g := &Gossip{
		cfg:     cfg,
		name:    cfg.ID + "-" + ulid.Make().String(),
		queue:   make(chan []byte, queueLength),
		changed: make(chan struct{}, 1),
		news:    make(chan news, maxNews),

		every30s: seldom.New(sayInterval, maxSaid),
	}
	mc := memberlist.DefaultWANConfig()
	if loopback {
		mc = memberlist.DefaultLocalConfig()
	}
	mc.Name = g.name
	mc.BindAddr, mc.BindPort = host, int(portNumber)
	if host == "localhost" {
		mc.BindAddr = "127.0.0.1"
	}
	if err := advertise(mc, cfg.Advertise); err != nil {
		return nil, err
	}
	mc.TCPTimeout = sendTimeout
	mc.Delegate, mc.Events = delegate{g}, events{g}
	mc.LogOutput = newMemberLog(cfg.Logger)
	if len(cfg.Keys) > 0 {
		if mc.Keyring, err = memberlist.NewKeyring(cfg.Keys, cfg.Keys[0]); err != nil {
			return nil, fmt.Errorf("gossip key: %w", err)
		}
	}
	if g.list, err = memberlist.Create(mc); err != nil {
		return nil, fmt.Errorf("listening for gossip on %s: %w", cfg.Listen, err)
	}
	return g, nil
}

func advertise(mc *memberlist.Config, addr string) error {
	if addr == "" {
		mc.AdvertisePort = mc.BindPort
		return nil
	}
	host, port := addr, strconv.Itoa(mc.BindPort)
	if h, p, err := net.SplitHostPort(addr); err == nil {
		host, port = h, p
	}
	ips, err := net.LookupIP(host)
	if err != nil || len(ips) == 0 {
		return fmt.Errorf("advertised address %q: %w", addr, err)
	}
	if mc.AdvertisePort, err = strconv.Atoi(port); err != nil {
		return fmt.Errorf("advertised address %q: port: %w", addr, err)
	}
	mc.AdvertiseAddr = ips[0].String()
	return nil
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// Name is this member's, unique to this start.
func (g *Gossip) Name() string { return g.name }

// Addr is the address the others are told, as host:port.
func (g *Gossip) Addr() string { return g.list.LocalNode().Address() }

// Run joins the cluster and works until ctx ends; then it leaves politely. It
// keeps trying to join as long as it is alone.
func (g *Gossip) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { g.work(ctx) })
	wg.Go(func() { g.tellMembers(ctx) })
	wg.Go(func() { g.logNews(ctx) })
	wg.Go(func() { g.join(ctx) })
	<-ctx.Done()
	wg.Wait()
	return g.Close()
}

// Close leaves the cluster and frees the port. Run does it by itself.
func (g *Gossip) Close() error {
	var err error
	g.closing.Do(func() {
		g.sayBye()
		if err := g.list.Leave(leaveTimeout); err != nil {
			g.cfg.Logger.Debug("left without a good-bye", "error", err)
		}
		err = g.list.Shutdown()
	})
	if err != nil {
		return fmt.Errorf("leaving the cluster: %w", err)
	}
	return nil
}

// join reaches for the members named by --join, at once and then again while
// any of them is missing: two halves of a cluster that started apart, or that a
// long partition made forget each other, must find together.
func (g *Gossip) join(ctx context.Context) {
	wait := firstJoinInterval
	for {
		missing := g.missing()
		g.reach.only(missing)
		g.reachOut(missing)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			wait = min(2*wait, joinInterval)
		}
	}
}

// missing returns the addresses of --join at which no living member is known.
func (g *Gossip) missing() []string {
	known := make(map[string]bool)
	for _, n := range g.list.Members() {
		known[n.Address()] = true
	}
	var out []string
	for _, addr := range g.cfg.Join {
		resolved := addr
		if host, port, err := net.SplitHostPort(addr); err == nil {
			if ips, err := net.LookupIP(host); err == nil && len(ips) > 0 {
				resolved = net.JoinHostPort(ips[0].String(), port)
			}
		}
		if !known[resolved] {
			out = append(out, addr)
		}
	}
	return out
}

// Members returns everyone in the cluster that is not dead, this process
// included, in order of name.
func (g *Gossip) Members() []Member {
	nodes := g.list.Members()
	out := make([]Member, 0, len(nodes))
	for _, n := range nodes {
		if m, ok := member(n); ok {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

const alive = "alive"

func member(n *memberlist.Node) (Member, bool) {
	m := Member{Name: n.Name, State: alive}
	if err := json.Unmarshal(n.Meta, &m.Meta); err != nil {
		return Member{}, false
	}
	addr, ok := netip.AddrFromSlice(n.Addr)
	if !ok || len(m.ID) > maxName || len(m.Region) > maxName {
		return Member{}, false
	}
	if m.Role != Seeder && (m.Role != Agent || announce.CheckBucketName(m.Bucket) != nil) {
		return Member{}, false
	}
	m.Addr = addr.Unmap()
	return m, true
}

// Broadcast puts a signed document into the own book and sends it to every
// member: as a packet if it fits, and over TCP. Whoever is not reached gets it by
// push/pull. It returns when all were tried.
func (g *Gossip) Broadcast(wire []byte) error {
	if _, err := g.cfg.Book.Add(wire); err != nil {
		return fmt.Errorf("announcing: %w", err)
	}
	g.sendAll(wire)
	return nil
}

func (g *Gossip) sendAll(wire []byte) {
	message := append([]byte{kindDocument}, wire...)
	others := slices.DeleteFunc(g.list.Members(), func(n *memberlist.Node) bool { return n.Name == g.name })
	if len(message) <= maxPacket {
		for _, n := range others {
			if err := g.list.SendBestEffort(n, message); err != nil {
				g.cfg.Logger.Debug("packet not sent, the document follows over TCP", "member", n.Name, "error", err)
			}
		}
	}
	slots := make(chan struct{}, parallelSends)
	var wg sync.WaitGroup
	for _, n := range others {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := g.list.SendReliable(n, message); err != nil {
				g.cfg.Logger.Debug("document not delivered, push/pull will bring it", "member", n.Name, "error", err)
			}
		})
	}
	wg.Wait()
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
	for _, n := range g.list.Members() {
		if m, ok := member(n); ok && m.Role == Seeder {
			if err := g.list.SendBestEffort(n, message); err != nil {
				g.cfg.Logger.Debug("progress not sent", "member", n.Name, "error", err)
			}
		}
	}
}

// work handles received messages, one after the other.
func (g *Gossip) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case message := <-g.queue:
			g.handle(message)
		}
	}
}

func (g *Gossip) handle(message []byte) {
	if len(message) == 0 {
		return
	}
	switch body := message[1:]; message[0] {
	case kindDocument:
		g.document(body)
	case kindState:
		announce.EachInState(body, g.document)
	case kindProgress:
		if g.cfg.OnProgress == nil {
			return
		}
		p, err := decodeProgress(body)
		if err != nil {
			g.cfg.Logger.Debug("progress refused", "error", err)
			return
		}
		g.cfg.OnProgress(p)
	case kindLinks:
		if g.cfg.OnLinks == nil {
			return
		}
		l, err := decodeLinks(body)
		if err != nil {
			g.cfg.Logger.Debug("links refused", "error", err)
			return
		}
		g.cfg.OnLinks(l)
	case kindBye:
		g.bye(body)
	}
}

func (g *Gossip) document(wire []byte) {
	added, err := g.cfg.Book.Add(wire)
	switch {
	case errors.Is(err, announce.ErrExpired):
		return
	case err != nil:
		g.refused(err)
		return
	case added.Reply != nil:
		g.sendAll(added.Reply)
		return
	}
	if added.Announcement != nil || added.End != nil {
		g.cfg.OnDocument(added)
	}
}

func (g *Gossip) tellMembers(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.changed:
			if g.cfg.OnMembers != nil {
				g.cfg.OnMembers()
			}
		}
	}
}

func (g *Gossip) enqueue(message []byte) {
	select {
	case g.queue <- message:
	default:
		g.dropped.Add(1)
	}
}
