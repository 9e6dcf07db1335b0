package ledger

import "testing"

// An execution keeps the scheme and the term that it was begun with, whatever happens to
// it; one that an older version has begun has neither.
func TestSchemeAndTerm(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		kept := func(when, scheme string, term int64) {
			t.Helper()
			r, err := l.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			_, says := r.item["term"]
			if r.Scheme != scheme || r.Term != term || r.mended || says != (scheme != "") {
				t.Errorf("%s: scheme %q, term %d, in the item: %v, mended: %v", when, r.Scheme, r.Term, says, r.mended)
			}
		}
		begin(t, l, start("of an older version", "aaa"))
		kept("of an older version", "", 0)
		begun := func(etag, scheme string) *Record {
			s := start(etag, "aaa", "bbb")
			s.Scheme = scheme
			return begin(t, l, s).Record
		}
		id := begun("xxx", "ramp").ExecutionID
		kept("begun", "ramp", 0)
		if joined := begun("xxx", "other"); joined.ExecutionID != id || joined.Scheme != "ramp" {
			t.Errorf("joined: %+v", joined)
		}
		if _, err := l.SetContent(t.Context(), key, id, "infohash", "sha256"); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Fail(t.Context(), key, id, "bbb", Result{Timestamp: noon, Error: "late"}); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Retry(t.Context(), key, id); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Arrive(t.Context(), &Record{Key: key, ExecutionID: id}, "aaa", Result{Timestamp: noon}); err != nil {
			t.Fatal(err)
		}
		kept("failed, sent again, arrived", "ramp", 0)
		begun("yyy", "other")
		kept("superseded", "other", 0)
	})
}

// The execution of an upload has them beside the item, and takes them along to the key.
func TestSchemeOfAnUpload(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		for scheme, term := range map[string]int64{"": 0, "ramp": 0, "other": 5} {
			begin(t, l, start("etag "+scheme, "aaa"))
			id, beside, err := l.NewUpload(t.Context(), key, noon)
			if err != nil {
				t.Fatal(err)
			}
			u := Upload{ExecutionID: id, UploadID: "upload", Size: 7, Destinations: []string{"aaa"}, StartTime: noon, Scheme: scheme, Term: term}
			r, err := l.BeginUpload(t.Context(), key, u, beside)
			if err != nil || r.Scheme != scheme || r.Term != term {
				t.Fatalf("%+v, %v", r, err)
			}
			if r, err = l.Get(t.Context(), key); err != nil || r.Of(id).Scheme != scheme || r.Of(id).Term != term || r.Scheme != "" {
				t.Errorf("beside the item: %+v, %v", r.Of(id), err)
			}
			seal := start("seal "+scheme, "aaa")
			seal.Upload, seal.Sealing, seal.Scheme = id, true, "ramp"
			if b := begin(t, l, seal); !b.Adopted {
				t.Errorf("%+v", b)
			}
			if r, err = l.Get(t.Context(), key); err != nil || r.ExecutionID != id || r.Scheme != scheme || r.Term != term {
				t.Errorf("with the key: %+v, %v", r, err)
			}
		}
	})
}
