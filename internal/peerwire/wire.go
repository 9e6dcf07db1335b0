// Package peerwire is the connections with peers below the torrent engine, in layers. The
// socket counts the bytes and keeps them within the limits (socket.go); over it TLS may be
// spoken (secure.go, gathered.go); above that is judged who the peer is, whether there is a
// place for it (doors.go), what its messages cost (messages.go), and what is held against
// it (conduct.go). The hand-out is put
// around that, and the engine gets the result (listen.go, dial.go). What torrents there
// are, and which of them a peer may have, is their owner's to say.
package peerwire

import (
	"context"
	"crypto/sha1"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/manifest"
)

const (
	// IDPrefix begins every member's peer id (BEP 20).
	IDPrefix = "-LF0100-"
	// MaxDialled bounds those for whose sake members are dialled. Each costs memory,
	// and more do not make a build come sooner.
	MaxDialled = 200
	// DialTimeout bounds a dial.
	DialTimeout = 5 * time.Second
	// tendInterval is how often spare connections are looked after.
	tendInterval = 500 * time.Millisecond
)

// PeerID derives the peer id (BEP 3) from a member's name, so that every member
// can tell who a peer is.
func PeerID(name string) (id [20]byte) {
	sum := sha1.Sum([]byte(name))
	copy(id[copy(id[:], IDPrefix):], sum[:])
	return id
}

// Peer is where a peer listens, and who it is.
type Peer struct {
	ID   [20]byte
	Addr netip.AddrPort
}

// Member is what the cluster says of who has a peer id.
type Member struct {
	Name   string // unique to one start
	ID     string // the same after a restart, and the name in its certificate
	Region string
	// Certified: it shows a certificate, and speaks TLS where the other side does.
	Certified bool
	// Seeder: it may have every build. An agent may have what goes to its buckets; a host,
	// which is no member of the cluster, what is handed to hosts.
	Seeder, Host bool
	Buckets      []string
}

// MayHave reports whether a build that goes to these buckets goes to the member.
func (m Member) MayHave(destinations map[string]bool) bool {
	return m.Seeder || slices.ContainsFunc(m.Buckets, func(b string) bool { return destinations[b] })
}

// Config says what a Wire works with.
type Config struct {
	// Listener takes connections of peers; whoever has the Wire closes it.
	Listener net.Listener
	// AllowPeer says from which addresses peers may connect that are no members; nil
	// for all. Members may from anywhere.
	AllowPeer func(netip.Addr) bool
	// MemberAt reports whether a member is at an address, which then has bounds of its own
	// beside the networks of all others. Nil: that is not known.
	MemberAt func(netip.Addr) bool
	// Member is the member with a peer id; the zero value is nobody's.
	// It must not call the Wire. Nil: who is a member is not known, and strangers
	// are not bounded.
	Member func(id [20]byte) Member
	// Vital reports whether this process may have no other source than a peer, by its id, or
	// its certificate where there is one: such a peer is left alone for no longer than
	// vitalBan, whatever it does. It must not call the Wire; nil for nobody.
	Vital func(id [20]byte, by identity.ID) bool
	// Upload and Download limit what goes to peers and what comes from them, with the
	// protocol's own bytes; nil for no limit.
	Upload, Download *limits.Limiter
	// TLS says with whom it is spoken; empty or identity.Off for nobody. Else Identity is
	// this process's.
	TLS      identity.Mode
	Identity *identity.Source
	// Mine reports whether who has a certificate may be spoken to at all; nil for members
	// of the cluster, seeders and agents.
	Mine func(identity.ID) bool
	// Proven admits whoever has such a certificate, whether Member knows the peer id or not;
	// how many connections each may have is for Begin.
	Proven bool
	// Silence is how long a connection that a peer has made may say nothing; 0 for the
	// usual time. DialFrom is the address to dial from; nil for the usual one.
	Silence  time.Duration
	DialFrom net.Addr
	Logger   *slog.Logger

	// Begin is called with each connection whose peer may have one, when it is known
	// what for and before it hears anything. It returns the torrent, nil where that is
	// not known here. An error ends the connection; ErrNoDestination is said here and there.
	Begin func(*Conn, manifest.InfoHash) (Torrent, error)
	// Wrap is put around what peers have connected; nil for nothing.
	Wrap func(net.Conn) net.Conn
	// Alongside runs what the owner waits for; false when nothing begins any more.
	Alongside func(func()) bool
}

// Torrent is what a connection is about.
type Torrent interface {
	// Passed says that chunks or requests for them came at a time.
	Passed(at time.Time)
	// Arrived says, once, that the engine has a connection that a peer has made, or
	// that it has ended.
	Arrived()
}

// Wire is all connections of one engine. It is safe for concurrent use.
type Wire struct {
	Counts Counts

	cfg     Config
	ctx     context.Context
	conduct *conduct
	doors   *doors
	spares  *spares
	notices *notices
	conns   sync.Map // of connKey to *Conn, from the handshake on

	spoken chan net.Conn // with their first bytes, for the engine
	ended  chan struct{} // closed when nothing more is accepted
}

// New returns a Wire that works until ctx ends.
func New(ctx context.Context, cfg Config) *Wire {
	if cfg.Silence == 0 {
		cfg.Silence = silentAge
	}
	w := &Wire{
		cfg:     cfg,
		ctx:     ctx,
		conduct: newConduct(time.Now),
		notices: newNotices(),
		doors:   newDoors(),
		spoken:  make(chan net.Conn),
		ended:   make(chan struct{}),
	}
	if cfg.Vital != nil {
		w.conduct.vital = func(of who) bool { return cfg.Vital(of.id, of.identity) }
	}
	w.spares = &spares{ctx: ctx, dial: w.connect, alongside: cfg.Alongside, byAddr: make(map[string]*spare)}
	cfg.Alongside(w.accept)
	cfg.Alongside(w.attend)
	return w
}

// attend disconnects those who are to be left alone, and looks after the spare
// connections.
func (w *Wire) attend() {
	ticker := time.NewTicker(tendInterval)
	defer ticker.Stop()
	rechecked := time.Now()
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-w.conduct.wake:
			w.leaveAlone()
		case now := <-ticker.C:
			w.spares.tend(now)
			if w.cfg.Identity != nil && now.Sub(rechecked) >= recheckInterval {
				rechecked = now
				w.recheck(w.cfg.Identity.Now())
			}
		}
	}
}

// leaveAlone closes the connections of those who are to be left alone.
func (w *Wire) leaveAlone() {
	fresh, bad := w.conduct.taken()
	for _, c := range w.Conns() {
		if slices.ContainsFunc(fresh, c.is) {
			// The engine sees it fail, and asks others for what was outstanding.
			_ = c.Close()
		}
	}
	for _, b := range bad {
		w.report(b)
	}
}

func (w *Wire) report(b BadPeer) {
	if b.ID != ([20]byte{}) {
		m := w.Member(b.ID)
		b.Name, b.Region = m.Name, m.Region
		w.conduct.describe(b.ID, b.Name, b.Region)
	}
	attrs := []any{"member", b.Name, "region", b.Region, "peer", b.Addr, "reason", string(b.Reason), "times", b.Times}
	if !b.Until.IsZero() {
		attrs = append(attrs, "until", b.Until.UTC())
	}
	w.cfg.Logger.Warn("bad peer", attrs...)
}

// connKey finds a connection from what the engine tells of it.
type connKey struct {
	remote   string
	infohash manifest.InfoHash
}

// Conn finds the connection that the engine has with an address for a torrent; nil for
// one that has ended.
func (w *Wire) Conn(remote string, infohash manifest.InfoHash) *Conn {
	c, ok := w.conns.Load(connKey{remote, infohash})
	if !ok {
		return nil
	}
	return c.(*Conn)
}

// Conns are the connections whose peers have been admitted, by what they are about.
func (w *Wire) Conns() iter.Seq2[manifest.InfoHash, *Conn] {
	return func(yield func(manifest.InfoHash, *Conn) bool) {
		w.conns.Range(func(k, v any) bool { return yield(k.(connKey).infohash, v.(*Conn)) })
	}
}

// Arriving reports whether bytes of a torrent came from a peer after a time, whole chunks
// or not, or wait to be read since the limit does not allow more.
func (w *Wire) Arriving(infohash manifest.InfoHash, after time.Time) bool {
	for of, c := range w.Conns() {
		if of == infohash && (c.content.Load() > after.UnixNano() || c.socket.heldBack.since.Load() != 0) {
			return true
		}
	}
	return false
}

// BadPeers are the peers that are left alone now, the newest first.
func (w *Wire) BadPeers() []BadPeer { return w.conduct.bad() }

// Refused reports whether a peer is to be left alone now.
func (w *Wire) Refused(id [20]byte) bool {
	if m := w.Member(id); m.Name != "" && w.speaksTLS(m) {
		return w.conduct.refused(who{identity: w.identityOf(m)})
	}
	return w.conduct.refused(who{id: id})
}

// Named notes who is to be found where, for who is dialled there.
func (w *Wire) Named(peers []Peer) { w.conduct.named(peers) }

// Member is who has a peer id; the zero value for nobody, and where they are not known.
func (w *Wire) Member(id [20]byte) Member {
	if w.cfg.Member == nil {
		return Member{}
	}
	return w.cfg.Member(id)
}
