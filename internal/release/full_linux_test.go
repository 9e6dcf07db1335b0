package release

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/landfall-dist/landfall/internal/processtest"
)

// atHalf calls a function before the second half of a build is read.
type atHalf struct {
	*bytes.Reader
	call func()
}

func (a atHalf) ReadAt(p []byte, off int64) (int, error) {
	// The end of a zip, which has its directory, is read first.
	if half := a.Size() / 2; off >= half && off < half+a.Size()/4 {
		a.call()
	}
	return a.Reader.ReadAt(p, off)
}

// TestDiskFillsInMidWrite: of a release whose disk fills while it is written nothing is left,
// and the one before runs; it is made when there is room again.
func TestDiskFillsInMidWrite(t *testing.T) {
	disk := processtest.OnDisk(t, "160m")
	if disk == nil {
		return
	}
	content := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	for name, of := range map[string]struct {
		unpack bool
		bytes  []byte
	}{
		"file": {false, content},
		"zip":  {true, zipOf(t, item{name: "app", mode: 0o644, text: string(content)})},
		"tar":  {true, tarOf(t, item{name: "app", mode: 0o644, text: string(content)})},
	} {
		s := open(t, Config{Dir: disk.Dir, Service: name, Unpack: of.unpack})
		before := Build{ExecutionID: "01J00000000000000000000001", Key: "app", Size: int64(len(of.bytes))}
		after := before
		after.ExecutionID = "01J00000000000000000000002"
		if err := errors.Join(s.Place(t.Context(), before, bytes.NewReader(of.bytes)), s.Activate(t.Context(), Order{Version: 1, To: before})); err != nil {
			t.Fatal(name, err)
		}
		var from io.ReaderAt = atHalf{bytes.NewReader(of.bytes), sync.OnceFunc(func() { disk.Fill(0) })}
		if err := s.Place(t.Context(), after, from); !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("%s: %v", name, err)
		}
		if entries, err := os.ReadDir(s.path("releases")); err != nil || len(entries) != 1 || s.Placed(after.ExecutionID) || runs(t, s) != string(content) {
			t.Errorf("%s: left: %v, %v", name, entries, err)
		}
		disk.Free()
		if err := errors.Join(s.Place(t.Context(), after, bytes.NewReader(of.bytes)), s.Activate(t.Context(), Order{Version: 2, To: after})); err != nil || runs(t, s) != string(content) {
			t.Errorf("%s: with room again: %v", name, err)
		}
	}
}
