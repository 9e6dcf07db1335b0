package fetch

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/retry"
)

// damages are what becomes of a segment's directory on the disk.
var damages = map[string]func(dir string) error{
	"changed":                               func(dir string) error { return overwrite(filepath.Join(dir, "data"), 1<<20) },
	"cut":                                   func(dir string) error { return os.Truncate(filepath.Join(dir, "data"), 1<<20+5) },
	"emptied":                               func(dir string) error { return os.Truncate(filepath.Join(dir, "data"), 0) },
	"removed":                               func(dir string) error { return os.Remove(filepath.Join(dir, "data")) },
	"gone":                                  os.RemoveAll,
	"unreadable, for its info has changed,": func(dir string) error { return overwrite(filepath.Join(dir, "info"), 20) },
}

func overwrite(file string, offset int64) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("no"), offset)
	return errors.Join(err, f.Close())
}

// TestLost: whatever the disk has lost or changed of a build since it was fetched, and
// whenever that is found, nobody reads other bytes than the build's, and it is fetched again
// without a restart, for each build that has the segment.
func TestLost(t *testing.T) {
	for name, damage := range damages {
		for _, when := range []string{"as it is checked", "while it is open", "while nobody uses it", "as a neighbour asks"} {
			t.Run(name+" "+when, func(t *testing.T) {
				t.Parallel()
				testLost(t, when, damage)
			})
		}
	}
}

func testLost(t *testing.T, when string, damage func(dir string) error) {
	b, dir := newBuildOf(t, 21, 3<<20), t.TempDir()
	twin := &build{id: newBuildOf(t, 0, 1).id, content: b.content, known: b.known}
	a := newAgent(t, nil, "host-1", "host-2")
	a.has(t, b, 0)
	spoil := func() {
		if err := damage(filepath.Join(dir, "cache", b.known.Segment(0).InfoHash().String())); err != nil {
			t.Error(err)
		}
	}
	var checked sync.Once
	h := newHost(t, nil, "host-1", dir, func(c *Config) {
		c.Again = retry.Policy{First: 10 * time.Millisecond, Max: 100 * time.Millisecond}
		c.reached = func(step string) {
			if step == "check" && when == "as it is checked" {
				checked.Do(spoil)
			}
		}
	})
	h.Peers(nil, []Peer{a.peer})
	for _, of := range []*build{b, twin} {
		got, err := h.Build(of.whole())
		if err != nil {
			t.Fatal(err)
		}
		<-got.Whole()
	}
	if when == "while nobody uses it" || when == "as a neighbour asks" {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		h = newHost(t, nil, "host-2", dir, func(c *Config) { c.Again = retry.Policy{First: 10 * time.Millisecond, Max: 100 * time.Millisecond} })
		h.Peers(nil, []Peer{a.peer})
		for _, of := range []*build{b, twin} {
			got, _ := h.Known(of.id)
			<-got.Whole()
		}
	}
	if when != "as it is checked" {
		spoil()
	}
	if when == "as a neighbour asks" {
		other := newHost(t, nil, "other", t.TempDir(), nil)
		h.Peers([]Peer{other.peer}, []Peer{a.peer})
		other.Peers([]Peer{h.peer}, nil)
		got, err := other.Build(b.whole())
		if err != nil {
			t.Fatal(err)
		}
		arrive(t, got, b)
	}
	for _, of := range []*build{b, twin} {
		got, ok := h.Known(of.id)
		if !ok {
			t.Fatal("the build is not known any more")
		}
		eventually(t, func() bool {
			all, err := read(got)
			if err != nil && !errors.Is(err, ErrLost) && !errors.Is(err, ErrNotWhole) {
				t.Errorf("%v", err)
			}
			return err == nil && bytes.Equal(all, of.content)
		})
		eventually(t, func() bool { p := got.Progress(); return p.Whole && p.Here == p.Segments && p.Err == nil })
		arrive(t, got, of)
	}
	for _, of := range []*build{b, twin} {
		got, _ := h.Known(of.id)
		got.Drop()
	}
	if n := len(h.users); n > 0 {
		t.Errorf("%d segments are still wanted by nobody", n)
	}
}

// read is all of a build.
func read(b *Build) ([]byte, error) {
	r, err := b.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var all bytes.Buffer
	_, err = r.WriteTo(&all)
	return all.Bytes(), err
}

// TestChangedWhileItIsRead: chunks of a piece that was found good a moment ago are not
// believed to be good still.
func TestChangedWhileItIsRead(t *testing.T) {
	t.Parallel()
	b, dir := newBuildOf(t, 23, 3<<20), t.TempDir()
	a := newAgent(t, nil, "host")
	a.has(t, b, 0)
	h := newHost(t, nil, "host", dir, nil)
	h.Peers(nil, []Peer{a.peer})
	got, err := h.Build(b.whole())
	if err != nil {
		t.Fatal(err)
	}
	arrive(t, got, b)
	first, err := got.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	chunk := make([]byte, 10)
	offset := int64(1<<20 - 3)
	if _, err := first.ReadAt(chunk, offset); err != nil || !bytes.Equal(chunk, b.content[offset:offset+10]) {
		t.Fatalf("%v", err)
	}
	if err := damages["changed"](filepath.Join(dir, "cache", b.known.Segment(0).InfoHash().String())); err != nil {
		t.Fatal(err)
	}
	if _, err := first.ReadAt(chunk, offset); err != nil && !errors.Is(err, ErrLost) || err == nil && !bytes.Equal(chunk, b.content[offset:offset+10]) {
		t.Errorf("%x, %v", chunk, err)
	}
	second, err := got.Open()
	if err == nil {
		defer second.Close()
		_, err = second.ReadAt(chunk, 1<<20)
	}
	if !errors.Is(err, ErrLost) && !errors.Is(err, ErrNotWhole) {
		t.Errorf("%x, %v", chunk, err)
	}
}

// TestLostWithoutPeers: what the disk has lost and nobody has is said to be lacking.
func TestLostWithoutPeers(t *testing.T) {
	t.Parallel()
	b, dir := newBuildOf(t, 22, 3<<20), t.TempDir()
	a := newAgent(t, nil, "host")
	a.has(t, b, 0)
	h := newHost(t, nil, "host", dir, nil)
	h.Peers(nil, []Peer{a.peer})
	got, err := h.Build(b.whole())
	if err != nil {
		t.Fatal(err)
	}
	arrive(t, got, b)
	h.Peers(nil, nil)
	torrent, _ := h.swarm.Torrent(b.known.Segment(0).InfoHash())
	if err := damages["changed"](filepath.Join(dir, "cache", torrent.InfoHash().String())); err != nil {
		t.Fatal(err)
	}
	if _, err := read(got); !errors.Is(err, ErrLost) {
		t.Errorf("%v", err)
	}
	eventually(t, func() bool { p := got.Progress(); return !p.Whole && p.Here == 0 && p.Bytes < p.Size })
	if err := got.Verify(b.known.Size, b.composite()); !errors.Is(err, ErrNotWhole) {
		t.Errorf("%v", err)
	}
	if _, err := got.Open(); !errors.Is(err, ErrNotWhole) {
		t.Errorf("%v", err)
	}
	h.Peers(nil, []Peer{a.peer})
	eventually(t, func() bool { return got.Progress().Whole })
	arrive(t, got, b)
}
