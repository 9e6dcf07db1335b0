package terminal

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
)

// refresh is how often the bar of an upload is drawn.
const refresh = 150 * time.Millisecond

// Upload is a body that is read, and shown meanwhile: a bar on a terminal, and a line every
// stillEvery anywhere else. Its build is distributed while it goes up, where the seeder
// can: the regions' bars stand below its own, and follow it. An HTTP client may still read
// it when it has its answer.
type Upload struct {
	w    io.Writer
	form Form
	body io.Reader
	name string
	size int64
	stop func() // ends what runs beside

	mu     sync.Mutex
	screen *screen // nil when it is over, or there is none
	bars   *executionBars
	lines  *executionLines // nil on a terminal
	read   int64
	before int64 // what was read when a line last said so
	meter  meter
	shown  time.Time
	// regions is how the build's destinations stand, below the upload.
	regions frame
}

// NewUpload begins to show how a body of size bytes is read. get asks for the execution that
// distributes it meanwhile; its errors, as long as there is none, show nothing. Call Done
// once, when the body has been read, or will not be.
func NewUpload(w io.Writer, form Form, name string, body io.Reader, size int64, interval time.Duration, get func(context.Context) (*api.Execution, error)) *Upload {
	u := &Upload{w: w, form: form, body: body, name: name, size: size, stop: func() {}}
	if form != Live {
		return u
	}
	if IsTerminal(w) {
		u.screen = newScreen(w)
		u.bars = newExecutionBars(u.screen)
	} else {
		u.lines = newExecutionLines(w)
		u.lines.uploading = true
	}
	if size == 0 {
		u.screen = nil
		return u
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopAsking := every(interval, func(time.Time) {
		if e, err := ask(ctx, get); err == nil {
			u.distributed(e, time.Now())
		}
	})
	again, tick := u.redraw, time.Second
	if u.screen == nil {
		again, tick = u.line, stillEvery
	}
	stopShowing := every(tick, again)
	u.stop = func() {
		cancel()
		stopAsking()
		stopShowing()
	}
	return u
}

func (u *Upload) Read(b []byte) (int, error) {
	n, err := u.body.Read(b)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.read += int64(n)
	if now := time.Now(); now.Sub(u.shown) >= refresh || u.read >= u.size {
		u.show(now, "the seeder stores it", "storing")
	}
	return n, err
}

// distributed takes in how the build's execution stands.
func (u *Upload) distributed(e *api.Execution, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.lines != nil {
		u.lines.update(e, now)
		return
	}
	u.regions = u.bars.frame(e, now)
	if comes(e) && !e.Ended() {
		u.regions.rows = u.regions.rows[1:] // which is the upload's own
	}
	u.show(now, "the seeder stores it", "storing")
}

// redraw is for when nothing is read: the time left becomes unknown.
func (u *Upload) redraw(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.show(now, "the seeder stores it", "storing")
}

// Done says that the body has been read, or will not be.
func (u *Upload) Done() {
	u.stop()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.regions = frame{} // Follow shows them below
	u.show(time.Now(), "uploaded", "uploaded")
	u.screen = nil
}

// Follow is Follow for the execution of the upload: in a pipe it does not say again what
// was said while it went up.
func (u *Upload) Follow(ctx context.Context, interval time.Duration, get func(context.Context) (*api.Execution, error)) (*api.Execution, error) {
	if u.lines != nil {
		u.lines.uploading = false
	}
	return follow(ctx, u.w, u.form, interval, get, u.lines)
}

// show draws the bar; the texts are for when all has been read.
func (u *Upload) show(now time.Time, text, short string) {
	if u.screen == nil {
		return
	}
	u.shown = now
	u.meter.add(now, u.read)
	r := row{
		name: "uploading " + u.name, fixed: true, done: u.read, total: u.size,
		rate: u.meter.rate, left: u.meter.left(u.size - u.read),
	}
	if u.read >= u.size {
		r.text, r.short = text, short
	}
	f := u.regions
	f.rows = append([]row{r}, f.rows...)
	u.screen.draw(f)
}

// line says how far it is.
func (u *Upload) line(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.read >= u.size {
		u.lines.say(now, "uploading %s: all is sent, the seeder stores it", u.name)
		return
	}
	rate := (u.read - u.before) / int64(stillEvery/time.Second)
	u.before = u.read
	u.lines.say(now, "uploading %s: %s of %s, %s/s", u.name, percent(u.read, u.size), command.FormatSize(u.size), command.FormatSize(rate))
}

// every calls f again and again until stop, which waits for it.
func every(interval time.Duration, f func(now time.Time)) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-end:
				return
			case now := <-ticker.C:
				f(now)
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}
