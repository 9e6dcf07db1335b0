package fleet

import (
	"slices"
	"sync"

	"github.com/landfall-dist/landfall/internal/hostwire"
)

// maxWaiting bounds the messages that wait for one host. A later one of a name takes the
// place of an earlier one, so that there are as many as services, builds and their
// segments: a host that lets more come together reads nothing.
const maxWaiting = 512

// outbox has what waits to be sent to one host. The messages' bytes are shared by all hosts
// that get them. There is a goroutine that sends while there is something to send: thousands
// of hosts hear nothing for most of the time.
type outbox struct {
	stream stream

	mu      sync.Mutex // held for a few lines
	waiting []letter
	sending bool // the goroutine is there
	closed  bool
	senders sync.WaitGroup
}

// stream is what an outbox needs of one.
type stream interface {
	SendEncoded(hostwire.Encoded) error
	// Abort ends it for a reason.
	Abort(why error)
}

type letter struct {
	name    string
	message hostwire.Encoded
}

// put leaves a message, in the place of one of that name. It reports whether there was
// room. It does not wait.
func (o *outbox) put(name string, message hostwire.Encoded) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return true
	}
	// At the end: a leave is for the goal that was sent before it.
	o.waiting = slices.DeleteFunc(o.waiting, func(l letter) bool { return l.name == name })
	if len(o.waiting) >= maxWaiting {
		return false
	}
	o.waiting = append(o.waiting, letter{name, message})
	if !o.sending {
		o.sending = true
		o.senders.Go(o.send)
	}
	return true
}

// close ends the stream for a reason. It does not wait.
func (o *outbox) close(why error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	o.closed, o.waiting = true, nil
	o.senders.Go(func() { o.stream.Abort(why) })
}

// end is close, and waits until nobody sends any more.
func (o *outbox) end(why error) {
	o.close(why)
	o.senders.Wait()
}

func (o *outbox) send() {
	for {
		o.mu.Lock()
		letters := o.waiting
		o.waiting = nil
		o.sending = len(letters) > 0
		o.mu.Unlock()
		if len(letters) == 0 {
			return
		}
		for _, l := range letters {
			if err := o.stream.SendEncoded(l.message); err != nil {
				o.close(err)
				return
			}
		}
	}
}
