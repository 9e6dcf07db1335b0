package gossip

import (
	"errors"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/announce"
)

const (
	// askInterval is how often one announcement is asked for, and how often a member
	// that asks is answered.
	askInterval = 100 * time.Millisecond
	// maxAsks bounds what is remembered of either.
	maxAsks = 1024
)

// packRevision is the message of an announcement that others have an earlier revision of:
// executionId, then the increment. It reports whether that fits a packet.
func packRevision(a announce.Added) (message []byte, fits bool) {
	message = append([]byte{kindRevision}, a.Announcement.ExecutionID...)
	message = append(message, announce.Increment(a.Before, a.Wire)...)
	return message, len(message) <= maxPacket
}

// revision takes in an increment. Where the document is not known that it builds on, for
// packets are lost and overtake each other, the seeders are asked for the whole.
func (g *Gossip) revision(body []byte) error {
	if len(body) < ulid.EncodedSize {
		return errors.New("a revision without an executionId")
	}
	wire, err := g.cfg.Book.Restore(body[ulid.EncodedSize:])
	switch {
	case errors.Is(err, announce.ErrNoBase):
		if id := string(body[:ulid.EncodedSize]); g.asks.due("for "+id, time.Now()) {
			g.tellSeeders(ask(id + g.name))
		}
		return nil
	case err != nil:
		return err
	}
	_, err = g.document(wire)
	return err
}

// ask is the message that asks for an announcement: executionId, then who asks.
type ask string

func (a ask) encode() ([]byte, error) { return append([]byte{kindAsk}, a...), nil }

// asked sends an announcement to a member that asks for it.
func (g *Gossip) asked(body []byte) error {
	if len(body) < ulid.EncodedSize {
		return errors.New("nothing is asked for")
	}
	id, name := string(body[:ulid.EncodedSize]), string(body[ulid.EncodedSize:])
	for _, n := range g.others() {
		if n.Name != name {
			continue
		}
		if wire := g.cfg.Book.Wire(id); wire != nil && g.asks.due("of "+name+" for "+id, time.Now()) {
			g.outbox.send(n, append([]byte{kindDocument}, wire...), nil)
		}
		return nil
	}
	return errors.New("who asks is no member")
}

// asks remembers what was asked a moment ago. The zero value is ready.
type asks struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// due reports whether something was not asked for askInterval, and takes note of it.
func (a *asks) due(what string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Sub(a.last[what]) < askInterval {
		return false
	}
	if len(a.last) >= maxAsks || a.last == nil {
		a.last = make(map[string]time.Time)
	}
	a.last[what] = now
	return true
}
