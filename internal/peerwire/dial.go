package peerwire

import (
	"context"
	"fmt"
	"net"
	"time"
)

// DialerNetwork is what the engine asks of who dials for it.
func (w *Wire) DialerNetwork() string { return "tcp" }

// Dial makes the engine a connection, unless who was named for the address is left alone.
// It takes a spare one where there is one.
func (w *Wire) Dial(ctx context.Context, addr string) (net.Conn, error) {
	id := w.conduct.at(addr)
	if w.Refused(id) {
		w.Counts.Spared.Add(1)
		return nil, fmt.Errorf("dialling %s: %w", addr, errLeftAlone)
	}
	l := w.spares.take(addr, time.Now())
	if l != nil {
		w.Counts.Ready.Add(1)
	} else {
		var err error
		if l, err = w.connect(ctx, id, addr); err != nil {
			return nil, err
		}
	}
	return w.watch(l, id, addr), nil
}

// connect dials whom was named for an address, and with TLS has it prove who it is.
func (w *Wire) connect(ctx context.Context, id [20]byte, addr string) (*link, error) {
	l, err := w.reach(ctx, id, addr)
	if err != nil {
		if ctx.Err() == nil {
			w.Counts.Unreached.Add(1)
			w.dialFailed(id, addr, err, time.Now())
		}
		return nil, err
	}
	w.Counts.Reached.Add(1)
	w.dialReached(id)
	return l, nil
}

func (w *Wire) reach(ctx context.Context, id [20]byte, addr string) (*link, error) {
	c, err := (&net.Dialer{Timeout: DialTimeout, LocalAddr: w.cfg.DialFrom}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	l := w.newLink(c)
	if w.speaksTLS(w.Member(id)) {
		if err := w.greetSecurely(ctx, l, w.expects(id)); err != nil {
			w.cfg.Identity.Count(err)
			l.Close()
			return nil, err
		}
	}
	return l, nil
}
