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
	lines
	last map[string]string
	// uploading: how far the upload is, is said elsewhere.
	uploading bool
}

func newExecutionLines(w io.Writer) *executionLines {
	return &executionLines{lines: lines{w: w, who: "seeder"}}
}

func (l *executionLines) update(e *api.Execution, now time.Time) {
	if l.last == nil {
		l.last = make(map[string]string)
	}
	l.answered(now)
	for _, d := range e.Destinations {
		if is := stageOf(e, &d) + " " + d.Error; l.last[d.Bucket] != is {
			l.last[d.Bucket] = is
			l.say(now, "%s: %s", d.Bucket, describe(e, &d))
		}
	}
	if e.Ended() || l.uploading || now.Sub(l.said) < stillEvery {
		return
	}
	if comes(e) {
		what := "the seeder still pulls the build"
		if e.Phase == api.PhaseUploading {
			what = "the build is still going up"
		}
		l.say(now, "%s: %s", what, percent(e.PulledBytes, e.Size))
		return
	}
	for _, d := range e.Destinations {
		switch d.State {
		case api.StateLanded, api.StateFailed, api.StateCancelled:
		default:
			l.say(now, "%s: still %s", d.Bucket, describe(e, &d))
		}
	}
	if now.Sub(l.said) > 0 {
		l.say(now, "still %s, %d of %d landed", phrase(e), landed(e), len(e.Destinations))
	}
}

// describe says in a few words how a destination stands.
func describe(e *api.Execution, d *api.Destination) string {
	switch d.State {
	case api.StateLanded:
		return fmt.Sprintf("landed in %.1f s", d.Seconds)
	case api.StateDownloading:
		return fmt.Sprintf("downloading %s %s/s", verified(d.VerifiedBytes, e.Size, d.State), command.FormatSize(d.Rate))
	case api.StateLanding:
		if stage := stageOf(e, d); stage != d.State {
			return stage
		}
		return "landing " + percent(d.LandedBytes, e.Size)
	case api.StateQueued:
		switch e.Phase {
		case api.PhasePulling:
			return "the seeder pulls " + percent(e.PulledBytes, e.Size)
		case api.PhaseUploading:
			return "the build goes up " + percent(e.PulledBytes, e.Size)
		}
	}
	if d.Error != "" {
		return command.Plain(d.State) + ": " + command.Plain(d.Error)
	}
	return command.Plain(d.State)
}

// stageOf is a destination's state in a word.
func stageOf(e *api.Execution, d *api.Destination) string {
	return stage(d.State, d.LandedBytes, e.Size, d.Took != nil && d.Took.Recording > 0)
}

// stage is a state in a word: when all parts of a landing are up, S3 has to put them
// together, and the arrival has to be recorded.
func stage(state string, landed, size int64, recording bool) string {
	switch {
	case state != api.StateLanding || landed < size:
		return state
	case recording:
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

func (b *executionBars) trouble(error, time.Time) {
	f := b.last
	f.foot = "the seeder does not answer; asking again"
	b.screen.draw(f)
}

func (b *executionBars) frame(e *api.Execution, now time.Time) frame {
	var f frame
	if comes(e) && !e.Ended() {
		b.pull.add(now, e.PulledBytes)
		name := "seeder pulls"
		if e.Phase == api.PhaseUploading {
			name = "upload"
		}
		f.rows = append(f.rows, row{
			name: name, fixed: true, done: e.PulledBytes, total: e.Size,
			state: e.Phase, rate: b.pull.rate, left: b.pull.left(e.Size - e.PulledBytes),
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
		switch {
		case strings.Contains(d.Error, api.Distrust):
			r.text, r.short = "does not trust this seeder", "distrust"
		case strings.Contains(d.Error, api.OtherVersion):
			r.text, r.short = "agent of another version", "version"
		}
	case api.StateDownloading, api.StateLanding:
		r.rate, r.left = m.rate/2, m.left(r.total-r.done)
		if stage := stageOf(e, d); stage != d.State {
			r.text = stage
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
	r := row{name: e.Key, state: command.Plain(e.Phase)}
	r.done, r.total = way(e)
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

// way is how many bytes of how many an execution's destinations have downloaded and
// landed, each twice.
func way(e *api.Execution) (done, total int64) {
	each := 2 * max(e.Size, 1)
	for _, d := range e.Destinations {
		if d.State == api.StateLanded {
			done += each
		} else {
			done += d.VerifiedBytes + d.LandedBytes
		}
	}
	return done, each * int64(max(len(e.Destinations), 1))
}

func (b *listBars) trouble(error, time.Time) {
	f := b.last
	f.foot = "the seeder does not answer; asking again"
	b.screen.draw(f)
}

// listLines prints a line for each change of an execution's phase or status, or of
// how many have landed, and without any how those stand that are under way.
type listLines struct {
	lines
	last     map[string]string
	unserved []string
}

func (l *listLines) update(page *api.Executions, now time.Time) {
	l.answered(now)
	if l.last == nil {
		l.last = make(map[string]string)
		if len(page.Executions) == 0 {
			l.say(now, "nothing has been distributed yet")
		}
	}
	if none := unserved(page); !slices.Equal(none, l.unserved) {
		l.unserved = none
		for _, line := range none {
			l.say(now, "%s", line)
		}
		if len(none) == 0 {
			l.say(now, "each destination has an agent")
		}
	}
	for i := len(page.Executions) - 1; i >= 0; i-- { // the newest last
		e := &page.Executions[i]
		if change := fmt.Sprint(e.Status, e.Phase, landed(e)); l.last[e.ExecutionID] != change {
			l.last[e.ExecutionID] = change
			l.say(now, "%s %s: %s, %d of %d landed", e.ExecutionID, e.Key, phrase(e), landed(e), len(e.Destinations))
		}
	}
	quiet, busy := now.Sub(l.said), false
	for i := len(page.Executions) - 1; i >= 0; i-- {
		e := &page.Executions[i]
		busy = busy || !e.Ended()
		if quiet >= stillEvery && !e.Ended() {
			l.say(now, "%s %s: still %s, %s of all bytes, %d of %d landed",
				e.ExecutionID, e.Key, phrase(e), percent(way(e)), landed(e), len(e.Destinations))
		}
	}
	if quiet >= idleEvery && !busy {
		l.say(now, "nothing is under way")
	}
}
