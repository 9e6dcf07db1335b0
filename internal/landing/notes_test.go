package landing

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

var sums = regexp.MustCompile(`<ChecksumSHA256>[^<]*</ChecksumSHA256>`)

// withoutSums is a store whose ListParts does not say the parts' SHA-256.
type withoutSums struct{ next http.RoundTripper }

func (w withoutSums) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := w.next.RoundTrip(r)
	if err != nil || r.Method != http.MethodGet || !r.URL.Query().Has("uploadId") {
		return answer, err
	}
	b, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	b = sums.ReplaceAll(b, nil)
	answer.Body, answer.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	answer.Header.Del("Content-Length")
	return answer, err
}

// Where the store does not say the digests, those parts are not sent again of which the
// disk knows them, unless the store has another part there by now.
func TestNotedPartsAreNotSentAgain(t *testing.T) {
	for name, c := range map[string]struct {
		between func(t *testing.T, s *site, dir, upload string)
		sent    int
	}{
		"as they were": {func(*testing.T, *site, string, string) {}, 1},
		"the notes are gone": {func(t *testing.T, s *site, dir, upload string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}, 3},
		"the notes are nonsense": {func(t *testing.T, s *site, dir, upload string) {
			if err := os.WriteFile((&Notes{dir: dir}).file(upload), []byte("no\n{}\n{\"part\":-1}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, 3},
		"another part is there": {func(t *testing.T, s *site, dir, upload string) {
			part := bytes.Repeat([]byte("x"), partLength)
			sum := sha256.Sum256(part)
			for n := range 3 {
				if _, err := s.bucket.UploadPart(t.Context(), s.key.FileKey, upload, n, bytes.NewReader(part), partLength, sum[:]); err != nil {
					t.Fatal(err)
				}
			}
		}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, several)
			s.wire.next = withoutSums{s.wire.next}
			dir := filepath.Join(t.TempDir(), "parts")
			open := func() *Notes {
				n, err := OpenNotes(dir)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			execution := s.begin(t, "etag")
			notes := open()
			interrupted(t, s, execution, func(j *Job) { j.Notes = notes })
			upload := s.begunUpload(t)
			c.between(t, s, dir, upload)
			s.wire.calls = nil
			j := s.job(execution, true)
			j.Notes = open()
			result, err := j.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.assertLanded(t, execution, result)
			if n := s.wire.count("PUT part"); n != c.sent {
				t.Errorf("%d parts were sent, want %d", n, c.sent)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("notes are left: %v, %v", left, err)
			}
		})
	}
}

// Parts of one upload, and of several, are noted at the same time: no line is lost, or
// mixed with another one.
func TestPartsAreNotedAtTheSameTime(t *testing.T) {
	const uploads, parts = 4, 200
	n, err := OpenNotes(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	for upload := range uploads {
		for part := range parts {
			group.Go(func() error {
				sum := sha256.Sum256(fmt.Append(nil, upload, part))
				return n.sent(fmt.Sprint(upload), part, fmt.Sprint("etag of ", part), sum[:])
			})
		}
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for upload := range uploads {
		notes := n.of(fmt.Sprint(upload))
		if len(notes) != parts {
			t.Errorf("upload %d: %d parts are noted, %d were sent", upload, len(notes), parts)
		}
		for part := range parts {
			sum := sha256.Sum256(fmt.Append(nil, upload, part))
			if got := notes[part]; got.ETag != fmt.Sprint("etag of ", part) || !bytes.Equal(got.SHA256, sum[:]) {
				t.Errorf("upload %d, part %d: noted as %+v", upload, part, got)
			}
		}
	}
}

func TestOldNotesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	n, err := OpenNotes(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := n.sent(fmt.Sprint(i), 0, "e", nil); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * maxNotesAge)
	if err := os.Chtimes(n.file("1"), old, old); err != nil {
		t.Fatal(err)
	}
	if n, err = OpenNotes(dir); err != nil || len(n.of("1")) != 0 || len(n.of("0")) != 1 || len(n.of(strings.Repeat("no", 2000))) != 0 {
		t.Errorf("%v: %v, %v", err, n.of("1"), n.of("0"))
	}
}

// A landing that the store has no conditions for goes without them.
func TestUnconditional(t *testing.T) {
	for _, size := range []int{0, 10} {
		s := newSite(t, size)
		s.put(t, "something else", nil)
		s.wire.before = func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("If-Match") != "" || r.Header.Get("If-None-Match") != "" {
				return refuse(r, http.StatusNotImplemented, "NotImplemented")
			}
			return nil, nil
		}
		execution := s.begin(t, "etag")
		if _, err := s.job(execution, true).Run(t.Context()); err == nil {
			t.Fatal("landed under a condition")
		}
		j := s.job(execution, true)
		j.Unconditional = true
		result, err := j.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.assertLanded(t, execution, result)
	}
}
