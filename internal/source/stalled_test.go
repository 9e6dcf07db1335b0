package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/landfall-dist/landfall/internal/answers"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
)

// stalling is an S3 with one object of which a GET brings the first half, and then
// nothing, unless its key begins with "good".
func stalling(content []byte) roundTrip {
	return func(r *http.Request) (*http.Response, error) {
		res := ok(r)
		res.Header.Set("ETag", `"1"`)
		if r.Method == http.MethodHead {
			res.ContentLength = int64(len(content))
			res.Header.Set("Content-Length", fmt.Sprint(len(content)))
			return res, nil
		}
		var first, last int64
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
			return nil, err
		}
		length := last + 1 - first
		res.StatusCode = http.StatusPartialContent
		res.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(content)))
		res.Header.Set("Content-Length", fmt.Sprint(length))
		res.ContentLength = length
		if strings.Contains(r.URL.Path, "/good") {
			res.Body = io.NopCloser(bytes.NewReader(content[first : last+1]))
			return res, nil
		}
		res.Body = io.NopCloser(io.MultiReader(bytes.NewReader(content[first:first+length/2]), silence{r.Context()}))
		return res, nil
	}
}

// silence gives nothing until its context ends.
type silence struct{ ctx context.Context }

func (s silence) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

// GETs that hang keep nobody back for long, though their builds are older and there are
// more of them than are pulled at a time, again and again.
func TestGetsThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, hanging = 100_000, 3 * maxPulls
		content := random(1, size)
		b, err := bucket.Open(t.Context(), pretend(stalling(content)), "global-builds", bucket.Options{})
		if err != nil {
			t.Fatal(err)
		}
		c, err := cache.Open(t.TempDir(), 1<<40, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}()
		p := NewPuller(c, slog.New(slog.DiscardHandler))
		pull := func(ctx context.Context, name, key string, stalled bool) error {
			turn := p.TakeTurn(Want{Place: handout.Place{Execution: name}, Bucket: b.Name(), Stalled: stalled})
			defer turn.End()
			if err := turn.Begin(ctx); err != nil {
				return err
			}
			of, _ := pullOf(t, b, &bucket.Object{Key: key, ETag: `"1"`, Size: size}, name)
			of.Turn = turn
			_, err := p.Pull(ctx, of)
			return err
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{}, hanging)
		for i := range hanging {
			go func() {
				var err error
				for ctx.Err() == nil {
					err = pull(ctx, fmt.Sprintf("older-%02d", i), fmt.Sprintf("hanging-%d.zip", i), errors.Is(err, answers.ErrStalled))
					if ctx.Err() == nil && !errors.Is(err, answers.ErrStalled) {
						t.Errorf("a pull that hangs ended with %v", err)
					}
				}
				ended <- struct{}{}
			}()
		}
		synctest.Wait()                                                       // all turns are taken
		for i, most := range []time.Duration{2 * time.Minute, lookInterval} { // which all have stalled once
			begun := time.Now()
			if err := pull(t.Context(), fmt.Sprintf("young-%d", i), fmt.Sprintf("good-%d.zip", i), false); err != nil {
				t.Fatal(err)
			}
			if waited := time.Since(begun); waited > most {
				t.Errorf("a pull waited %s for those that hang, at most %s is right", waited, most)
			}
			time.Sleep(2 * time.Minute)
		}
		cancel()
		for range hanging {
			<-ended
		}
		allBack(t, p)
	})
}

// Pieces that hang end as well: agents read them when no peer has them.
func TestPiecesThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := random(1, 100_000)
		b, err := bucket.Open(t.Context(), pretend(stalling(content)), "global-builds", bucket.Options{})
		if err != nil {
			t.Fatal(err)
		}
		err = Pieces(t.Context(), b, "hanging.zip", `"1"`, 0, manifesttest.Segment(content), []int{0}, func(context.Context, int, []byte) error { return nil })
		if !errors.Is(err, answers.ErrStalled) {
			t.Errorf("ended with %v", err)
		}
	})
}
