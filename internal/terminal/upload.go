package terminal

import (
	"io"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/command"
)

// refresh is how often the bar of an upload is drawn.
const refresh = 150 * time.Millisecond

// Upload shows how a body of size bytes is read: a bar on a terminal, and a line every
// stillEvery anywhere else. Call done once, when it has been read, or will not be.
func Upload(w io.Writer, form Form, name string, body io.Reader, size int64) (_ io.Reader, done func()) {
	if form != Live || size == 0 {
		return body, func() {}
	}
	u := &upload{body: body, name: name, size: size}
	if IsTerminal(w) {
		u.screen = newScreen(w)
		stop := every(time.Second, u.redraw)
		return u, func() {
			stop()
			u.end()
		}
	}
	return u, every(stillEvery, u.line(lines{w: w}))
}

// upload is the body. An HTTP client may still read it when it has its answer.
type upload struct {
	body io.Reader
	name string
	size int64

	mu     sync.Mutex
	screen *screen // nil when it is over, or there is none
	read   int64
	meter  meter
	shown  time.Time
}

func (u *upload) Read(b []byte) (int, error) {
	n, err := u.body.Read(b)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.read += int64(n)
	if now := time.Now(); now.Sub(u.shown) >= refresh || u.read >= u.size {
		u.show(now, "the seeder stores it", "storing")
	}
	return n, err
}

// redraw is for when nothing is read: the time left becomes unknown.
func (u *upload) redraw(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.show(now, "the seeder stores it", "storing")
}

func (u *upload) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.show(time.Now(), "uploaded", "uploaded")
	u.screen = nil
}

// show draws the bar; the texts are for when all has been read.
func (u *upload) show(now time.Time, text, short string) {
	if u.screen == nil {
		return
	}
	u.shown = now
	u.meter.add(now, u.read)
	r := row{
		name: "uploading " + u.name, done: u.read, total: u.size,
		rate: u.meter.rate, left: u.meter.left(u.size - u.read),
	}
	if u.read >= u.size {
		r.text, r.short = text, short
	}
	u.screen.draw(frame{rows: []row{r}})
}

// line says how far it is.
func (u *upload) line(l lines) func(now time.Time) {
	var before int64
	return func(now time.Time) {
		u.mu.Lock()
		read := u.read
		u.mu.Unlock()
		if read >= u.size {
			l.say(now, "uploading %s: all is sent, the seeder stores it", u.name)
			return
		}
		rate := (read - before) / int64(stillEvery/time.Second)
		before = read
		l.say(now, "uploading %s: %s of %s, %s/s", u.name, percent(read, u.size), command.FormatSize(u.size), command.FormatSize(rate))
	}
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
