package gossip

import (
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Whoever has the gossip key can say of anybody that he is dead, and with a number that
// nothing he says of himself exceeds. So that somebody is dead is a hint: he is asked himself,
// and stays a member for as long as he answers.

const (
	// doubtTries is how often who is said to be dead is asked, each time for memberlist's
	// ProbeTimeout: packets are lost.
	doubtTries = 2
	// doubtFirst and doubtAgain are when who has answered is asked again: who leaves with a
	// good-bye answers for a moment still.
	doubtFirst, doubtAgain = time.Second, 2 * time.Second
)

// doubts are the members that are said to be dead, and are asked.
type doubts struct {
	mu    sync.Mutex
	nodes map[string]*doubt
}

type doubt struct {
	node  memberlist.Node
	ended chan struct{}
}

// doubted has a member that is said to be dead stay one until it does not answer. It does
// not block; false where there is no such member, which has then gone.
func (g *Gossip) doubted(n *memberlist.Node) bool {
	g.doubts.mu.Lock()
	defer g.doubts.mu.Unlock()
	if n.Name == g.name || g.ctx.Err() != nil || !g.roster.same(n) {
		return false
	}
	if g.doubts.nodes[n.Name] != nil {
		return true
	}
	if g.doubts.nodes == nil {
		g.doubts.nodes = make(map[string]*doubt)
	}
	d := &doubt{*n, make(chan struct{})}
	g.doubts.nodes[n.Name] = d
	go g.ask(d) // until ctx ends, or ProbeTimeout, which nothing shortens
	return true
}

// believed ends the doubt in a member that is said to be alive again. It reports whether
// there was one, and nothing about the member has changed.
func (g *Gossip) believed(n *memberlist.Node) bool {
	g.doubts.mu.Lock()
	defer g.doubts.mu.Unlock()
	d := g.doubts.nodes[n.Name]
	if d == nil {
		return false
	}
	close(d.ended)
	delete(g.doubts.nodes, n.Name)
	return g.roster.same(n)
}

// ask asks who is in doubt until he does not answer any more.
func (g *Gossip) ask(d *doubt) {
	for wait := doubtFirst; g.answers(&d.node); wait = doubtAgain {
		g.warn("member is said to be dead, and answers", "member", d.node.Name, "addr", d.node.Address())
		select {
		case <-time.After(wait):
		case <-d.ended:
			return
		case <-g.ctx.Done():
			return
		}
	}
	g.doubts.mu.Lock()
	defer g.doubts.mu.Unlock()
	if g.ctx.Err() == nil && g.doubts.nodes[d.node.Name] == d {
		delete(g.doubts.nodes, d.node.Name)
		g.gone(&d.node)
	}
}

// answers reports whether a process of that name answers at its address.
func (g *Gossip) answers(n *memberlist.Node) bool {
	<-g.listed
	for range doubtTries {
		if _, err := g.list.Ping(n.Name, udpAddr(n)); err == nil || g.ctx.Err() != nil {
			return err == nil
		}
	}
	return false
}

// gone takes a member out.
func (g *Gossip) gone(n *memberlist.Node) {
	g.roster.leave(n)
	g.meetings.somebodyLeft()
	g.tell(n, true)
	g.changes()
	wake(g.lost)
}

func udpAddr(n *memberlist.Node) *net.UDPAddr { return &net.UDPAddr{IP: n.Addr, Port: int(n.Port)} }
