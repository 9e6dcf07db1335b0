package announce

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// ErrNoBase says that the document which an increment builds on is not known here.
var ErrNoBase = errors.New("increment of a document that is not known")

// Increment is a signed document in short, for who has an earlier revision of it: the
// SHA-256 of that one, and all of the new one as a DEFLATE stream (RFC 1951) that has the
// earlier one as its dictionary. Some 200 bytes, most of them the new signature.
// Book.Restore makes it whole again.
func Increment(before, wire []byte) []byte {
	sum := sha256.Sum256(before)
	out := bytes.NewBuffer(sum[:])
	w, err := flate.NewWriterDict(out, flate.BestCompression, before)
	if err != nil {
		panic(err) // of a level that there is not
	}
	w.Write(wire) //nolint:errcheck // into memory
	w.Close()     //nolint:errcheck
	return out.Bytes()
}

// Restore is the document that an increment stands for, for Add to check; ErrNoBase where
// the book does not have what it builds on, ErrInvalid for what is no increment.
func (b *Book) Restore(increment []byte) ([]byte, error) {
	if len(increment) < sha256.Size {
		return nil, fmt.Errorf("%w: increment of %d bytes", ErrInvalid, len(increment))
	}
	sum := [sha256.Size]byte(increment)
	b.mu.Lock()
	before := b.active.of[b.active.wires[sum]].wire // which nobody changes
	b.mu.Unlock()
	if before == nil {
		return nil, ErrNoBase
	}
	wire, err := io.ReadAll(io.LimitReader(flate.NewReaderDict(bytes.NewReader(increment[sha256.Size:]), before), MaxLength+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: increment: %w", ErrInvalid, err)
	case len(wire) > MaxLength:
		return nil, fmt.Errorf("%w: increment of more than %d bytes", ErrInvalid, MaxLength)
	}
	return wire, nil
}

// Wire is the announcement of an execution as it came last; nil where none holds.
func (b *Book) Wire(executionID string) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.active.of[executionID].wire
}
