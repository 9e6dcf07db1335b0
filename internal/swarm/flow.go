package swarm

import (
	"time"

	"github.com/anacrolix/torrent"
)

const (
	// fewest is how many pieces are asked for at a time however slowly they come.
	fewest = 4
	// enough is how many peers of a segment are connected to then: 63 of four segments, and
	// those that gave up again, took a third of a link of 0.5 Mbit/s.
	enough = 8
)

// flow sees when more is asked for than the own link brings. Each peer sends as if it were
// alone: what all of them have sent at once waits before a slow link, until TCP takes it
// for lost and its connections for dead, and what had come of the chunks is thrown away.
// Then only so much is asked for at a time as comes in two thirds of patience.behind.
type flow struct {
	received int64 // in all, in bytes
	marks    []mark
	narrowed bool
}

// mark is what had been received at a time, and what was asked for and had not come.
type mark struct {
	at       time.Time
	received int64
	asked    int64
}

// note takes what came since the last call, and what is asked for now, in bytes. It
// returns how many bytes may be asked for at a time; ok is false for any number.
func (f *flow) note(behind time.Duration, now time.Time, came, asked int64) (most int64, ok bool) {
	f.received += came
	f.marks = append(f.marks, mark{now, f.received, asked})
	for len(f.marks) > 1 && now.Sub(f.marks[1].at) >= behind {
		f.marks = f.marks[1:]
	}
	first := f.marks[0]
	since, elapsed := f.received-first.received, now.Sub(first.at)
	switch {
	case elapsed < behind:
		return 0, false // so long nothing is said of it
	case since == 0:
		f.narrowed = false // the link is down, or nobody has anything: that tells nothing of its rate
	case first.asked > since:
		f.narrowed = true
	case asked == 0:
		f.narrowed = false
	}
	return int64(float64(since) * (behind.Seconds() * 2 / 3) / elapsed.Seconds()), f.narrowed
}

// setGrace has no peer asked for what another one is about to send, be it by a slow link.
// It is called under the engine's lock.
func (s *Swarm) setGrace() {
	grace := stealGrace
	if s.narrowed.Load() {
		grace = s.patience.behind
	}
	s.engineConfig.StealRequestGrace = grace
}

// ask has no more pieces asked for at a time than come soon, of the segments that were
// asked for first. asked are the chunks that the engine waits for.
func (s *Swarm) ask(now time.Time, came int64, asked map[*torrent.Torrent]map[int]bool) {
	var bytes, piece int64 // whole pieces: where one is several chunks it is an upper bound
	for t, pieces := range asked {
		if of, ok := s.byEngine.Load(t); ok {
			piece = max(piece, of.(*Torrent).fetch.Shape.PieceLength)
			bytes += int64(len(pieces)) * of.(*Torrent).fetch.Shape.PieceLength
		}
	}
	most, narrowed := s.flow.note(s.patience.behind, now, came, bytes)
	if narrowed && !s.narrowed.Swap(narrowed) {
		if omitted, due := s.notices.Pass("flow"); due {
			s.cfg.Logger.Info("more was asked for than comes in, less is asked for at a time", "bytes", most, "omitted", omitted)
		}
	}
	s.narrowed.Store(narrowed)
	room := 0
	if piece > 0 {
		room = max(fewest, int(most/piece))
	}
	for _, t := range s.openings.all() {
		t.mu.Lock()
		w, engine, held := t.wanted, t.engine(), t.held
		t.mu.Unlock()
		switch {
		case w == nil || engine == nil || t.Done():
		case !narrowed:
			w.widen()
		case piece > 0 && !held: // nothing is asked for of one that is held
			room -= w.narrow(max(0, room), asked[engine])
		}
	}
}
