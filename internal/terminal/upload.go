package terminal

import (
	"io"
	"sync"
	"time"
)

// refresh is how often the bar of an upload is drawn.
const refresh = 150 * time.Millisecond

// Upload shows how a body of size bytes is read, on a terminal, and nothing anywhere
// else. Call done when it has been read, or will not be.
func Upload(w io.Writer, form Form, name string, body io.Reader, size int64) (_ io.Reader, done func()) {
	if form != Live || !IsTerminal(w) || size == 0 {
		return body, func() {}
	}
	u := &upload{body: body, screen: newScreen(w), name: name, size: size}
	return u, u.end
}

// upload is the body. An HTTP client may still read it when it has its answer.
type upload struct {
	body io.Reader
	name string
	size int64

	mu     sync.Mutex
	screen *screen // nil when it is over
	read   int64
	meter  meter
	shown  time.Time
}

func (u *upload) Read(b []byte) (int, error) {
	n, err := u.body.Read(b)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.read += int64(n)
	if now := time.Now(); now.Sub(u.shown) >= refresh {
		u.show(now)
	}
	return n, err
}

func (u *upload) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.show(time.Now())
	u.screen = nil
}

func (u *upload) show(now time.Time) {
	if u.screen == nil {
		return
	}
	u.shown = now
	u.meter.add(now, u.read)
	u.screen.draw(frame{rows: []row{{
		name: "uploading " + u.name, done: u.read, total: u.size,
		rate: u.meter.rate, left: u.meter.left(u.size - u.read),
	}}})
}
