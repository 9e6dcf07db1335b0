package hostwire

import (
	"bytes"
	"slices"
	"sync/atomic"
)

// otherKind is what messages are counted as that this version does not know.
const otherKind = "other"

// kinds are those of messages, as frames have them, and otherKind.
var kinds = [...]string{"hello", "state", "holds", "welcome", "goal", "beat", "recipe", "neighbours", "leave", "ping", otherKind}

// Kinds are those that Counters tell apart.
func Kinds() []string { return slices.Clone(kinds[:]) }

// kindOf is a message's kind; nil is one that is not known.
func kindOf(m Message) string {
	switch m.(type) {
	case *Hello:
		return "hello"
	case *State:
		return "state"
	case *Holds:
		return "holds"
	case *Welcome:
		return "welcome"
	case *Goal:
		return "goal"
	case *Beat:
		return "beat"
	case *Recipe:
		return "recipe"
	case *Neighbours:
		return "neighbours"
	case *Leave:
		return "leave"
	case *Ping:
		return "ping"
	}
	return otherKind
}

// kind is that of a message which Encode has written.
func (e Encoded) kind() string {
	if begins := headerLength + len(`{"`); len(e) > begins {
		name, _, _ := bytes.Cut(e[begins:], []byte{'"'})
		return string(name)
	}
	return otherKind
}

// Counters count what passes over streams, pings and the lengths of messages with it, but not
// what HTTP and TLS add. The zero value has counted nothing; nil counts nothing.
type Counters struct{ sent, received counter }

type counter struct {
	bytes    atomic.Int64
	messages [len(kinds)]atomic.Int64
}

func (c *counter) add(kind string, bytes int) {
	i := slices.Index(kinds[:], kind)
	if i < 0 {
		i = len(kinds) - 1
	}
	c.messages[i].Add(1)
	c.bytes.Add(int64(bytes))
}

func (c *Counters) out(e Encoded) {
	if c != nil {
		c.sent.add(e.kind(), len(e))
	}
}

func (c *Counters) in(m Message, bytes int) {
	if c != nil {
		c.received.add(kindOf(m), bytes)
	}
}

// Messages is how many of one of Kinds have passed so far.
func (c *Counters) Messages(kind string) (sent, received int64) {
	i := slices.Index(kinds[:], kind)
	return c.sent.messages[i].Load(), c.received.messages[i].Load()
}

// Bytes is how many have passed so far.
func (c *Counters) Bytes() (sent, received int64) {
	return c.sent.bytes.Load(), c.received.bytes.Load()
}
