package announce

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxActive bounds the announcements a member holds at once.
	maxActive = 20_000
	// maxEnded bounds the ended executions it remembers: a week of thousands a
	// day. Past it the oldest are forgotten; the table still knows them.
	maxEnded = 100_000
	// maxState bounds what push/pull carries in bytes, well below memberlist's
	// own limit of 20 MiB. Map order is random, so that over a few exchanges
	// everything gets through all the same.
	maxState = 8 << 20
	// tellEndsFor is how long push/pull carries a notice of an end to everyone.
	// Whoever was away for longer pushes his old announcement, and gets the
	// notice in reply.
	tellEndsFor = 10 * time.Minute
)

// ErrFull is returned by Book.Add when the book holds as much as it may.
var ErrFull = errors.New("too many announcements")

// Book is what a member knows of announcements and ends: the newest of each,
// signatures checked. It is safe for concurrent use.
type Book struct {
	trusted []ed25519.PublicKey
	now     func() time.Time

	mu     sync.Mutex
	active map[string]entry // by executionId
	ended  map[string]entry
}

type entry struct {
	wire    []byte
	doc     any
	expires time.Time
	added   time.Time
}

// NewBook returns an empty book that takes documents signed by the trusted keys.
// now may be nil for time.Now.
func NewBook(trusted []ed25519.PublicKey, now func() time.Time) *Book {
	if now == nil {
		now = time.Now
	}
	return &Book{
		trusted: slices.Clone(trusted),
		now:     now,
		active:  make(map[string]entry),
		ended:   make(map[string]entry),
	}
}

// Added says what a document did to the book.
type Added struct {
	// Announcement is set when wire was an announcement that is news.
	Announcement *Announcement
	// End is set when wire was an end that is news.
	End *End
	// Wire is the document that is news, as it came.
	Wire []byte
	// Reply is the end notice of the execution that wire still announces, for
	// whoever sent it; nil otherwise.
	Reply []byte
}

// Add checks a document from the network and takes it in. A document that is
// known already changes nothing and is no error. The caller must not change
// wire afterwards.
func (b *Book) Add(wire []byte) (Added, error) {
	now := b.now()
	doc, err := Open(wire, b.trusted, now)
	if err != nil {
		return Added{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch d := doc.(type) {
	case *Announcement:
		if e, ok := b.ended[d.ExecutionID]; ok {
			if !d.Issued.After(e.doc.(*End).Issued) {
				return Added{Reply: e.wire}, nil
			}
			delete(b.ended, d.ExecutionID) // announced again, after the end
		}
		old, known := b.active[d.ExecutionID]
		if known && !d.Issued.After(old.doc.(*Announcement).Issued) {
			return Added{}, nil
		}
		if !known && len(b.active) >= maxActive {
			return Added{}, fmt.Errorf("%w: %d are active", ErrFull, maxActive)
		}
		b.active[d.ExecutionID] = entry{wire, d, d.Expires, now}
		return Added{Announcement: d, Wire: wire}, nil
	case *End:
		if _, ok := b.ended[d.ExecutionID]; ok {
			return Added{}, nil
		}
		if a, ok := b.active[d.ExecutionID]; ok && a.doc.(*Announcement).Issued.After(d.Issued) {
			return Added{}, nil // announced again since
		}
		if len(b.ended) >= maxEnded {
			b.forgetOldest()
		}
		delete(b.active, d.ExecutionID)
		b.ended[d.ExecutionID] = entry{wire, d, d.Expires, now}
		return Added{End: d, Wire: wire}, nil
	}
	return Added{}, fmt.Errorf("%w: %T", ErrInvalid, doc)
}

// Issue returns the time to put into a new document about an execution: now, or
// just after what the book knows of it, should the clock have been set back.
func (b *Book) Issue(executionID string) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now().UTC()
	if a, ok := b.active[executionID]; ok && !now.After(a.doc.(*Announcement).Issued) {
		now = a.doc.(*Announcement).Issued.Add(1)
	}
	if e, ok := b.ended[executionID]; ok && !now.After(e.doc.(*End).Issued) {
		now = e.doc.(*End).Issued.Add(1)
	}
	return now
}

// forgetOldest drops a tenth of the ended executions, the longest known first,
// so that the sort is paid once in many.
func (b *Book) forgetOldest() {
	ids := make([]string, 0, len(b.ended))
	for id := range b.ended {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(x, y string) int { return b.ended[x].added.Compare(b.ended[y].added) })
	for _, id := range ids[:len(ids)/10] {
		delete(b.ended, id)
	}
}

// Active returns the announcements that hold now, in order of executionId.
func (b *Book) Active() []*Announcement {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire()
	out := make([]*Announcement, 0, len(b.active))
	for _, e := range b.active {
		out = append(out, e.doc.(*Announcement))
	}
	slices.SortFunc(out, func(x, y *Announcement) int { return strings.Compare(x.ExecutionID, y.ExecutionID) })
	return out
}

func (b *Book) expire() {
	now := b.now()
	for id, e := range b.active {
		if e.expires.Before(now) {
			delete(b.active, id)
		}
	}
	for id, e := range b.ended {
		if e.expires.Before(now) {
			delete(b.ended, id)
		}
	}
}

// State returns what push/pull carries: every active announcement and the
// recent ends, each with its length before it.
func (b *Book) State() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire()
	var out []byte
	frame := func(wire []byte) {
		if len(out)+2+len(wire) > maxState {
			return
		}
		out = binary.BigEndian.AppendUint16(out, uint16(len(wire)))
		out = append(out, wire...)
	}
	recent := b.now().Add(-tellEndsFor)
	for _, e := range b.ended {
		if e.added.After(recent) {
			frame(e.wire)
		}
	}
	for _, e := range b.active {
		frame(e.wire)
	}
	return out
}

// EachInState calls f with every document in what State returned elsewhere. It
// stops at the first frame that is cut short.
func EachInState(state []byte, f func(wire []byte)) {
	for len(state) >= 2 {
		n := int(binary.BigEndian.Uint16(state))
		if state = state[2:]; n > len(state) || n > MaxLength {
			return
		}
		f(state[:n:n])
		state = state[n:]
	}
}
