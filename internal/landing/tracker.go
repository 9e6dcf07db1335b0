package landing

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// partState is where a part is on its way into the bucket.
type partState uint8

const (
	waiting partState = iota // not handed out; ready when no piece is missing
	sending                  // handed out by Next
	landed                   // in the upload
)

// Tracker is the bookkeeping between pieces and parts: which parts are whole,
// which were handed out to be uploaded, which have landed. It is safe for
// concurrent use. No method but Next waits for anything.
type Tracker struct {
	m manifest.Shape

	mu       sync.Mutex
	verified []bool // by piece
	// complete is when the last of the pieces was verified; of no meaning while
	// some of them, which unverified counts, are not.
	complete   time.Time
	unverified int
	missing    []int // by part: pieces not verified
	state      []partState
	refusals   []uint8 // by part: how often S3 refused it
	unlanded   int     // parts
	bytes      int64   // of landed parts
	// low is at or below the lowest waiting part, so that finding the next one
	// does not pass over all that has landed before.
	low int
	// changed is closed when somebody who waits in Next should look again; nil
	// when nobody does.
	changed chan struct{}
}

// NewTracker begins with no piece verified.
func NewTracker(m manifest.Shape) *Tracker {
	t := &Tracker{
		m:          m,
		verified:   make([]bool, m.NumPieces()),
		unverified: m.NumPieces(),
		missing:    make([]int, m.NumParts()),
		state:      make([]partState, m.NumParts()),
		refusals:   make([]uint8, m.NumParts()),
		unlanded:   m.NumParts(),
	}
	for part := range t.missing {
		first, end := m.PartPieces(part)
		t.missing[part] = end - first
	}
	return t
}

// Verified notes that a piece is on disk and has its hash. It never blocks, so
// the torrent engine may call it under its locks; a repetition changes nothing.
func (t *Tracker) Verified(piece int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.verified[piece] {
		return
	}
	t.verified[piece] = true
	if t.unverified--; t.unverified == 0 {
		t.complete = time.Now()
	}
	part := t.m.PartOf(piece)
	if t.missing[part]--; t.missing[part] == 0 && t.state[part] == waiting {
		t.wake()
	}
}

// Invalid notes that a verified piece was found bad. Its part is not ready any
// more, unless it has landed already: S3 checked what it took.
func (t *Tracker) Invalid(piece int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.verified[piece] {
		t.verified[piece] = false
		t.unverified++
		t.missing[t.m.PartOf(piece)]++
	}
}

// Skip notes that a part is in the upload already: it is never handed out.
func (t *Tracker) Skip(part int) { t.Landed(part) }

// Next hands out the lowest part that is ready and was not handed out yet. It
// waits for one, or for the end of ctx; when all parts have landed, so that none
// can come back by Requeue either, it returns io.EOF.
func (t *Tracker) Next(ctx context.Context) (part int, err error) {
	for ctx.Err() == nil {
		part, changed, err := t.next()
		if changed == nil {
			return part, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return 0, ctx.Err()
}

// next returns a part, or io.EOF, or a channel to wait for.
func (t *Tracker) next() (part int, changed <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.unlanded == 0 {
		return 0, nil, io.EOF
	}
	for t.low < len(t.state) && t.state[t.low] != waiting {
		t.low++
	}
	for part := t.low; part < len(t.state); part++ {
		if t.state[part] == waiting && t.missing[part] == 0 {
			t.state[part] = sending
			return part, nil, nil
		}
	}
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return 0, t.changed, nil
}

// Landed notes that a part is in the upload.
func (t *Tracker) Landed(part int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state[part] == landed {
		return
	}
	t.state[part] = landed
	_, length := t.m.PartRange(part)
	t.bytes += length
	if t.unlanded--; t.unlanded == 0 {
		t.wake()
	}
}

// Requeue gives back a part that Next handed out and that did not land.
func (t *Tracker) Requeue(part int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state[part] != sending {
		return
	}
	t.state[part] = waiting
	t.low = min(t.low, part)
	t.wake()
}

// refused notes that S3 has refused a part; false when that has been too often.
func (t *Tracker) refused(part int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refusals[part] == maxDamaged {
		return false
	}
	t.refusals[part]++
	return true
}

// reset forgets what has landed or was handed out, for a new upload; what is
// verified stays so.
func (t *Tracker) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.state)
	t.low, t.bytes, t.unlanded = 0, 0, len(t.state)
	t.wake()
}

// Window returns the first n parts that are not whole: the ones to download
// first. A part that is in the upload counts as whole.
func (t *Tracker) Window(n int) []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	var parts []int
	for part := range t.state {
		if len(parts) == n {
			break
		}
		if !t.whole(part) {
			parts = append(parts, part)
		}
	}
	return parts
}

// Whole reports whether the landing needs no further piece.
func (t *Tracker) Whole() bool { return len(t.Window(1)) == 0 }

func (t *Tracker) whole(part int) bool { return t.missing[part] == 0 || t.state[part] == landed }

// completeAt is when the last piece was verified; a part that S3 has already may
// have lost some since.
func (t *Tracker) completeAt() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.complete
}

// LandedBytes is the length of all parts in the upload, in bytes.
func (t *Tracker) LandedBytes() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bytes
}

// wake is called with the lock held.
func (t *Tracker) wake() {
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}
