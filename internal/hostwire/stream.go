package hostwire

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

// ErrLost says that the other side was silent for LostAfter, or took nothing for as long.
var ErrLost = errors.New("nothing came from the other side of a fleet's stream in time")

// timing is how often a side says that it is there, and how long the other may be silent.
type timing struct{ ping, lost time.Duration }

var usualTiming = timing{PingInterval, LostAfter}

// Stream is one end of a stream. Send may be called from several goroutines, Receive from
// one. Both ends say that they are there, and a side that is silent ends the stream, without
// anyone calling for that.
type Stream struct {
	// Remote is where the other end's connection comes from.
	Remote netip.AddrPort
	// Peer is who the other end is by its certificate; the zero value without TLS.
	Peer identity.Peer

	timing timing
	body   io.Reader
	// write sends a frame and flushes it, end breaks the stream off: what waits then fails,
	// and hangUp says that no more will be sent.
	write  func([]byte) error
	end    func()
	hangUp func()

	writing      sync.Mutex // of frames; held over the network by who sends
	reading      sync.Mutex // held over the network by who receives
	timers       sync.Mutex // held for a few lines
	silent, ping *time.Timer
	over         sync.Once
	ended        atomic.Pointer[error] // why
	counters     *Counters             // nil for nobody
	recipes      recipes               // of who receives
	pace         func(bytes int)       // called for each message that has come; nil for no limit
}

// begin has the stream watched.
func (s *Stream) begin() {
	s.timers.Lock()
	defer s.timers.Unlock()
	s.silent = time.AfterFunc(s.timing.lost, func() { s.fail(ErrLost) })
	s.ping = time.AfterFunc(s.timing.ping, s.pings)
}

// again has one of the timers begin anew, unless the stream has ended.
func (s *Stream) again(timer **time.Timer, d time.Duration) {
	s.timers.Lock()
	defer s.timers.Unlock()
	if s.Err() == nil {
		(*timer).Reset(d)
	}
}

// finish notes why the stream has ended; nobody watches it any more.
func (s *Stream) finish(why error) {
	s.ended.Store(&why)
	s.timers.Lock()
	defer s.timers.Unlock()
	s.silent.Stop()
	s.ping.Stop()
}

var encodedPing = func() Encoded {
	e, err := Encode(&Ping{})
	if err != nil {
		panic(err)
	}
	return e
}()

func (s *Stream) pings() {
	if s.SendEncoded(encodedPing) == nil {
		s.again(&s.ping, s.timing.ping)
	}
}

// fail breaks the stream off; the first reason stays.
func (s *Stream) fail(err error) {
	s.over.Do(func() {
		s.finish(err)
		s.end()
	})
}

// Err is why the stream has ended; nil while it lives. It is io.EOF after an orderly end.
func (s *Stream) Err() error {
	if err := s.ended.Load(); err != nil {
		return *err
	}
	return nil
}

// Send sends a message. It waits while the other side takes nothing, until that is lost.
func (s *Stream) Send(m Message) error {
	e, err := Encode(m)
	if err != nil {
		return err
	}
	return s.SendEncoded(e)
}

// SendEncoded is Send.
func (s *Stream) SendEncoded(e Encoded) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.Err(); err != nil {
		return err
	}
	late := time.AfterFunc(s.timing.lost, func() { s.fail(ErrLost) })
	err := s.write(e)
	late.Stop()
	if err != nil {
		s.fail(fmt.Errorf("sending over a fleet's stream: %w", err))
		return s.Err()
	}
	s.counters.out(e)
	return nil
}

// Receive returns the next message, but no pings and none of a kind that this version does
// not know. The error is io.EOF when the other side has ended the stream in order, and wraps
// ErrInvalid for what is no message; there is nothing after an error.
func (s *Stream) Receive() (Message, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	for {
		m, n, err := Read(s.body)
		if err != nil {
			s.fail(err)
			return nil, s.Err()
		}
		s.again(&s.silent, s.timing.lost)
		s.counters.in(m, n)
		if s.pace != nil {
			s.pace(n)
		}
		switch got := m.(type) {
		case nil, *Ping:
			continue
		case *Recipe:
			if m, err = s.recipes.add(got); err != nil {
				s.fail(err)
				return nil, s.Err()
			}
		}
		return m, nil
	}
}

// Abort breaks the stream off: Receive and Send return why. It does not wait.
func (s *Stream) Abort(why error) { s.fail(why) }

// Close ends the stream in order: the other side receives io.EOF.
func (s *Stream) Close() {
	s.hangUp()
	s.fail(io.EOF)
}
