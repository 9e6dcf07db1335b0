package swarm

import (
	"net"
	"sync/atomic"
	"time"
)

// smallMessage is what passes a limit without waiting, in bytes, and is counted: a
// handshake, a request, a Have. Held back for a second they would cost whole pieces.
const smallMessage = 512

// heldBack is how long a connection was not read, since the limit did not allow it.
type heldBack struct {
	total atomic.Int64 // nanoseconds
	since atomic.Int64 // Unix nanoseconds; 0 when it is read
}

// until is the time up to now. One wait may be counted a moment too late.
func (h *heldBack) until(now time.Time) time.Duration {
	total := h.total.Load()
	if since := h.since.Load(); since != 0 {
		total += max(0, now.UnixNano()-since)
	}
	return time.Duration(total)
}

// afford waits for what was read before, and returns how much of b is to be read now.
// The peer's bytes wait in the sockets meanwhile, and then at the peer.
func (w *watched) afford(b []byte) ([]byte, error) {
	limit := w.swarm.cfg.Download
	if w.owed > 0 {
		begun := time.Now()
		w.heldBack.since.Store(begun.UnixNano())
		passed := limit.Wait(w.gone, w.owed)
		w.heldBack.total.Add(int64(time.Since(begun)))
		w.heldBack.since.Store(0)
		if w.owed = 0; !passed {
			return nil, net.ErrClosed
		}
	}
	return b[:min(len(b), limit.Slice())], nil
}

// owe notes what was read.
func (w *watched) owe(n int) {
	switch limit := w.swarm.cfg.Download; {
	case limit.Rate() == 0:
	case n <= smallMessage || w.key.Load() == nil:
		limit.Charge(n)
	default:
		w.owed = n
	}
}

// writeWithin writes a slice at a time, as the limit allows.
func (w *watched) writeWithin(b []byte) (int, error) {
	limit, written := w.swarm.cfg.Upload, 0
	for {
		part := b[written:]
		if len(b) <= smallMessage {
			limit.Charge(len(b))
		} else {
			part = part[:min(len(part), limit.Slice())]
			if !limit.Wait(w.gone, len(part)) {
				return written, net.ErrClosed
			}
		}
		n, err := w.Conn.Write(part)
		w.written.Add(int64(n))
		if written += n; err != nil || written == len(b) {
			return written, err
		}
	}
}

// Arriving reports whether bytes of the build came from a peer after a time, whole chunks
// or not, or wait to be read since the limit does not allow more: then nothing is stuck,
// however long the next piece takes.
func (t *Torrent) Arriving(after time.Time) bool {
	arriving := false
	t.swarm.conns.Range(func(k, v any) bool {
		if w := v.(*watched); k.(connKey).infohash == t.fetch.InfoHash {
			arriving = w.content.Load() > after.UnixNano() || w.heldBack.since.Load() != 0
		}
		return !arriving
	})
	return arriving && !t.Done()
}
