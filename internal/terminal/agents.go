package terminal

import (
	"fmt"
	"io"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
)

// agentBars shows a bar for each build of an agent.
type agentBars struct {
	screen *screen
	meters map[string]*meter
	last   frame
}

func (b *agentBars) update(s *api.AgentStatus, now time.Time) {
	b.last = b.frame(s, now)
	b.screen.draw(b.last)
}

func (b *agentBars) trouble(error) {
	f := b.last
	f.foot = "the agent does not answer; asking again"
	b.screen.draw(f)
}

func (b *agentBars) frame(s *api.AgentStatus, now time.Time) frame {
	if b.meters == nil {
		b.meters = make(map[string]*meter)
	}
	f := frame{head: []string{serves(s)}}
	var down, up int64
	for i := range s.Builds {
		f.rows = append(f.rows, b.build(&s.Builds[i], now))
		down += s.Builds[i].DownRate
		up += s.Builds[i].UpRate
	}
	if len(s.Builds) == 0 {
		f.head = append(f.head, "no build has come by yet")
	}
	f.foot = fmt.Sprintf("down %s/s, up %s/s, %d members", command.FormatSize(down), command.FormatSize(up), len(s.Members))
	if n := len(s.BadPeers); n > 0 {
		f.foot += fmt.Sprintf(", %d bad peers", n)
	}
	return f
}

func (b *agentBars) build(build *api.Build, now time.Time) row {
	m := b.meters[build.ExecutionID]
	if m == nil {
		m = new(meter)
		b.meters[build.ExecutionID] = m
	}
	r := row{
		name: build.Key, done: build.VerifiedBytes + build.LandedBytes, total: 2 * max(build.Size, 1),
		state: command.Plain(build.State),
	}
	m.add(now, r.done)
	switch build.State {
	case api.StateLanded:
		r.done, r.settled, r.colour, r.text = r.total, true, green, "landed"
	case api.StateFailed:
		r.text, r.short, r.colour = "failed: "+command.Plain(build.Error), "failed", red
	case api.StateDownloading, api.StateLanding:
		r.rate, r.left = m.rate/2, m.left(r.total-r.done)
	case api.StateQueued:
		r.text = "queued"
		if build.Error != "" {
			r.text, r.short = "queued: "+command.Plain(build.Error), "queued"
		}
	}
	return r
}

// serves is who an agent is.
func serves(s *api.AgentStatus) string {
	return fmt.Sprintf("%s serves %s in %s (%s)",
		command.Plain(s.Node), command.Plain(s.Bucket), command.Plain(s.Region), command.Plain(s.Version))
}

// agentLines says who the agent is, and prints a line for each change of a build's
// state.
type agentLines struct {
	w    io.Writer
	last map[string]string
}

func (l *agentLines) update(s *api.AgentStatus, _ time.Time) {
	if l.last == nil {
		l.last = make(map[string]string)
		fmt.Fprintln(l.w, serves(s))
	}
	for _, b := range s.Builds {
		is := command.Plain(b.State)
		if b.Error != "" {
			is += ": " + command.Plain(b.Error)
		}
		if l.last[b.ExecutionID] != is {
			l.last[b.ExecutionID] = is
			fmt.Fprintf(l.w, "%s: %s\n", command.Plain(b.Key), is)
		}
	}
}

func (*agentLines) trouble(error) {}
