package swarm

import (
	"strings"
	"sync"
	"time"

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
func (s *Swarm) warnStranger(w *watched, answered bool) {
	omitted, due := s.notices.lines.Pass("refused " + w.from.String())
	if !due {
		return
	}
	claims := "another client"
	if strings.HasPrefix(string(w.id[:]), peerIDPrefix) {
		claims = "a Landfall process that is not a member here"
	}
	s.cfg.Logger.Warn("peer refused: no member has its address or its peer id; --allow-peers admits a network",
		"from", w.remote, "claims", claims, "told", answered, "omitted", omitted)
}

// warnCrowded says that peers that are no members are too many.
func (s *Swarm) warnCrowded(w *watched) {
	if omitted, due := s.notices.lines.Pass("crowded " + w.from.String()); due {
		s.cfg.Logger.Warn("too many connections of peers that are no members, one is closed",
			"from", w.remote, "limit", maxStrangers, "perAddress", maxStrangersPerAddr, "omitted", omitted)
	}
}

// warnGreeting says that too many connections do not say who they are.
func (s *Swarm) warnGreeting(w *watched) {
	if omitted, due := s.notices.lines.Pass("greeting " + w.from.String()); due {
		s.cfg.Logger.Warn("too many connections that do not say who they are, one is closed",
			"from", w.remote, "limit", maxGreeting, "ofUnknownAddresses", maxUnknownGreeting, "omitted", omitted)
	}
}

// warnSilent says that too many connections say nothing at all.
func (s *Swarm) warnSilent(w *watched) {
	if omitted, due := s.notices.lines.Pass("silent " + w.from.String()); due {
		s.cfg.Logger.Warn("too many connections that say nothing, one is closed", "from", w.remote,
			"limit", maxSilent, "ofOneAddress", maxSilentPerAddr, "ofUnknownAddresses", maxUnknownSilent, "omitted", omitted)
	}
}

// warnNoRoom says that a peer has to ask again, since other segments are in use.
func (s *Swarm) warnNoRoom(w *watched) {
	if omitted, due := s.notices.lines.Pass("room"); due {
		name, region := s.nameOf(w.id)
		s.cfg.Logger.Warn("a peer has to ask again for a segment: as many are open as may be, and all are in use",
			"member", name, "region", region, "from", w.remote, "ofOneBuild", maxOpenOfBuild, "inAll", maxOpen, "omitted", omitted)
	}
}

// warnFlood says that a peer is read slowly.
func (s *Swarm) warnFlood(w *watched) {
	if omitted, due := s.notices.lines.Pass("flood " + w.from.String()); due {
		name, region := s.nameOf(w.id)
		s.cfg.Logger.Warn("peer sends more messages than its bytes need, it is read slowly",
			"member", name, "region", region, "from", w.remote, "messagesPerSecond", freeRate, "omitted", omitted)
	}
}

// toldRefused says that a peer has refused our connection.
func (s *Swarm) toldRefused(w *watched) {
	if omitted, due := s.notices.lines.Pass("told " + w.remote); due {
		name, region := s.nameOf(w.dialled)
		s.cfg.Logger.Warn("peer refuses our connections: it knows neither this member nor this address; see --join and --advertise here, --allow-peers there",
			"member", name, "region", region, "peer", w.remote, "ourAddress", w.LocalAddr().String(), "omitted", omitted)
	}
}

// dialFailed says that a member's peer port is not reached, when that lasts.
func (s *Swarm) dialFailed(id [20]byte, addr string, err error, now time.Time) {
	n := s.notices
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
	name, region := s.nameOf(id)
	if name == "" {
		return
	}
	if omitted, due := n.lines.Pass("unreached " + addr); due {
		s.cfg.Logger.Warn("a member's peer port is not reached: is its --peer-listen open from here?",
			"member", name, "region", region, "peer", addr, "since", since.UTC().Format(time.RFC3339), "error", err, "omitted", omitted)
	}
}

// dialReached forgets that dials failed.
func (s *Swarm) dialReached(id [20]byte) {
	s.notices.mu.Lock()
	defer s.notices.mu.Unlock()
	delete(s.notices.unreached, id)
}

func (s *Swarm) nameOf(id [20]byte) (name, region string) {
	if s.cfg.Member == nil {
		return "", ""
	}
	return s.cfg.Member(id)
}
