package peerwire

import (
	"strings"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/seldom"
)

const (
	// noticeInterval is the time between two lines about the same peer.
	noticeInterval = time.Minute
	// maxNotices bounds the peers told apart in the log; addresses of strangers are
	// among them.
	maxNotices = 32
	// unreachedFor is how long a member's peer port must not be reached to be said: a
	// member that has died is known to have died before that.
	unreachedFor = 20 * time.Second
	// refusalTimeout bounds writing why a connection is refused: 68 bytes into an
	// empty buffer.
	refusalTimeout = time.Second
	// maxUnreached bounds the peers whose dials fail.
	maxUnreached = 1024
)

// notices are what the log says of connections that come to nothing.
type notices struct {
	lines *seldom.Lines

	mu        sync.Mutex
	unreached map[[20]byte]time.Time // since when dials fail
}

func newNotices() *notices {
	return &notices{lines: seldom.New(noticeInterval, maxNotices), unreached: make(map[[20]byte]time.Time)}
}

// warnStranger says that a connection was refused, and what admits it.
func (w *Wire) warnStranger(c *Conn, answered bool) {
	omitted, due := w.notices.lines.Pass("refused " + c.from.String())
	if !due {
		return
	}
	claims := "another client"
	if strings.HasPrefix(string(c.id[:]), IDPrefix) {
		claims = "a Landfall process that is not a member here"
	}
	w.cfg.Logger.Warn("peer refused: no member has its address or its peer id; --allow-peers admits a network",
		"from", c.remote, "claims", claims, "told", answered, "omitted", omitted)
}

// warnNoDestination says that a member was refused for what it asked for.
func (w *Wire) warnNoDestination(c *Conn, infohash manifest.InfoHash) {
	m := w.Member(c.id)
	if omitted, due := w.notices.lines.Pass("no destination " + m.Name); due {
		w.cfg.Logger.Warn("peer refused: the build does not go to its bucket",
			"member", m.Name, "region", m.Region, "buckets", m.Buckets, "from", c.remote, "infohash", infohash.String(), "omitted", omitted)
	}
}

// warnCrowded says that peers that are no members are too many.
func (w *Wire) warnCrowded(c *Conn) {
	if omitted, due := w.notices.lines.Pass("crowded " + c.from.String()); due {
		w.cfg.Logger.Warn("too many connections of peers that are no members, one is closed",
			"from", c.remote, "limit", maxStrangers, "perAddress", MaxStrangersPerAddr, "omitted", omitted)
	}
}

// warnGreeting says that too many connections do not say who they are.
func (w *Wire) warnGreeting(c *Conn) {
	if omitted, due := w.notices.lines.Pass("greeting " + c.from.String()); due {
		w.cfg.Logger.Warn("too many connections that do not say who they are, one is closed",
			"from", c.remote, "limit", MaxGreeting, "ofUnknownAddresses", maxUnknownGreeting, "omitted", omitted)
	}
}

// warnSecuring says that too many connections do not come to show a certificate.
func (w *Wire) warnSecuring(c *Conn) {
	if omitted, due := w.notices.lines.Pass("securing " + c.from.String()); due {
		w.cfg.Logger.Warn("too many connections that have not shown a certificate yet, one is closed", "from", c.remote,
			"limit", maxSecuring, "ofOneAddress", maxSecuringPerAddr, "ofUnknownAddresses", maxUnknownSecuring, "omitted", omitted)
	}
}

// warnInsecure says that a connection ended since who is at the other end is not shown, or
// not accepted.
func (w *Wire) warnInsecure(c *Conn, why error) {
	w.cfg.Identity.Count(why)
	whose := c.from.String()
	if c.peer != nil {
		whose = c.peer.ID.String()
	}
	if omitted, due := w.notices.lines.Pass("insecure " + whose); due {
		attrs := []any{"from", c.remote, "error", why, "omitted", omitted}
		if c.peer != nil {
			attrs = append(attrs, "identity", whose)
		}
		if m := w.Member(c.id); m.Name != "" {
			attrs = append(attrs, "claims", m.Name)
		}
		w.cfg.Logger.Warn("peer refused: it does not prove who it is", attrs...)
	}
}

// warnSilent says that too many connections say nothing at all.
func (w *Wire) warnSilent(c *Conn) {
	if omitted, due := w.notices.lines.Pass("silent " + c.from.String()); due {
		w.cfg.Logger.Warn("too many connections that say nothing, one is closed", "from", c.remote,
			"limit", maxSilent, "ofOneAddress", MaxSilentPerAddr, "ofUnknownAddresses", MaxUnknownSilent, "omitted", omitted)
	}
}

// warnFlood says that a peer is read slowly.
func (w *Wire) warnFlood(c *Conn) {
	if omitted, due := w.notices.lines.Pass("flood " + c.from.String()); due {
		m := w.Member(c.id)
		w.cfg.Logger.Warn("peer sends more messages than its bytes need, it is read slowly",
			"member", m.Name, "region", m.Region, "from", c.remote, "messagesPerSecond", FreeRate, "omitted", omitted)
	}
}

// toldRefused says that a peer has refused our connection, and why.
func (w *Wire) toldRefused(c *Conn) error {
	why, err := "it knows neither this member nor this address; see --join and --advertise here, --allow-peers there", errRefused
	if c.id == unwantedID {
		why, err = "the build does not go to this member's bucket, as far as it knows", ErrNoDestination
	}
	if omitted, due := w.notices.lines.Pass("told " + c.remote); due {
		m := w.Member(c.dialled)
		w.cfg.Logger.Warn("peer refuses our connections", "why", why,
			"member", m.Name, "region", m.Region, "peer", c.remote, "ourAddress", c.LocalAddr().String(), "omitted", omitted)
	}
	return err
}

// dialFailed says that a member's peer port is not reached, when that lasts.
func (w *Wire) dialFailed(id [20]byte, addr string, err error, now time.Time) {
	n := w.notices
	n.mu.Lock()
	since, ok := n.unreached[id]
	if !ok {
		if len(n.unreached) >= maxUnreached {
			clear(n.unreached)
		}
		since = now
		n.unreached[id] = now
	}
	n.mu.Unlock()
	if now.Sub(since) < unreachedFor {
		return
	}
	m := w.Member(id)
	if m.Name == "" {
		return
	}
	if omitted, due := n.lines.Pass("unreached " + addr); due {
		w.cfg.Logger.Warn("a member's peer port is not reached: is its --peer-listen open from here?",
			"member", m.Name, "region", m.Region, "peer", addr, "since", since.UTC().Format(time.RFC3339), "error", err, "omitted", omitted)
	}
}

// dialReached forgets that dials failed.
func (w *Wire) dialReached(id [20]byte) {
	w.notices.mu.Lock()
	defer w.notices.mu.Unlock()
	delete(w.notices.unreached, id)
}
