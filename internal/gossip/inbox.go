package gossip

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/landfall-dist/landfall/internal/announce"
)

const (
	// maxDocuments, maxReports and maxStates bound the received messages that wait
	// to be worked on, each kind by itself, so that a flood of one drowns no other.
	// memberlist must never be blocked; what is dropped an exchange of states or the
	// next report brings again.
	maxDocuments, maxReports, maxStates = 2048, 4096, 64
	// maxQueued bounds what waits, in bytes, documents and states each.
	maxQueued = 16 << 20
	// maxMessage bounds one message in bytes: a document, or the answer to a state.
	maxMessage = 1 + maxAnswer
	// maxState bounds a member's state in bytes: what the book sends, and its name.
	maxState = announce.MaxState + 2*announce.MaxSender
	// maxBadFrames is how many documents of one state may be garbage before the rest
	// is not looked at.
	maxBadFrames = 16
	// answerInterval is how often one member is told of ends that it does not know,
	// and maxAnswer how many bytes of them it gets at a time.
	answerInterval = time.Minute
	maxAnswer      = 64 << 10
)

// inbox holds what memberlist has received until it is worked on.
type inbox struct {
	documents, reports, states chan []byte
	vouched                    chan []byte // reports that came over TLS
	documentBytes, stateBytes  atomic.Int64
	dropped                    atomic.Int64
	// answered is when members were last answered; work's alone.
	answered map[string]time.Time
}

func newInbox() *inbox {
	return &inbox{
		documents: make(chan []byte, maxDocuments),
		reports:   make(chan []byte, maxReports),
		states:    make(chan []byte, maxStates),
		vouched:   make(chan []byte, maxReports),
		answered:  make(map[string]time.Time),
	}
}

func (i *inbox) drop() { i.dropped.Add(1) }

// put queues a message that is not empty.
func (i *inbox) put(message []byte) {
	switch message[0] {
	case kindDocument, kindRevision, kindState:
		i.queue(i.documents, &i.documentBytes, message)
	default:
		select {
		case i.reports <- message:
		default:
			i.drop()
		}
	}
}

// putVouched queues a report of a member that is known to be its sender.
func (i *inbox) putVouched(message []byte) {
	select {
	case i.vouched <- message:
	default:
		i.drop()
	}
}

// putState queues the state of a member.
func (i *inbox) putState(state []byte) { i.queue(i.states, &i.stateBytes, state) }

func (i *inbox) queue(to chan<- []byte, bytes *atomic.Int64, message []byte) {
	n := int64(len(message))
	if bytes.Add(n) <= maxQueued {
		select {
		case to <- message:
			return
		default:
		}
	}
	bytes.Add(-n)
	i.drop()
}

// work handles received messages, one after the other; documents before all else,
// since somebody waits for them.
func (g *Gossip) work(ctx context.Context) {
	i := g.inbox
	document := func(message []byte) {
		i.documentBytes.Add(-int64(len(message)))
		g.handle(message, false)
	}
	for {
		select {
		case message := <-i.documents:
			document(message)
			continue
		default:
		}
		select {
		case <-ctx.Done():
			return
		case message := <-i.documents:
			document(message)
		case message := <-i.reports:
			g.handle(message, false)
		case message := <-i.vouched:
			g.handle(message, true)
		case state := <-i.states:
			i.stateBytes.Add(-int64(len(state)))
			g.state(state)
		}
	}
}

// handle works on a message; of one that is vouched for the sender is who it says.
func (g *Gossip) handle(message []byte, vouched bool) {
	var err error
	body := message[1:]
	switch message[0] {
	case kindDocument:
		g.document(body)
	case kindRevision:
		err = g.revision(body)
	case kindAsk:
		err = g.asked(body)
	case kindState:
		g.state(body)
	case kindProgress:
		if g.cfg.OnProgress == nil {
			return
		}
		var p Progress
		if p, err = decodeProgress(body); err == nil && !vouched {
			err = g.vouching.counts(p.Bucket, p.Node)
		}
		if err == nil {
			g.cfg.OnProgress(p)
		}
	case kindLinks:
		if g.cfg.OnLinks == nil {
			return
		}
		var l Links
		if l, err = decodeLinks(body); err == nil && !vouched {
			err = g.vouching.counts("", l.Node)
		}
		if err == nil {
			g.cfg.OnLinks(l)
		}
	case kindHello:
		err = g.greeted(body)
	default:
		err = errors.New("unknown kind")
	}
	if err != nil {
		g.cfg.Logger.Debug("message not understood", "kind", string(message[:1]), "error", err)
	}
}

// state takes in the documents of a member, and answers with the ends of those that
// are over.
func (g *Gossip) state(state []byte) {
	var answer []byte
	bad := 0
	sender := announce.EachInState(state, func(wire []byte) bool {
		reply, err := g.document(wire)
		if errors.Is(err, announce.ErrInvalid) {
			bad++
		}
		if reply != nil && len(answer)+len(reply)+2 <= maxAnswer {
			answer = announce.AppendFrame(answer, reply)
		}
		return bad < maxBadFrames
	})
	if bad == maxBadFrames {
		g.warn("the rest of a member's state is not read, too much of it is no document", "member", sender, "bytes", len(state))
	}
	if len(answer) > 0 && sender != "" {
		g.answer(sender, answer)
	}
}

// document takes in one document. It returns the notice of the end of what is
// announced though it is over.
func (g *Gossip) document(wire []byte) (reply []byte, err error) {
	added, err := g.cfg.Book.Add(wire)
	if err != nil {
		if !errors.Is(err, announce.ErrExpired) {
			g.refused(err)
		}
		if added.Contradicted != nil && g.cfg.OnContradiction != nil {
			g.cfg.OnContradiction(added.Contradicted, err)
		}
		return nil, err
	}
	if added.Announcement != nil || added.End != nil {
		g.cfg.OnDocument(added)
	}
	return added.Reply, nil
}

// answer tells one member, and nobody else, of ends, now and then.
func (g *Gossip) answer(name string, ends []byte) {
	var to *memberlist.Node
	for _, n := range g.others() {
		if n.Name == name {
			to = &n
		}
	}
	if to == nil {
		return
	}
	i := g.inbox
	for n, at := range i.answered {
		if time.Since(at) >= answerInterval {
			delete(i.answered, n)
		}
	}
	if _, lately := i.answered[name]; lately {
		return
	}
	i.answered[name] = time.Now()
	g.outbox.send(*to, append([]byte{kindState}, ends...), nil)
}
