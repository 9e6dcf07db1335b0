package swarm

import (
	"crypto/sha1"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/peerwire"
)

const (
	// maxDoubts bounds the pieces with several senders that failed and whose next
	// version is waited for, maxVersions what is remembered of each.
	maxDoubts   = 64
	maxVersions = 8
	// apartPause keeps the senders of a corrupt piece apart.
	apartPause = 10 * time.Second
)

// origins remembers who sent which chunk of the pieces of one build until the piece
// is verified. Up to 16 GiB a piece is one chunk and has one sender. Of a larger
// piece that fails its hash, the digest of each chunk is kept: when the piece is
// there, those who sent other bytes are known. When it fails again its senders are
// kept apart, so that at last one of them sends all of it.
type origins struct {
	mu      sync.Mutex
	senders map[int][]chunk   // by piece
	doubts  map[int][]version // by piece
}

// sender is a connection that something came by.
type sender interface {
	ID() [20]byte
	Blame(peerwire.Offence)
	LeaveAlone(time.Duration)
}

// chunk is who sent a part of a piece, in bytes.
type chunk struct {
	begin  int64
	length int
	from   sender
}

// version is a chunk of a piece that failed.
type version struct {
	chunk
	sum [sha1.Size]byte
}

// note takes a chunk that came.
func (o *origins) note(piece int, begin int64, length int, from sender) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.senders == nil {
		o.senders, o.doubts = make(map[int][]chunk), make(map[int][]version)
	}
	c := chunk{begin, length, from}
	if i := slices.IndexFunc(o.senders[piece], func(c chunk) bool { return c.begin == begin }); i >= 0 {
		o.senders[piece][i] = c // the earlier one was not written
		return
	}
	o.senders[piece] = append(o.senders[piece], c)
}

// failed finds who is to blame for a piece whose content is wrong.
func (o *origins) failed(piece int, content io.ReaderAt) {
	senders, before := o.take(piece)
	if len(senders) == 0 {
		return
	}
	first := senders[0].from
	if !slices.ContainsFunc(senders, func(c chunk) bool { return c.from.ID() != first.ID() }) {
		first.Blame(peerwire.CorruptPiece)
		o.doubt(piece, before)
		return
	}
	again := len(before) > 0
	for _, c := range senders {
		if again && c.from.ID() != first.ID() {
			c.from.LeaveAlone(apartPause)
		}
		if sum, err := c.digest(content); err == nil {
			before = append(before, version{c, sum})
		}
	}
	o.doubt(piece, before[max(0, len(before)-maxVersions):])
}

// passed forgets the senders of a piece that is right, and finds who had sent wrong
// chunks of it.
func (o *origins) passed(piece int, content io.ReaderAt) {
	_, before := o.take(piece)
	for _, v := range before {
		if sum, err := v.digest(content); err == nil && sum != v.sum {
			v.from.Blame(peerwire.CorruptPiece)
		}
	}
}

// take returns what is remembered of a piece and forgets it: the engine must not
// have to wait until the disk was read.
func (o *origins) take(piece int) ([]chunk, []version) {
	o.mu.Lock()
	defer o.mu.Unlock()
	senders, before := o.senders[piece], o.doubts[piece]
	delete(o.senders, piece)
	delete(o.doubts, piece)
	return senders, before
}

func (o *origins) doubt(piece int, versions []version) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(versions) > 0 && len(o.doubts) < maxDoubts {
		o.doubts[piece] = versions
	}
}

func (c chunk) digest(content io.ReaderAt) (sum [sha1.Size]byte, err error) {
	b := make([]byte, c.length)
	if _, err := content.ReadAt(b, c.begin); err != nil {
		return sum, err
	}
	return sha1.Sum(b), nil
}
