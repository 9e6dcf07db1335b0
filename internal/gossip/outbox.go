package gossip

import (
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// maxWaiting bounds what waits to be sent to one member, in bytes: announcements
	// by the hundred. For who lags behind further an exchange of states does.
	maxWaiting = 256 << 10
)

// again is when a member that could not be reached is tried again.
var again = retry.Policy{First: time.Second, Max: 30 * time.Second}

// outbox sends messages to members over TCP: a queue and a goroutine for each, so
// that one that does not answer keeps nobody waiting, least of all the sender. The
// members are bounded by maxMembers.
type outbox struct {
	g  *Gossip
	wg sync.WaitGroup

	mu     sync.Mutex
	closed bool
	queues map[string]*queue // by member's name
}

// queue is what one member has still to get.
type queue struct {
	waiting []parcel
	bytes   int
	// behind is set when something could not be sent, or too much waits: the member
	// gets all of it by an exchange of states.
	behind bool
}

type parcel struct {
	message []byte
	tried   func() // may be nil
}

func newOutbox(g *Gossip) *outbox { return &outbox{g: g, queues: make(map[string]*queue)} }

// send queues a message for a member and returns. tried is called once it was sent,
// or could not be; it must not block.
func (o *outbox) send(to memberlist.Node, message []byte, tried func()) {
	if !o.add(to, parcel{message, tried}) && tried != nil {
		tried()
	}
}

func (o *outbox) add(to memberlist.Node, p parcel) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	q, ok := o.queues[to.Name]
	if !ok {
		if len(o.queues) >= maxMembers {
			return false
		}
		q = &queue{}
		o.queues[to.Name] = q
		o.wg.Go(func() { o.work(to, q) })
	}
	if q.behind || q.bytes+len(p.message) > maxWaiting {
		q.behind = true
		return false
	}
	q.waiting = append(q.waiting, p)
	q.bytes += len(p.message)
	return true
}

// work sends what waits for one member, and ends when nothing does.
func (o *outbox) work(to memberlist.Node, q *queue) {
	defer o.forget(to.Name, q)
	for {
		p, ok := o.next(to.Name, q)
		if !ok {
			return
		}
		if p == nil {
			if !o.catchUp(to, q) {
				return
			}
			continue
		}
		err := o.g.list.SendReliable(&to, p.message)
		if err != nil {
			o.g.cfg.Logger.Debug("document not delivered, an exchange of states will bring it", "member", to.Name, "error", err)
			o.mu.Lock()
			q.behind = true
			o.mu.Unlock()
		}
		if p.tried != nil {
			p.tried()
		}
	}
}

// next takes the first parcel; nil when the member is behind. It reports false when
// there is nothing to do, and the queue is gone then.
func (o *outbox) next(name string, q *queue) (*parcel, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed:
		return nil, false
	case q.behind:
		return nil, true
	case len(q.waiting) == 0:
		delete(o.queues, name)
		return nil, false
	}
	p := q.waiting[0]
	q.waiting = q.waiting[1:]
	q.bytes -= len(p.message)
	return &p, true
}

// catchUp exchanges states with a member until that works. It reports false when the
// member is gone.
func (o *outbox) catchUp(to memberlist.Node, q *queue) bool {
	for try := 1; ; try++ {
		o.mu.Lock()
		dropped := q.waiting
		q.waiting, q.bytes, q.behind = nil, 0, false // before the exchange, which brings it
		o.mu.Unlock()
		for _, p := range dropped {
			if p.tried != nil {
				p.tried()
			}
		}
		if !retry.Wait(o.g.ctx, again.Delay(try)) || !o.g.roster.alive(to.Name) {
			return false
		}
		if err := o.g.exchange(to.Address()); err == nil {
			return true
		}
	}
}

// forget removes the queue of a member that is gone; who comes back gets a new one.
func (o *outbox) forget(name string, q *queue) {
	o.mu.Lock()
	if o.queues[name] == q {
		delete(o.queues, name)
	}
	waiting := q.waiting
	q.waiting = nil
	o.mu.Unlock()
	for _, p := range waiting {
		if p.tried != nil {
			p.tried()
		}
	}
}

// close waits for what is under way; the context that ends it has ended.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.wg.Wait()
}
