package landing

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// piece is the piece length of all builds here, and perPart the pieces of a part.
const (
	piece   = manifest.MinPieceLength
	perPart = manifest.MinPartLength / piece
)

func newTracker(size int64) *Tracker {
	return NewTracker(manifest.ShapeOf(size))
}

// verify notes all pieces of a part but the first few.
func verify(t *Tracker, part, without int) {
	first, end := t.m.PartPieces(part)
	for p := first + without; p < end; p++ {
		t.Verified(p)
	}
}

// ready drains what Next gives without waiting.
func ready(t *testing.T, tr *Tracker) []int {
	t.Helper()
	var parts []int
	for {
		part, changed, err := tr.next()
		if changed != nil || err == io.EOF {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part)
	}
}

func TestTracker(t *testing.T) {
	const size = 3*manifest.MinPartLength + piece + 1 // four parts, the last of two pieces
	for _, test := range []struct {
		name   string
		do     func(*Tracker)
		ready  []int
		window []int
		landed int64
	}{
		{name: "nothing verified", do: func(*Tracker) {}, window: []int{0, 1, 2, 3}},
		{name: "out of order", do: func(tr *Tracker) { verify(tr, 3, 0); verify(tr, 1, 0) }, ready: []int{1, 3}, window: []int{0, 2}},
		{name: "one piece lacks", do: func(tr *Tracker) { verify(tr, 2, 1) }, window: []int{0, 1, 2, 3}},
		{name: "verified twice", do: func(tr *Tracker) {
			for range perPart {
				tr.Verified(0)
			}
		}, window: []int{0, 1, 2, 3}},
		{name: "found bad", do: func(tr *Tracker) { verify(tr, 0, 0); tr.Invalid(3); tr.Invalid(3) }, window: []int{0, 1, 2, 3}},
		{name: "found bad and verified again", do: func(tr *Tracker) {
			verify(tr, 0, 0)
			tr.Invalid(3)
			tr.Verified(3)
		}, ready: []int{0}, window: []int{1, 2, 3}},
		{name: "never good and found bad", do: func(tr *Tracker) { tr.Invalid(0); verify(tr, 0, 0) }, ready: []int{0}, window: []int{1, 2, 3}},
		{name: "skipped", do: func(tr *Tracker) { tr.Skip(0); verify(tr, 0, 0); verify(tr, 1, 0) }, ready: []int{1}, window: []int{2, 3}, landed: manifest.MinPartLength},
		{name: "landed, then found bad", do: func(tr *Tracker) {
			verify(tr, 3, 0)
			_, _, _ = tr.next()
			tr.Landed(3)
			tr.Landed(3)
			tr.Invalid(3 * perPart)
		}, window: []int{0, 1, 2}, landed: piece + 1},
		{name: "given back", do: func(tr *Tracker) {
			verify(tr, 0, 0)
			verify(tr, 1, 0)
			_, _, _ = tr.next()
			_, _, _ = tr.next()
			tr.Requeue(0)
		}, ready: []int{0}, window: []int{2, 3}},
		{name: "given back though it was not out", do: func(tr *Tracker) { tr.Skip(0); tr.Requeue(0); tr.Requeue(1) }, window: []int{1, 2, 3}, landed: manifest.MinPartLength},
		{name: "found bad while it was out, given back", do: func(tr *Tracker) {
			verify(tr, 0, 0)
			_, _, _ = tr.next()
			tr.Invalid(0)
			tr.Requeue(0)
		}, window: []int{0, 1, 2, 3}},
		{name: "a new upload", do: func(tr *Tracker) {
			verify(tr, 0, 0)
			verify(tr, 1, 0)
			_, _, _ = tr.next()
			tr.Landed(0)
			tr.Skip(2)
			tr.reset()
		}, ready: []int{0, 1}, window: []int{2, 3}},
	} {
		t.Run(test.name, func(t *testing.T) {
			tr := newTracker(size)
			test.do(tr)
			if got := tr.Window(10); !slices.Equal(got, test.window) {
				t.Errorf("window %v, want %v", got, test.window)
			}
			if got := tr.Window(1); !slices.Equal(got, test.window[:1]) {
				t.Errorf("window of one %v, want %v", got, test.window[:1])
			}
			if tr.Whole() {
				t.Error("whole")
			}
			if got := tr.LandedBytes(); got != test.landed {
				t.Errorf("landed %d bytes, want %d", got, test.landed)
			}
			if got := ready(t, tr); !slices.Equal(got, test.ready) {
				t.Errorf("ready %v, want %v", got, test.ready)
			}
		})
	}
}

func TestTrackerNext(t *testing.T) {
	tr := newTracker(2 * manifest.MinPartLength)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	type answer struct {
		part int
		err  error
	}
	next := make(chan answer)
	ask := func() {
		go func() {
			part, err := tr.Next(t.Context())
			next <- answer{part, err}
		}()
	}
	ask()
	verify(tr, 1, 0)
	if a := <-next; a != (answer{1, nil}) {
		t.Fatalf("got %+v", a)
	}
	verify(tr, 0, 0)
	if _, err := tr.Next(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("ready part, context over: %v", err)
	}
	ask()
	if a := <-next; a != (answer{0, nil}) {
		t.Fatalf("got %+v", a)
	}
	if !tr.Whole() {
		t.Error("not whole")
	}
	tr.Landed(0)
	if _, err := tr.Next(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("no ready part, context over: %v", err)
	}
	ask() // part 1 may still come back, and does
	tr.Requeue(1)
	if a := <-next; a != (answer{1, nil}) {
		t.Fatalf("got %+v", a)
	}
	ask()
	tr.Landed(1)
	if a := <-next; a.err != io.EOF {
		t.Errorf("got %+v", a)
	}
	if tr.LandedBytes() != 2*manifest.MinPartLength {
		t.Errorf("landed %d bytes", tr.LandedBytes())
	}
}

// Pieces come in any order while several uploads, some of which fail, take
// parts: each part lands once, after all its pieces.
func TestTrackerConcurrent(t *testing.T) {
	tr := newTracker(40*manifest.MinPartLength + 5)
	var mu sync.Mutex
	failed, landed := map[int]bool{}, map[int]int{}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			for {
				part, err := tr.Next(t.Context())
				if err == io.EOF {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				first := !failed[part]
				failed[part] = true
				if !first {
					landed[part]++
				}
				mu.Unlock()
				if first {
					tr.Requeue(part)
				} else {
					tr.Landed(part)
				}
			}
		})
	}
	pieces := rand.Perm(tr.m.NumPieces())
	for half := range slices.Chunk(pieces, (len(pieces)+1)/2) {
		wg.Go(func() {
			for _, p := range half {
				tr.Verified(p)
			}
		})
	}
	wg.Wait()
	for part := range 41 {
		if landed[part] != 1 {
			t.Errorf("part %d landed %d times", part, landed[part])
		}
	}
	if tr.LandedBytes() != tr.m.Size {
		t.Errorf("landed %d bytes of %d", tr.LandedBytes(), tr.m.Size)
	}
}

// The engine verifies pieces under its locks.
func BenchmarkVerified(b *testing.B) {
	const size = 80 << 30
	tr := newTracker(size)
	pieces := tr.m.NumPieces()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%pieces == 0 {
			tr = newTracker(size)
		}
		tr.Verified(i % pieces)
	}
}
