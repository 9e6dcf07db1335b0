package gossip

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxNews bounds the changes of membership that wait to be logged: twice as
	// many as there are members, as when all come and go at once.
	maxNews = 1024
	// maxByes bounds the names of members that said good-bye and are still in
	// sight.
	maxByes = 1024
	// byeGrace is what a good-bye may come later than the news that its member has
	// left: the two go as packets of their own, and the news by others as well.
	byeGrace = time.Second
)

// news is a change of membership, for the log.
type news struct {
	member Member
	gone   bool
}

// byes are the members that said they leave. memberlist knows who left from who is
// dead, and does not tell.
type byes struct {
	mu    sync.Mutex
	names map[string]bool
}

func (b *byes) said(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.names == nil || len(b.names) >= maxByes {
		b.names = make(map[string]bool)
	}
	b.names[name] = true
}

func (b *byes) take(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	said := b.names[name]
	delete(b.names, name)
	return said
}

// tell hands a change to the one who logs it: memberlist waits for who is told.
func (g *Gossip) tell(n *memberlist.Node, gone bool) {
	m, ok := member(n)
	if !ok || n.Name == g.name {
		return
	}
	select {
	case g.news <- news{m, gone}:
	default: // more at once than anybody reads
	}
}

// logNews logs who comes and goes, until ctx ends.
func (g *Gossip) logNews(ctx context.Context) {
	type departure struct {
		member Member
		due    time.Time
	}
	var waiting []departure // without a good-bye yet, the earliest first
	grace := time.NewTimer(byeGrace)
	defer grace.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-g.news:
			switch {
			case !n.gone:
				g.say("member joined", n.member)
			case g.byes.take(n.member.Name):
				g.say("member left", n.member)
			default:
				if len(waiting) == 0 {
					grace.Reset(byeGrace)
				}
				waiting = append(waiting, departure{n.member, time.Now().Add(byeGrace)})
			}
		case now := <-grace.C:
			for len(waiting) > 0 && !waiting[0].due.After(now) {
				text := "member is dead or cut off"
				if g.byes.take(waiting[0].member.Name) {
					text = "member left"
				}
				g.say(text, waiting[0].member)
				waiting = waiting[1:]
			}
			if len(waiting) > 0 {
				grace.Reset(time.Until(waiting[0].due))
			}
		}
	}
}

func (g *Gossip) say(text string, m Member) {
	attrs := []any{"member", m.Name, "role", string(m.Role), "addr", m.Addr.String()}
	if m.Role == Agent {
		attrs = append(attrs, "region", m.Region, "bucket", m.Bucket)
	}
	g.cfg.Logger.Info(text, attrs...)
}

// sayBye tells every member that this one leaves, best effort.
func (g *Gossip) sayBye() {
	message := append([]byte{kindBye}, g.name...)
	for _, n := range g.others() {
		if err := g.list.SendBestEffort(&n, message); err != nil {
			g.cfg.Logger.Debug("good-bye not sent", "member", n.Name, "error", err)
		}
	}
}

// bye takes a member's good-bye.
func (g *Gossip) bye(name string) {
	if len(name) <= 2*maxName {
		g.byes.said(name)
	}
}
