package terminal

import (
	"fmt"
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

func (b *agentBars) trouble(error, time.Time) {
	f := b.last
	f.foot = "the agent does not answer; asking again"
	b.screen.draw(f)
}

func (b *agentBars) frame(s *api.AgentStatus, now time.Time) frame {
	if b.meters == nil {
		b.meters = make(map[string]*meter)
	}
	f := frame{head: serves(s)}
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
		if stage := stageOfBuild(build); stage != build.State {
			r.text = stage
		}
	case api.StateQueued:
		r.text = "queued"
		if build.Error != "" {
			r.text, r.short = "queued: "+command.Plain(build.Error), "queued"
		} else if build.Waiting {
			r.text = waiting
		}
	}
	return r
}

// serves is who an agent is, and why nothing comes where that is so.
func serves(s *api.AgentStatus) []string {
	lines := []string{fmt.Sprintf("%s serves %s in %s (%s)",
		command.Plain(s.Node), command.Plain(s.Bucket), command.Plain(s.Region), command.Plain(s.Version))}
	if s.NotReady != "" {
		lines = append(lines, "not ready: "+command.Plain(s.NotReady))
	}
	return lines
}

// waiting is what a build does that waits for its next segments.
const waiting = "waiting for the source"

// stageOfBuild is a build's state in a word.
func stageOfBuild(b *api.Build) string {
	if b.Waiting {
		return waiting
	}
	return lastingStage(b)
}

// lastingStage is stageOfBuild without the moments in which the source is the slow link.
func lastingStage(b *api.Build) string {
	return stage(b.State, b.LandedBytes, b.Size, b.Recording)
}

// agentLines says who the agent is, and prints a line for each change of a build's
// state, and without any how those stand that are under way.
type agentLines struct {
	lines
	last map[string]string
}

func (l *agentLines) update(s *api.AgentStatus, now time.Time) {
	l.answered(now)
	if l.last == nil {
		l.last = make(map[string]string)
		for _, line := range serves(s) {
			l.say(now, "%s", line)
		}
		if len(s.Builds) == 0 {
			l.say(now, "no build has come by yet")
		}
	}
	for i := range s.Builds {
		b := &s.Builds[i]
		is := lastingStage(b)
		if b.Error != "" {
			is += ": " + b.Error
		}
		if l.last[b.ExecutionID] != is {
			l.last[b.ExecutionID] = is
			l.say(now, "%s: %s", b.Key, is)
		}
	}
	quiet, busy := now.Sub(l.said), false
	for i := range s.Builds {
		switch b := &s.Builds[i]; b.State {
		case api.StateQueued, api.StateDownloading, api.StateLanding:
			busy = true
			if quiet >= stillEvery {
				l.say(now, "%s: still %s", b.Key, stands(b))
			}
		}
	}
	if quiet >= idleEvery && !busy {
		l.say(now, "nothing is under way")
	}
}

// stands says in a few words how far a build is.
func stands(b *api.Build) string {
	text := stageOfBuild(b)
	switch text {
	case api.StateDownloading:
		text += fmt.Sprintf(" %s %s/s", percent(b.VerifiedBytes, b.Size), command.FormatSize(b.DownRate))
	case api.StateLanding:
		text += " " + percent(b.LandedBytes, b.Size)
	case waiting:
		text += ", " + percent(b.VerifiedBytes, b.Size) + " is here"
	}
	if b.Error != "" {
		text += ": " + b.Error
	}
	return text
}
