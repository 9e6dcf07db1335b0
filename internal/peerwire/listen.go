package peerwire

import (
	"context"
	"net"
	"time"
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
	c := w.watch(conn, [20]byte{}, remote)
	c.inbound, c.allowed = true, allowed
	if out := w.doors.wait(c); out != nil {
		w.Counts.TurnedAway.Add(1)
		w.warnSilent(out)
		out.Close()
	}
	if !w.cfg.Alongside(func() { w.listen(c) }) {
		c.Close()
	}
}

// listen waits for the first bytes, and passes the connection on with them.
func (w *Wire) listen(c *Conn) {
	stop := context.AfterFunc(w.ctx, func() { c.Close() })
	_ = c.SetReadDeadline(time.Now().Add(w.cfg.Silence)) // an error shows in Read
	first := make([]byte, handshakeLength)
	n, _ := c.Conn.Read(first)
	if n == 0 || !stop() || c.SetReadDeadline(time.Time{}) != nil {
		c.Close()
		return
	}
	c.early = first[:n]
	if out := w.doors.enter(c); out != nil {
		w.Counts.TurnedAway.Add(1)
		w.warnGreeting(out)
		out.Close()
		if out == c {
			return
		}
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
