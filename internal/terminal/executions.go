package terminal

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
)

// executionLines prints a line for each change of a destination's state, and of
// what holds it up, for pipes.
type executionLines struct {
	w    io.Writer
	last map[string]string
	said time.Time // when a line was printed
}

// stillEvery is how long a pipe hears nothing before it is said how things stand.
const stillEvery = 15 * time.Second

func (l *executionLines) update(e *api.Execution, now time.Time) {
	if l.last == nil {
		l.last = make(map[string]string)
	}
	for _, d := range e.Destinations {
		if is := d.State + " " + d.Error; l.last[d.Bucket] != is {
			l.last[d.Bucket] = is
			fmt.Fprintf(l.w, "%s: %s\n", command.Plain(d.Bucket), describe(e, &d))
			l.said = now
		}
	}
	if now.Sub(l.said) < stillEvery {
		return
	}
	l.said = now
	for _, d := range e.Destinations {
		if d.State != api.StateLanded && d.State != api.StateFailed {
			fmt.Fprintf(l.w, "%s: still %s\n", command.Plain(d.Bucket), describe(e, &d))
		}
	}
}

func (*executionLines) trouble(error) {}

// describe says in a few words how a destination stands.
func describe(e *api.Execution, d *api.Destination) string {
	switch d.State {
	case api.StateLanded:
		return fmt.Sprintf("landed in %.1f s", d.Seconds)
	case api.StateDownloading:
		return fmt.Sprintf("downloading %s %s/s", verified(d.VerifiedBytes, e.Size, d.State), command.FormatSize(d.Rate))
	case api.StateLanding:
		return landing(e, d)
	case api.StateQueued:
		if e.Phase == api.PhasePulling {
			return "the seeder pulls " + percent(e.PulledBytes, e.Size)
		}
	}
	if d.Error != "" {
		return command.Plain(d.State) + ": " + command.Plain(d.Error)
	}
	return command.Plain(d.State)
}

// landing says how far a landing is: when all parts are up, S3 has to put them
// together, and the arrival has to be recorded.
func landing(e *api.Execution, d *api.Destination) string {
	switch {
	case d.LandedBytes < e.Size:
		return "landing " + verified(d.LandedBytes, e.Size, d.State)
	case d.Took != nil && d.Took.Recording > 0:
		return "recording"
	}
	return "completing"
}

// executionBars shows a bar for each destination, and one for the seeder while it
// pulls.
type executionBars struct {
	screen *screen
	pull   meter
	meters map[string]*meter
	last   frame
}

func newExecutionBars(s *screen) *executionBars {
	return &executionBars{screen: s, meters: make(map[string]*meter)}
}

func (b *executionBars) update(e *api.Execution, now time.Time) {
	b.last = b.frame(e, now)
	b.screen.draw(b.last)
}

func (b *executionBars) trouble(error) {
	f := b.last
	f.foot = "the seeder does not answer; asking again"
	b.screen.draw(f)
}

func (b *executionBars) frame(e *api.Execution, now time.Time) frame {
	var f frame
	if e.Phase == api.PhasePulling && !e.Ended() {
		b.pull.add(now, e.PulledBytes)
		f.rows = append(f.rows, row{
			name: "seeder pulls", fixed: true, done: e.PulledBytes, total: e.Size,
			state: "pulling", rate: b.pull.rate, left: b.pull.left(e.Size - e.PulledBytes),
		})
	}
	landed, known := 0, true
	var rate float64
	var longest time.Duration
	for i := range e.Destinations {
		d := &e.Destinations[i]
		r := b.destination(e, d, now)
		f.rows = append(f.rows, r)
		switch d.State {
		case api.StateLanded:
			landed++
		case api.StateFailed, api.StateCancelled:
		default:
			rate += r.rate
			longest = max(longest, r.left)
			known = known && r.left > 0
		}
	}
	if e.Ended() {
		return f // conclude says the rest
	}
	f.foot = fmt.Sprintf("%d of %d landed", landed, len(e.Destinations))
	if rate >= 1 {
		f.foot += fmt.Sprintf(", %s/s", command.FormatSize(int64(rate)))
	}
	if known && longest > 0 {
		f.foot += fmt.Sprintf(", %s left", formatTime(longest))
	}
	return f
}

// destination makes a row. Half of the bar is the download and half the landing,
// which goes beside it; the rate is the build's way through both, so that it
// agrees with the time left.
func (b *executionBars) destination(e *api.Execution, d *api.Destination, now time.Time) row {
	m := b.meters[d.Bucket]
	if m == nil {
		m = new(meter)
		b.meters[d.Bucket] = m
	}
	r := row{name: d.Bucket, done: d.VerifiedBytes + d.LandedBytes, total: 2 * max(e.Size, 1), state: command.Plain(d.State)}
	m.add(now, r.done)
	switch d.State {
	case api.StateLanded:
		r.done, r.settled, r.colour = r.total, true, green
		r.text, r.short = fmt.Sprintf("landed in %.1f s", d.Seconds), "landed"
	case api.StateFailed:
		r.text, r.colour = "failed", red
	case api.StateCancelled:
		r.text, r.colour = "cancelled", red
	case api.StateUnserved:
		r.text, r.short = "no member serves it", "unserved"
		if strings.Contains(d.Error, api.Distrust) {
			r.text, r.short = "does not trust this seeder", "distrust"
		}
	case api.StateDownloading, api.StateLanding:
		r.rate, r.left = m.rate/2, m.left(r.total-r.done)
		if d.State == api.StateLanding && d.LandedBytes >= e.Size {
			r.text = landing(e, d)
		}
	}
	return r
}

// conclude says below the bars why what has failed has failed, and how it went.
func conclude(s *screen, e *api.Execution) {
	for _, d := range e.Destinations {
		if d.State == api.StateFailed {
			s.say(red, command.Plain(d.Bucket)+": failed: "+command.Plain(d.Error))
		}
		if d.State == api.StateCancelled {
			s.say(red, command.Plain(d.Bucket)+": "+command.Plain(d.Error))
		}
	}
	if e.Error != "" {
		s.say(red, "error: "+command.Plain(e.Error))
	}
	c := green
	if landed(e) < len(e.Destinations) {
		c = red
	}
	s.say(c, strings.Split(summary(e), ", ")...)
}

// summary is how an execution that has ended went: how many regions have the
// build, after how long, and at which rate all of them together got it.
func summary(e *api.Execution) string {
	n := landed(e)
	text := fmt.Sprintf("%d of %d regions landed", n, len(e.Destinations))
	if e.CompletedAt == nil {
		return text
	}
	took := max(e.CompletedAt.Sub(e.StartTime), time.Millisecond)
	text += " in " + formatElapsed(took)
	if rate := int64(float64(e.Size) * float64(n) / took.Seconds()); rate > 0 {
		text += ", " + command.FormatSize(rate) + "/s"
	}
	return text
}

func landed(e *api.Execution) int {
	n := 0
	for _, d := range e.Destinations {
		if d.State == api.StateLanded {
			n++
		}
	}
	return n
}

// listBars shows a bar for each execution of a page.
type listBars struct {
	screen *screen
	meters map[string]*meter
	last   frame
}

func (b *listBars) update(page *api.Executions, now time.Time) {
	if b.meters == nil {
		b.meters = make(map[string]*meter)
	}
	f := frame{foot: fmt.Sprintf("%d executions; Ctrl-C ends this", len(page.Executions))}
	for i := range page.Executions {
		f.rows = append(f.rows, b.execution(&page.Executions[i], now))
	}
	if len(page.Executions) == 0 {
		f.foot = "nothing has been distributed yet"
	}
	f.head = unserved(page)
	b.last = f
	b.screen.draw(f)
}

func (b *listBars) execution(e *api.Execution, now time.Time) row {
	m := b.meters[e.ExecutionID]
	if m == nil {
		m = new(meter)
		b.meters[e.ExecutionID] = m
	}
	r := row{name: e.Key, total: 2 * max(e.Size, 1) * int64(max(len(e.Destinations), 1)), state: command.Plain(e.Phase)}
	for _, d := range e.Destinations {
		if d.State == api.StateLanded {
			r.done += 2 * max(e.Size, 1)
		} else {
			r.done += d.VerifiedBytes + d.LandedBytes
		}
	}
	m.add(now, r.done)
	of := fmt.Sprintf("%d of %d landed", landed(e), len(e.Destinations))
	switch {
	case e.Status == "COMPLETED":
		r.text, r.short, r.colour, r.settled = of, "landed", green, true
	case e.Status == "CANCELLED":
		r.text, r.short, r.colour, r.settled = "cancelled, "+of, "cancelled", red, true
	case e.Ended():
		r.text, r.short, r.colour, r.settled = "failed, "+of, "failed", red, true
	case e.Phase == api.PhaseDistributing:
		r.state = fmt.Sprintf("%d of %d", landed(e), len(e.Destinations))
		r.rate, r.left = m.rate/2, m.left(r.total-r.done)
	}
	return r
}

func (b *listBars) trouble(error) {
	f := b.last
	f.foot = "the seeder does not answer; asking again"
	b.screen.draw(f)
}

// listLines prints a line for each change of an execution's phase or status, or of
// how many have landed.
type listLines struct {
	w        io.Writer
	last     map[string]string
	unserved []string
}

func (l *listLines) update(page *api.Executions, _ time.Time) {
	if l.last == nil {
		l.last = make(map[string]string)
	}
	if lines := unserved(page); !slices.Equal(lines, l.unserved) {
		l.unserved = lines
		for _, line := range lines {
			fmt.Fprintln(l.w, line)
		}
		if len(lines) == 0 {
			fmt.Fprintln(l.w, "each destination has an agent")
		}
	}
	for i := len(page.Executions) - 1; i >= 0; i-- { // the newest last
		e := &page.Executions[i]
		is := fmt.Sprintf("%s, %d of %d landed", phrase(e), landed(e), len(e.Destinations))
		if change := fmt.Sprint(e.Status, e.Phase, landed(e)); l.last[e.ExecutionID] != change {
			l.last[e.ExecutionID] = change
			fmt.Fprintf(l.w, "%s %s: %s\n", command.Plain(e.ExecutionID), command.Plain(e.Key), is)
		}
	}
}

func (*listLines) trouble(error) {}
