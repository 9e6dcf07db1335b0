package announce

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// big is an unsealed announcement of so many segments of the largest build, with the
// longest key.
func big(segments int) *Announcement {
	a := announcement(1)
	shape := manifest.ShapeOf(manifest.MaxSize)
	a.Size, a.PieceLength, a.PartLength, a.SHA256 = shape.Size, shape.PieceLength, shape.PartLength, ""
	a.Key = strings.Repeat("k", MaxKeyLength)
	a.Issued = noon.Add(time.Duration(segments) * time.Second)
	a.InfoHashes = nil
	for i := range segments {
		sum := sha256.Sum256([]byte{byte(i)})
		a.InfoHashes = a.InfoHashes.Append(manifest.InfoHash(sum[:20]))
	}
	return a
}

// An increment is short however long the document is, and stands for exactly that.
func TestIncrement(t *testing.T) {
	b := NewBook(trust, func() time.Time { return noon })
	before, next := sign(t, big(30)), sign(t, big(31))
	increment := Increment(before, next)
	if len(increment) > 400 || len(next) < 1500 {
		t.Errorf("%d bytes stand for %d", len(increment), len(next))
	}
	if _, err := b.Restore(increment); !errors.Is(err, ErrNoBase) {
		t.Errorf("without what it builds on: %v", err)
	}
	if _, err := b.Add(before); err != nil {
		t.Fatal(err)
	}
	wire, err := b.Restore(increment)
	if err != nil || !bytes.Equal(wire, next) {
		t.Fatalf("%d bytes, %v", len(wire), err)
	}
	added, err := b.Add(wire)
	if err != nil || !bytes.Equal(added.Before, before) || added.Announcement.InfoHashes.Len() != 31 || !bytes.Equal(b.Wire(id(1)), next) {
		t.Errorf("%+v, %v", added, err)
	}
	if _, err := b.Restore(increment); !errors.Is(err, ErrNoBase) {
		t.Errorf("what it builds on is replaced: %v", err)
	}
}

func TestIncrementsAreBounded(t *testing.T) {
	b := NewBook(trust, func() time.Time { return noon })
	before := sign(t, big(3))
	if _, err := b.Add(before); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(before)
	bomb := bytes.NewBuffer(sum[:])
	w, _ := flate.NewWriterDict(bomb, flate.BestCompression, before)
	w.Write(make([]byte, 100<<20)) //nolint:errcheck // into memory
	w.Close()                      //nolint:errcheck
	for name, increment := range map[string][]byte{
		"bomb": bomb.Bytes(), "empty": nil, "cut short": sum[:31], "without a stream": sum[:], "no stream": append(sum[:], "nonsense"...),
	} {
		if wire, err := b.Restore(increment); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %d bytes, %v", name, len(wire), err)
		}
	}
}

func FuzzRestore(f *testing.F) {
	b := NewBook(trust, func() time.Time { return noon })
	before := sign(f, big(3))
	if _, err := b.Add(before); err != nil {
		f.Fatal(err)
	}
	f.Add(Increment(before, sign(f, big(4)))[sha256.Size:])
	sum := sha256.Sum256(before)
	f.Fuzz(func(t *testing.T, stream []byte) {
		if wire, err := b.Restore(append(sum[:], stream...)); err == nil && len(wire) > MaxLength {
			t.Errorf("%d bytes", len(wire))
		}
	})
}
