package swarm

import (
	"context"
	"net"
	"time"
)

// silentAge is how long a connection that a peer has made may say nothing: some longer
// than who keeps it to spare does keep it, so that it is his to close.
const silentAge = spareAge + 15*time.Second

// listener hands the engine the connections it may have, each when its first bytes are
// here: the engine closes one that is silent for four seconds.
type listener struct {
	net.Listener
	swarm  *Swarm
	wrap   func(net.Conn) net.Conn // nil for none
	spoken chan net.Conn
	ended  chan struct{} // closed when nothing more is accepted
}

// Accept returns an error only once the engine has ended: it would ask again at once, for
// ever.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.spoken:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

// run accepts connections until the Swarm ends.
func (l *listener) run() {
	defer close(l.ended)
	for {
		conn, err := l.Listener.Accept()
		if err == nil {
			l.accepted(conn)
			continue
		}
		if l.swarm.ctx.Err() != nil {
			return
		}
		select {
		case <-l.swarm.ctx.Done():
		case <-time.After(acceptPause):
		}
	}
}

// accepted has a place for a connection until it speaks.
func (l *listener) accepted(conn net.Conn) {
	s := l.swarm
	allowed := s.allows(addrOf(conn))
	if !allowed && s.cfg.Member == nil {
		s.counts.turnedAway.Add(1)
		conn.Close()
		return
	}
	w := s.watch(conn, [20]byte{}, conn.RemoteAddr().String())
	w.inbound, w.allowed = true, allowed
	if out := s.doors.wait(w); out != nil {
		s.counts.turnedAway.Add(1)
		s.warnSilent(out)
		out.Close()
	}
	if !s.alongside(func() { l.listen(w) }) {
		w.Close()
	}
}

// listen waits for the first bytes, and passes the connection on with them.
func (l *listener) listen(w *watched) {
	stop := context.AfterFunc(l.swarm.ctx, func() { w.Close() })
	_ = w.SetReadDeadline(time.Now().Add(l.swarm.patience.silence)) // an error shows in Read
	first := make([]byte, handshakeLength)
	n, _ := w.Conn.Read(first)
	if n == 0 || !stop() || w.SetReadDeadline(time.Time{}) != nil {
		w.Close()
		return
	}
	w.early = first[:n]
	if out := l.swarm.doors.enter(w); out != nil {
		l.swarm.counts.turnedAway.Add(1)
		l.swarm.warnGreeting(out)
		out.Close()
		if out == w {
			return
		}
	}
	var c net.Conn = w
	if l.wrap != nil {
		c = l.wrap(w)
	}
	select {
	case l.spoken <- c:
	case <-l.ended:
		c.Close()
	}
}
