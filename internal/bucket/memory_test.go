package bucket_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// unfinished gives so many bytes, says so, and then nothing until it is ended.
type unfinished struct {
	left    int
	reached chan<- struct{}
	end     <-chan struct{}
}

func (u *unfinished) Read(p []byte) (int, error) {
	if u.left > 0 {
		n := min(len(p), u.left)
		u.left -= n
		return n, nil
	}
	u.reached <- struct{}{}
	<-u.end
	return 0, io.ErrUnexpectedEOF
}

// However many streams are not finished, they hold a bounded memory; who comes then is
// told to come again, and can once they have ended.
func TestUploadsShareMemory(t *testing.T) {
	const memory, part, start = 256 << 20, 16 << 20, 1 << 20
	for _, c := range []struct{ sent, fit int }{
		{1, memory / start},        // next to nothing
		{start + 1, memory / part}, // more
	} {
		t.Run(fmt.Sprint(c.sent), func(t *testing.T) {
			b := open(t)
			const beyond = 5
			reached, end := make(chan struct{}), make(chan struct{})
			done := make(chan error)
			for i := range c.fit + beyond {
				go func() {
					_, err := b.Upload(t.Context(), fmt.Sprint(i), &unfinished{c.sent, reached, end}, -1, bucket.Headers{})
					done <- err
				}()
			}
			refused := 0
			for range c.fit + beyond {
				select {
				case <-reached:
				case err := <-done:
					if refused++; !errors.Is(err, bucket.ErrBusy) {
						t.Error(err)
					}
				}
			}
			// One that is refused half way held something until then.
			if refused < beyond || refused > beyond+c.fit/2 {
				t.Errorf("%d refused, want about %d", refused, beyond)
			}
			close(end)
			for range c.fit + beyond - refused {
				if err := <-done; !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Error(err)
				}
			}
			if _, err := b.Upload(t.Context(), "after", bytes.NewReader(make([]byte, 3*part)), -1, bucket.Headers{}); err != nil {
				t.Error(err)
			}
		})
	}
}
