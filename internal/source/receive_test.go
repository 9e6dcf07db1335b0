package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// receive is a body of so many bytes to be received, whose segments are taken.
func receive(t *testing.T, p *Puller, body io.Reader, size int64) (Received, *taken) {
	t.Helper()
	of, segments := pullOf(t, nil, &bucket.Object{Size: size}, "received")
	room, err := p.cache.Reserve(size, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(room.Free)
	return Received{Body: body, Layout: of.Layout, Name: of.Name, Progress: of.Progress, Segment: of.Segment, Room: room}, segments
}

// What passes through is what a pull of it would have brought: the same segments and digests.
// Once its object has an ETag, a pull of it reads nothing from there.
func TestReceive(t *testing.T) {
	for _, size := range []int{1, receivedBlock, 3*manifest.MinPartLength + 12_345} {
		want := random(3, size)
		p, b, o := object(t, want)
		of, segments := receive(t, p, bytes.NewReader(want), int64(size))
		sum, err := p.Receive(t.Context(), of)
		if err != nil {
			t.Fatal(err)
		}
		segments.are(t, want)

		other, again := pullOf(t, b, o, "other")
		if pulled, err := inTurn(t.Context(), puller(t, t.TempDir()), other); err != nil || pulled != sum {
			t.Fatalf("received %s, pulled %s: %v", sum, pulled, err)
		}
		for i, e := range *segments {
			if e.InfoHash() != (*again)[i].InfoHash() {
				t.Errorf("segment %d of %d bytes is another one", i, size)
			}
		}

		if err := p.cache.RetagSegments("received", ReceivedTag(of.Layout), Tag(o.ETag, of.Layout)); err != nil {
			t.Fatal(err)
		}
		known, third := pullOf(t, b, o, "received")
		if pulled, err := inTurn(t.Context(), p, known); err != nil || pulled != sum || p.BytesRead() != 0 {
			t.Errorf("%d bytes were read again, %s: %v", p.BytesRead(), pulled, err)
		}
		third.are(t, want)
	}
}

// A body that ends too early or too late, or in an error that it has at its end, is none.
func TestReceiveNotWhole(t *testing.T) {
	const size = 2*manifest.MinPartLength + 1
	content := random(4, size)
	broken := errors.New("connection reset")
	for name, c := range map[string]struct {
		body io.Reader
		want string
	}{
		"cut short":         {bytes.NewReader(content[:size-1]), fmt.Sprintf("of %d bytes", size)},
		"empty":             {strings.NewReader(""), fmt.Sprintf("0 of %d bytes", size)},
		"longer":            {io.MultiReader(bytes.NewReader(content), strings.NewReader("x")), fmt.Sprintf("more than the %d bytes promised", size)},
		"broken":            {io.MultiReader(bytes.NewReader(content[:size/2]), failing{broken}), "connection reset"},
		"broken at its end": {io.MultiReader(bytes.NewReader(content), failing{broken}), "connection reset"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p := puller(t, dir)
			of, segments := receive(t, p, c.body, size)
			if _, err := p.Receive(t.Context(), of); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
			if len(*segments) == of.Layout.NumSegments() {
				t.Error("its last segment was taken")
			}
			if err := p.cache.ForgetPull("received", false); err != nil {
				t.Fatal(err)
			}
			if left, err := os.ReadDir(filepath.Join(dir, "pulls")); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Bodies that come slowly, however many, do not keep a pull from its blocks; they end with
// their context, or their segment's error.
func TestReceiveManySlowly(t *testing.T) {
	const size = manifest.MinPartLength
	p, b, o := object(t, random(5, size))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	const many = 4 * maxBlocks
	for range many {
		r, w := io.Pipe()
		context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
		go func() {
			l, err := manifest.NewLayout(manifest.Ramp, size)
			if err == nil {
				_, err = p.Receive(ctx, Received{Body: r, Layout: l, Name: "slow", Progress: func(int64) {}})
			}
			ended <- err
		}()
		if _, err := w.Write([]byte("x")); err != nil { // it is at it
			t.Fatal(err)
		}
	}
	of, _ := pullOf(t, b, o, "one")
	if _, err := inTurn(t.Context(), p, of); err != nil {
		t.Error(err)
	}
	cancel()
	for range many {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("a slow one ended with %v", err)
		}
	}
	refused := errors.New("refused")
	last, _ := receive(t, p, bytes.NewReader(random(6, size)), size)
	last.Segment = func(_ int, e *cache.Entry) error { e.Unpin(); return refused }
	if _, err := p.Receive(t.Context(), last); !errors.Is(err, refused) {
		t.Errorf("a segment that is refused: %v", err)
	}
}
