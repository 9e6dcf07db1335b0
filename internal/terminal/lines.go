package terminal

import (
	"fmt"
	"io"
	"time"

	"github.com/landfall-dist/landfall/internal/command"
)

const (
	// stillEvery is how long a pipe hears nothing of what is under way, or does not
	// answer, before it is said how things stand.
	stillEvery = 15 * time.Second
	// idleEvery is the same where nothing is under way.
	idleEvery = time.Minute
)

// lines are what a pipe gets of something that changes.
type lines struct {
	w    io.Writer
	who  string    // answers: "seeder" or "agent"
	said time.Time // when the last line was printed
	lost bool      // there was no answer last time
}

// say prints a line; what comes from the network in it is made plain.
func (l *lines) say(now time.Time, format string, args ...any) {
	l.said = now
	fmt.Fprintln(l.w, command.Plain(fmt.Sprintf(format, args...)))
}

// answered says so, when it was said that there was no answer.
func (l *lines) answered(now time.Time) {
	if l.lost {
		l.lost = false
		l.say(now, "the %s answers again", l.who)
	}
}

func (l *lines) trouble(err error, now time.Time) {
	if l.lost && now.Sub(l.said) < stillEvery {
		return
	}
	l.lost = true
	l.say(now, "the %s does not answer, trying again: %v", l.who, err)
}
