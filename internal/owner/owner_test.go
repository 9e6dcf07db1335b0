package owner

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine does what a function says and notes what it has heard.
type machine struct {
	heard []string
	do    func(e string)
	due   time.Time
	over  bool
}

func (m *machine) Hear(_ time.Time, e string) {
	m.heard = append(m.heard, e)
	if m.do != nil {
		m.do(e)
	}
}
func (m *machine) Due() time.Time { return m.due }
func (m *machine) Wake(now time.Time) {
	m.due = time.Time{}
	m.Hear(now, "woken")
}
func (m *machine) Over() bool { return m.over }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func fault(err error) string { return "fault" }

// Everything that is told before the end is heard once, in the order of who tells it.
func TestNothingIsLost(t *testing.T) {
	o := New[string](discard())
	m := &machine{}
	m.do = func(string) { m.over = len(m.heard) == 8*100 }
	var tellers sync.WaitGroup
	for i := range 8 {
		tellers.Go(func() {
			for range 100 {
				o.Tell(string(rune('a' + i)))
			}
		})
	}
	o.Run(t.Context(), m)
	tellers.Wait()
	slices.Sort(m.heard)
	for i := range 8 {
		if got := m.heard[i*100 : i*100+100]; got[0] != string(rune('a'+i)) || got[99] != got[0] {
			t.Errorf("teller %d was not heard 100 times", i)
		}
	}
}

// A worker reports, can be ended, and is awaited before Run returns; after a panic, too.
func TestWorkers(t *testing.T) {
	o := New[string](discard())
	m := &machine{}
	ended := false
	m.do = func(e string) {
		switch e {
		case "go":
			o.Work("panics", fault, func(context.Context) string { panic("on purpose") })
		case "fault":
			o.Work("waits", fault, func(ctx context.Context) string {
				o.Tell("waiting")
				<-ctx.Done()
				return "waited"
			})
		case "waiting":
			if !o.Works("waits") || o.Works("panics") || o.Idle() {
				t.Error("it is not known who works")
			}
			o.Cancel("waits")
			o.Cancel("nobody")
		case "waited":
			o.Work("stays", fault, func(ctx context.Context) string {
				<-ctx.Done()
				ended = true
				return "too late"
			})
			m.over = true
		}
	}
	o.Tell("go")
	o.Run(t.Context(), m)
	if want := []string{"go", "fault", "waiting", "waited"}; !slices.Equal(m.heard, want) || !ended {
		t.Errorf("heard %q, want %q; the last worker has ended: %v", m.heard, want, ended)
	}
}

// At the end of the process, what workers have to say last is still heard.
func TestEndOfProcess(t *testing.T) {
	o := New[string](discard())
	ctx, cancel := context.WithCancelCause(t.Context())
	m := &machine{}
	m.do = func(e string) {
		if e == "go" {
			o.Work("works", fault, func(ctx context.Context) string {
				cancel(errors.New("end"))
				<-ctx.Done()
				return "last word"
			})
		}
		if e == "last word" {
			o.Work("never begins", fault, func(ctx context.Context) string { panic("it begins") })
		}
	}
	o.Tell("go")
	o.Run(ctx, m)
	if want := []string{"go", "last word"}; !slices.Equal(m.heard, want) || !o.Idle() {
		t.Errorf("heard %q, want %q", m.heard, want)
	}
}

func TestWake(t *testing.T) {
	o := New[string](discard())
	m := &machine{due: time.Now()}
	m.do = func(string) { m.over = true }
	o.Run(t.Context(), m)
	if want := []string{"woken"}; !slices.Equal(m.heard, want) {
		t.Errorf("heard %q, want %q", m.heard, want)
	}
}

// What a machine with a fault has not heard can be given back.
func TestLeft(t *testing.T) {
	o := New[string](discard())
	m := &machine{}
	m.do = func(e string) {
		if e == "fault" {
			panic("on purpose")
		}
	}
	for _, e := range []string{"heard", "fault", "left", "left, too"} {
		o.Tell(e)
	}
	func() {
		defer func() { _ = recover() }()
		o.Run(t.Context(), m)
	}()
	if want := []string{"left", "left, too"}; !slices.Equal(o.Left(), want) || !o.Idle() {
		t.Errorf("heard %q, and %v is not left", m.heard, want)
	}
}
