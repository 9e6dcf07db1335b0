package bucket_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/bucket"
)

func TestUpload(t *testing.T) {
	const part = 16 << 20
	big := bytes.Repeat([]byte("0123456789abcdef"), part/8)
	for _, size := range []int{0, 1, part - 1, part, part + 1, 2 * part} {
		for _, known := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d known=%v", size, known), func(t *testing.T) {
				b, promised := open(t), int64(-1)
				if known {
					promised = int64(size)
				}
				o, err := b.Upload(t.Context(), "a", bytes.NewReader(big[:size]), promised, bucket.Headers{Metadata: map[string]string{"k": "v"}})
				if err != nil {
					t.Fatal(err)
				}
				head, err := b.Head(t.Context(), "a")
				if err != nil {
					t.Fatal(err)
				}
				if o.Size != int64(size) || head.Size != o.Size || head.ETag != o.ETag || head.Metadata["k"] != "v" {
					t.Errorf("got %+v, then %+v", o, head)
				}
				r, err := b.GetRange(t.Context(), "a", o.ETag, 0, o.Size)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, big[:size]) {
					t.Errorf("%d bytes came back, %v", len(got), err)
				}
			})
		}
	}
}

// broken gives its bytes and then an error.
type broken struct {
	io.Reader
	err error
}

func (b *broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = b.err
	}
	return n, err
}

func TestUploadLeavesNothing(t *testing.T) {
	const part = 16 << 20
	bytesOf := func(n int) io.Reader { return bytes.NewReader(make([]byte, n)) }
	reset := errors.New("connection reset")
	for _, test := range []struct {
		name string
		r    io.Reader
		size int64
		want error
	}{
		{"aborted early", &broken{bytesOf(10), reset}, -1, reset},
		{"aborted in a later part", &broken{bytesOf(2*part + 5), reset}, -1, reset},
		{"body cut short", &broken{bytesOf(10), io.ErrUnexpectedEOF}, -1, io.ErrUnexpectedEOF},
		{"shorter than promised", bytesOf(10), 11, io.ErrUnexpectedEOF},
		{"a part shorter than promised", bytesOf(2 * part), 3 * part, io.ErrUnexpectedEOF},
		{"longer than promised", bytesOf(11), 10, nil},
		{"parts longer than promised", bytesOf(part + 2), part + 1, nil},
		{"too large", bytesOf(1), bucket.MaxUpload + 1, bucket.ErrTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := open(t)
			o, err := b.Upload(t.Context(), "a", test.r, test.size, bucket.Headers{})
			if err == nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %+v, %v", o, err)
			}
			if err != nil && (!strings.Contains(err.Error(), "a to "+b.Name())) {
				t.Errorf("%q does not name the object", err)
			}
			assertNothing(t, b, "a")
		})
	}
}

func assertNothing(t *testing.T, b *bucket.Bucket, key string) {
	t.Helper()
	if _, err := b.Head(t.Context(), key); !errors.Is(err, bucket.ErrNotFound) {
		t.Errorf("object is there: %v", err)
	}
	if ids, err := b.Uploads(t.Context(), key); err != nil || len(ids) != 0 {
		t.Errorf("uploads %q, %v", ids, err)
	}
}

// zeros is an endless stream.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// The memory of an upload does not grow with its length: its parts' buffers are
// used again and again.
func TestUploadMemory(t *testing.T) {
	const length, bound = 320 << 20, 96 << 20
	cfg := stub(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("ETag", `"e"`)
		if r.Method == http.MethodPost {
			// Serves for both calls: what one does not know it ignores.
			_, _ = io.WriteString(w, "<Result><UploadId>u</UploadId><ETag>e</ETag></Result>")
		}
	})
	b, err := bucket.Open(t.Context(), cfg, "builds", bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	o, err := b.Upload(t.Context(), "a", io.LimitReader(zeros{}, length), -1, bucket.Headers{})
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if o.Size != length {
		t.Errorf("%d bytes of %d", o.Size, length)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > bound {
		t.Errorf("%d bytes were allocated for an upload of %d, want at most %d", got, length, bound)
	}
}
