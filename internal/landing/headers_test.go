package landing

import (
	"maps"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// accept starts an execution as the seeder does, with the source object's headers.
func (s *site) accept(t *testing.T, etag string, h bucket.Headers) string {
	t.Helper()
	begun, err := s.ledger.Begin(t.Context(), ledger.Start{
		Key: s.key, SourceETag: etag, Size: s.m.Size, Headers: h.Map(), Destinations: []string{s.bucket.Name()}, Now: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return begun.Record.ExecutionID
}

func (s *site) setContent(t *testing.T, execution string) *ledger.Record {
	t.Helper()
	r, err := s.ledger.SetContent(t.Context(), s.key, execution, "", s.m.SHA256Hex())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (s *site) land(t *testing.T, execution string) {
	t.Helper()
	if _, err := s.job(execution, true).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

var full = bucket.Headers{
	ContentType:        "application/zip",
	CacheControl:       "public, max-age=31536000, immutable",
	ContentEncoding:    "gzip",
	ContentDisposition: `attachment; filename="b.zip"`,
	ContentLanguage:    "de",
	Expires:            "when it is old", // S3 keeps what is no date
	Metadata:           map[string]string{"commit": "abc 123"},
}

func TestHeadersComeAlong(t *testing.T) {
	for name, size := range map[string]int{"empty": 0, "parts": several} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, size)
			execution := s.accept(t, "etag", full)
			s.land(t, execution)
			object, err := s.bucket.Head(t.Context(), s.key.FileKey)
			if err != nil {
				t.Fatal(err)
			}
			want := full.With(map[string]string{digestMetadata: s.m.SHA256Hex(), ExecutionMetadata: execution, sourceMetadata: "etag"}).Map()
			if got := object.Headers.Map(); !maps.Equal(got, want) {
				t.Errorf("landed with %v, want %v", got, want)
			}
		})
	}
}

// Equal bytes with other headers are another build; with the same ones they are there
// already, whoever landed them.
func TestPresentComparesHeaders(t *testing.T) {
	other := func(change func(*bucket.Headers)) bucket.Headers {
		h := full.With(nil)
		change(&h)
		return h
	}
	for name, c := range map[string]struct {
		now     bucket.Headers
		present bool
	}{
		"the same":          {full, true},
		"landfall's own":    {full.With(map[string]string{"landfall-execution": "of the source"}), true},
		"content type":      {other(func(h *bucket.Headers) { h.ContentType = "text/plain" }), false},
		"one less":          {other(func(h *bucket.Headers) { h.CacheControl = "" }), false},
		"metadata value":    {full.With(map[string]string{"commit": "def"}), false},
		"metadata added":    {full.With(map[string]string{"rev": "2"}), false},
		"metadata removed":  {other(func(h *bucket.Headers) { h.Metadata = nil }), false},
		"no type was given": {other(func(h *bucket.Headers) { h.ContentType = "" }), true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, 0)
			s.land(t, s.accept(t, "etag", full))
			second := s.accept(t, "etag", c.now)
			if _, present, err := Present(t.Context(), s.bucket, s.setContent(t, second), ""); err != nil || present != c.present {
				t.Errorf("present: %v, %v", present, err)
			}
			s.land(t, second)
			if _, present, err := Present(t.Context(), s.bucket, s.setContent(t, second), ""); err != nil || !present {
				t.Errorf("present after it has landed: %v, %v", present, err)
			}
			object, err := s.bucket.Head(t.Context(), s.key.FileKey)
			if names := c.now.Differ(object.Headers); err != nil || len(names) > 0 {
				t.Errorf("the object differs in %v, %v", names, err)
			}
		})
	}
}

// What an older version has written does not say the headers: what it landed stays.
func TestHeadersNotKnown(t *testing.T) {
	s := newSite(t, 0)
	s.land(t, s.accept(t, "etag", full))
	second := s.begin(t, "other")
	if _, present, err := Present(t.Context(), s.bucket, s.setContent(t, second), ""); err != nil || !present {
		t.Errorf("present: %v, %v", present, err)
	}
}
