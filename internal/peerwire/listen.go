package peerwire

import (
	"context"
	"net"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

const (
	// silentAge is how long a connection that a peer has made may say nothing: some longer
	// than who keeps it to spare does keep it, so that it is his to close.
	silentAge = spareAge + 15*time.Second
	// acceptPause is waited after a failed accept, such as one for lack of
	// file descriptors.
	acceptPause = 100 * time.Millisecond
)

// Listener hands the engine the connections it may have, each when its first bytes are
// here: the engine closes one that is silent for four seconds.
func (w *Wire) Listener() net.Listener { return listener{w.cfg.Listener, w} }

type listener struct {
	net.Listener
	wire *Wire
}

// Accept returns an error only once the Wire has ended: the engine would ask again at
// once, for ever.
func (l listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.wire.spoken:
		return c, nil
	case <-l.wire.ended:
		return nil, net.ErrClosed
	}
}

// accept takes connections until the Wire ends.
func (w *Wire) accept() {
	defer close(w.ended)
	for {
		conn, err := w.cfg.Listener.Accept()
		if err == nil {
			w.accepted(conn)
			continue
		}
		if w.ctx.Err() != nil {
			return
		}
		select {
		case <-w.ctx.Done():
		case <-time.After(acceptPause):
		}
	}
}

// accepted has a place for a connection until it speaks.
func (w *Wire) accepted(conn net.Conn) {
	remote := conn.RemoteAddr().String()
	allowed := w.allows(addrOf(remote))
	if !allowed && w.cfg.Member == nil {
		w.Counts.TurnedAway.Add(1)
		conn.Close()
		return
	}
	c := w.watch(w.newLink(conn), [20]byte{}, remote)
	c.inbound, c.allowed = true, allowed
	if !w.makeRoom(c, w.doors.wait(c), w.warnSilent) {
		return
	}
	if !w.cfg.Alongside(func() { w.listen(c) }) {
		c.Close()
	}
}

// listen waits for the first bytes, those within TLS where it is spoken, and passes the
// connection on with them.
func (w *Wire) listen(c *Conn) {
	stop := context.AfterFunc(w.ctx, func() { c.Close() })
	first := w.first(c)
	if w.cfg.Identity != nil && w.cfg.TLS != identity.Off && len(first) > 0 {
		first = w.identify(c, first)
	}
	if len(first) == 0 || !stop() || c.SetReadDeadline(time.Time{}) != nil {
		c.Close()
		return
	}
	c.early = first
	if !w.makeRoom(c, w.doors.enter(c), w.warnGreeting) {
		return
	}
	var engine net.Conn = c
	if w.cfg.Wrap != nil {
		engine = w.cfg.Wrap(c)
	}
	select {
	case w.spoken <- engine:
	case <-w.ended:
		engine.Close()
	}
}

// first waits for the first bytes of a connection; none when it ended.
func (w *Wire) first(c *Conn) []byte {
	_ = c.link.SetReadDeadline(time.Now().Add(w.cfg.Silence)) // an error shows in Read
	first := make([]byte, handshakeLength)
	n, _ := c.link.Read(first)
	return first[:n]
}

// identify has a peer show its certificate, and waits for what it says then. One that does
// not speak TLS may go on where there is a choice.
func (w *Wire) identify(c *Conn, first []byte) []byte {
	if first[0] != tlsRecord {
		if w.cfg.TLS == identity.Prefer {
			return first
		}
		w.turnAway(c, errNoTLS)
		return nil
	}
	if !w.doors.mayProve(c, time.Now()) {
		w.turnAway(c, errTooOften)
		return nil
	}
	if !w.makeRoom(c, w.doors.secure(c), w.warnSecuring) {
		return nil
	}
	_ = c.link.SetReadDeadline(time.Time{}) // the handshake has its own
	if err := w.answerSecurely(c.link, first); err != nil {
		w.doors.failed(c, time.Now())
		w.turnAway(c, err)
		return nil
	}
	if w.conduct.refused(c.who()) {
		w.doors.failed(c, time.Now())
		w.turnAway(c, errLeftAlone)
		return nil
	}
	w.Counts.Proven.Add(1)
	if !w.makeRoom(c, w.doors.wait(c), w.warnSilent) {
		return nil
	}
	return w.first(c)
}

// turnAway ends a connection whose peer does not show a certificate that holds.
func (w *Wire) turnAway(c *Conn, why error) {
	w.Counts.TurnedAway.Add(1)
	if w.ctx.Err() == nil {
		w.warnInsecure(c, why)
	}
	c.Close()
}

// makeRoom closes the connection that has to go for another, nil for none, and reports
// whether that is another.
func (w *Wire) makeRoom(c, out *Conn, warn func(*Conn)) bool {
	if out != nil {
		w.Counts.TurnedAway.Add(1)
		warn(out)
		out.Close()
	}
	return out != c
}
