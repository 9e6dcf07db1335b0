package announce

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/signing"
)

const (
	// maxActive bounds the announcements a member holds at once, maxActiveBytes
	// what they are on the wire: some 800 bytes each, as a rule.
	maxActive, maxActiveBytes = 20_000, 32 << 20
	// maxEnded bounds the ended executions it remembers: a week of thousands a
	// day; maxEndedBytes what their notices are on the wire. Past either the oldest
	// are forgotten; the table still knows them.
	maxEnded, maxEndedBytes = 100_000, 48 << 20
	// MaxState bounds what push/pull carries of documents, in bytes, well below
	// memberlist's own limit of 20 MiB: it is held some five times over while it is
	// sent. Map order is random, so that over a few exchanges everything gets
	// through all the same.
	MaxState = 4 << 20
	// MaxSender bounds the name of a sender in a state, in bytes.
	MaxSender = 128
	// senderMark stands where the length of a document would, before the name of
	// the sender: longer than any document, so that who does not know of it stops
	// there.
	senderMark = 0xffff
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
	trust *signing.Trust
	now   func() time.Time

	mu     sync.Mutex
	active entries
	ended  entries
}

// entries are documents by executionId.
type entries struct {
	of    map[string]entry
	bytes int // on the wire
	// wires are the executionIds by the SHA-256 of their exact documents: most of what
	// comes is known.
	wires map[[sha256.Size]byte]string
}

func newEntries() entries {
	return entries{of: make(map[string]entry), wires: make(map[[sha256.Size]byte]string)}
}

func (es *entries) put(id string, e entry) {
	es.remove(id)
	es.of[id] = e
	es.bytes += len(e.wire)
	es.wires[sha256.Sum256(e.wire)] = id
}

func (es *entries) remove(id string) {
	if e, ok := es.of[id]; ok {
		delete(es.of, id)
		es.bytes -= len(e.wire)
		delete(es.wires, sha256.Sum256(e.wire))
	}
}

type entry struct {
	wire    []byte
	doc     any
	expires time.Time
	added   time.Time
	signer  signing.PublicKey
}

// NewBook returns an empty book that takes documents by trust. now may be nil for time.Now.
func NewBook(trust *signing.Trust, now func() time.Time) *Book {
	if now == nil {
		now = time.Now
	}
	return &Book{
		trust:  trust,
		now:    now,
		active: newEntries(),
		ended:  newEntries(),
	}
}

// Added says what a document did to the book.
type Added struct {
	// Announcement is set when wire was an announcement that is news.
	Announcement *Announcement
	// End is set when wire was an end that is news.
	End *End
	// Contradicted is set when wire was an announcement that contradicts this one, which
	// holds still: Add's error says in what.
	Contradicted *Announcement
	// Wire is the document that is news, as it came; Before the announcement in whose
	// place it has come, nil for none.
	Wire, Before []byte
	// Reply is the end notice of the execution that wire still announces, for
	// whoever sent it; nil otherwise.
	Reply []byte
}

// Add checks a document from the network and takes it in. A document that is
// known already changes nothing and is no error. What it keeps of wire is a copy.
func (b *Book) Add(wire []byte) (Added, error) {
	now := b.now()
	if b.has(wire) {
		return Added{}, nil
	}
	doc, signer, err := open(wire, b.trust, now)
	if err != nil {
		return Added{}, err
	}
	wire = bytes.Clone(wire)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch d := doc.(type) {
	case *Announcement:
		if e, ok := b.ended.of[d.ExecutionID]; ok {
			if !d.Issued.After(e.doc.(*End).Issued) {
				return Added{Reply: e.wire}, nil
			}
			b.ended.remove(d.ExecutionID) // announced again, after the end
		}
		old, known := b.active.of[d.ExecutionID]
		if known {
			before := old.doc.(*Announcement)
			if err := d.extends(before); err != nil {
				added := Added{}
				if errors.Is(err, ErrContradiction) {
					added.Contradicted = before
				}
				return added, fmt.Errorf("announcement of %s: %w", d.ExecutionID, err)
			}
			// One that says less is of a seeder that has begun again; it comes to more. What
			// says more is newer whatever the clock says that it was issued by.
			if d.less(before) || !d.more(before) && !d.Issued.After(before.Issued) {
				return Added{}, nil
			}
		}
		if !known && len(b.active.of) >= maxActive || b.active.bytes-len(old.wire)+len(wire) > maxActiveBytes {
			return Added{}, fmt.Errorf("%w: %d of %d bytes are active, at most %d of %d", ErrFull, len(b.active.of), b.active.bytes, maxActive, maxActiveBytes)
		}
		b.active.put(d.ExecutionID, entry{wire, d, d.Expires, now, signer})
		return Added{Announcement: d, Wire: wire, Before: old.wire}, nil
	case *End:
		if _, ok := b.ended.of[d.ExecutionID]; ok {
			return Added{}, nil
		}
		if a, ok := b.active.of[d.ExecutionID]; ok && a.doc.(*Announcement).Issued.After(d.Issued) {
			return Added{}, nil // announced again since
		}
		if len(b.ended.of) >= maxEnded || b.ended.bytes+len(wire) > maxEndedBytes {
			b.forgetOldest()
		}
		b.active.remove(d.ExecutionID)
		b.ended.put(d.ExecutionID, entry{wire, d, d.Expires, now, signer})
		return Added{End: d, Wire: wire}, nil
	}
	return Added{}, fmt.Errorf("%w: %T", ErrInvalid, doc)
}

// Recheck drops the announcements of those who are not trusted with them any more, and
// returns for each what would have ended it, with the reason Untrusted.
func (b *Book) Recheck() (ends []*End) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now().UTC()
	for id, e := range b.active.of {
		a := e.doc.(*Announcement)
		if b.trust.Check(e.signer, a.SourceBucket, a.Key) == nil {
			continue
		}
		b.active.remove(id)
		ends = append(ends, &End{ExecutionID: id, Key: a.Key, SourceBucket: a.SourceBucket, Reason: Untrusted, Issued: now, Expires: now})
	}
	return ends
}

// has reports whether exactly this document is in the book, without checking its
// signature again.
func (b *Book) has(wire []byte) bool {
	sum := sha256.Sum256(wire)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.active.wires[sum] != "" || b.ended.wires[sum] != ""
}

// Issue returns the time to put into a new document about an execution: now, or
// just after what the book knows of it, should the clock have been set back.
func (b *Book) Issue(executionID string) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now().UTC()
	if a, ok := b.active.of[executionID]; ok && !now.After(a.doc.(*Announcement).Issued) {
		now = a.doc.(*Announcement).Issued.Add(1)
	}
	if e, ok := b.ended.of[executionID]; ok && !now.After(e.doc.(*End).Issued) {
		now = e.doc.(*End).Issued.Add(1)
	}
	return now
}

// forgetOldest drops a tenth of the ended executions, the longest known first,
// so that the sort is paid once in many.
func (b *Book) forgetOldest() {
	ids := make([]string, 0, len(b.ended.of))
	for id := range b.ended.of {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(x, y string) int { return b.ended.of[x].added.Compare(b.ended.of[y].added) })
	for _, id := range ids[:(len(ids)+9)/10] {
		b.ended.remove(id)
	}
}

// Active returns the announcements that hold now, in order of executionId.
func (b *Book) Active() []*Announcement {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire()
	out := make([]*Announcement, 0, len(b.active.of))
	for _, e := range b.active.of {
		out = append(out, e.doc.(*Announcement))
	}
	slices.SortFunc(out, func(x, y *Announcement) int { return strings.Compare(x.ExecutionID, y.ExecutionID) })
	return out
}

func (b *Book) expire() {
	now := b.now()
	for _, es := range []*entries{&b.active, &b.ended} {
		for id, e := range es.of {
			if e.expires.Before(now) {
				es.remove(id)
			}
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
		if len(out)+2+len(wire) <= MaxState {
			out = AppendFrame(out, wire)
		}
	}
	recent := b.now().Add(-tellEndsFor)
	for _, e := range b.ended.of {
		if e.added.After(recent) {
			frame(e.wire)
		}
	}
	for _, e := range b.active.of {
		frame(e.wire)
	}
	return out
}

// AppendFrame appends a document to a state.
func AppendFrame(state, wire []byte) []byte {
	return append(binary.BigEndian.AppendUint16(state, uint16(len(wire))), wire...)
}

// AppendSender ends a state with the name of the member that sends it, of at most
// MaxSender bytes.
func AppendSender(state []byte, name string) []byte {
	state = binary.BigEndian.AppendUint16(state, senderMark)
	return append(state, name[:min(len(name), MaxSender)]...)
}

// EachInState calls f with every document in what State returned elsewhere, until it
// returns false, and then returns the sender's name; empty where it is not said. It
// stops at the first frame that is cut short. f must not keep wire.
func EachInState(state []byte, f func(wire []byte) bool) (sender string) {
	frames := state
	for len(frames) >= 2 {
		n := int(binary.BigEndian.Uint16(frames))
		frames = frames[2:]
		if n == senderMark && len(frames) <= MaxSender {
			sender = string(frames)
			break
		}
		if n > len(frames) || n > MaxLength {
			break
		}
		frames = frames[n:]
	}
	for len(state) >= 2 {
		n := int(binary.BigEndian.Uint16(state))
		if state = state[2:]; n > len(state) || n > MaxLength || !f(state[:n:n]) {
			break
		}
		state = state[n:]
	}
	return sender
}
