package web

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// values is a State that tests change.
type values struct {
	mu    sync.Mutex
	now   map[string]any
	ones  map[string]any
	reads int
}

func (v *values) state() State {
	return State{
		All: func() iter.Seq2[string, any] {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.reads++
			return maps.All(maps.Clone(v.now))
		},
		One: func(name string) (any, bool) {
			v.mu.Lock()
			defer v.mu.Unlock()
			value, ok := v.ones[name]
			return value, ok
		},
	}
}

func (v *values) set(name string, value any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if value == nil {
		delete(v.now, name)
		return
	}
	v.now[name] = value
}

// next is what a reader who has version gets now.
func next(t *testing.T, f *Feed, version string, fresh ...string) *patch {
	t.Helper()
	f.at = time.Time{}
	p, err := f.since(version, fresh, fresh)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func keys(p *patch) string { return strings.Join(slices.Sorted(maps.Keys(p.Set)), " ") }

func TestFeedSendsWhatChanged(t *testing.T) {
	v := &values{now: map[string]any{"a": 1, "b": 2}}
	f := NewFeed(v.state())
	first := next(t, f, "")
	if !first.Full || keys(first) != "a b" {
		t.Fatalf("first: %+v", first)
	}
	if p := next(t, f, first.Version); p != nil {
		t.Errorf("nothing has changed, but: %+v", p)
	}
	v.set("a", 3)
	v.set("b", nil)
	v.set("c", 4)
	second := next(t, f, first.Version)
	if second.Full || keys(second) != "a c" || !slices.Equal(second.Gone, []string{"b"}) {
		t.Errorf("second: %+v", second)
	}
	v.set("b", 2) // is back
	third := next(t, f, first.Version)
	if keys(third) != "a b c" || third.Gone != nil {
		t.Errorf("third, for one that was away: %+v", third)
	}
	if p := next(t, f, third.Version, "a"); p == nil || keys(p) != "a" || p.Full {
		t.Errorf("asked for a in any case: %+v", p)
	}
	for _, unknown := range []string{"x", "-1", f.epoch + "-99", f.epoch + "--1", strings.Replace(third.Version, "-", "x-", 1)} {
		if p := next(t, f, unknown); p == nil || !p.Full {
			t.Errorf("version %q: %+v, want all", unknown, p)
		}
	}
}

// A reader that was away for longer than names of gone values are remembered must
// not keep one of them.
func TestFeedForgetsTombstones(t *testing.T) {
	v := &values{now: map[string]any{"a": 1}}
	f := NewFeed(v.state())
	first := next(t, f, "").Version
	for i := range maxGone + 2 {
		v.set(fmt.Sprint("n", i), 1)
	}
	second := next(t, f, first).Version
	for i := range maxGone + 2 {
		v.set(fmt.Sprint("n", i), nil)
		if i == 0 {
			next(t, f, second)
		}
	}
	last := next(t, f, second)
	if !last.Full || keys(last) != "a" || len(f.gone) > maxGone {
		t.Errorf("full %v, %d set, %d gone", last.Full, len(last.Set), len(f.gone))
	}
}

func TestFeedIsReadOnceForAll(t *testing.T) {
	v := &values{now: map[string]any{"a": 1}}
	f := NewFeed(v.state())
	for range 100 {
		if _, err := f.since("", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if v.reads != 1 {
		t.Errorf("read %d times", v.reads)
	}
}

// However many pages one address opens, others have theirs: beyond the bounds an old page
// of whoever has most goes, first one that takes nothing.
func TestReadersAreBounded(t *testing.T) {
	f := NewFeed((&values{now: map[string]any{}}).state())
	interrupted := 0
	join := func(addr string) *reader {
		return f.join(netip.MustParseAddr(addr), func() { interrupted++ })
	}
	gone := func(r *reader) bool {
		select {
		case <-r.evicted:
			return true
		default:
			return false
		}
	}
	honest := join("192.0.2.1")
	var many []*reader
	for range maxReadersPerAddress + 1 {
		many = append(many, join("192.0.2.2"))
	}
	if len(f.readers) != maxReadersPerAddress+1 || !gone(many[0]) || gone(many[1]) || gone(honest) || interrupted != 1 {
		t.Errorf("one address: %d readers, %d interrupted", len(f.readers), interrupted)
	}
	many[50].wrote = time.Now().Add(-2 * stuckAfter)
	many = append(many, join("192.0.2.2"))
	if !gone(many[50]) || gone(many[1]) {
		t.Error("one that takes nothing stays while another goes")
	}
	for i := range 2 * maxReaders {
		join(fmt.Sprintf("198.51.100.%d", i%20))
	}
	if len(f.readers) != maxReaders || gone(honest) {
		t.Errorf("many addresses: %d readers, that of one page gone: %v", len(f.readers), gone(honest))
	}
	for r := range f.readers {
		f.leave(r)
	}
	f.leave(many[0]) // has gone before
	if len(f.readers) != 0 {
		t.Errorf("%d readers after the end", len(f.readers))
	}
}

func TestOpenedNamesAreBounded(t *testing.T) {
	f := NewFeed((&values{now: map[string]any{}}).state())
	m := &Mux{ServeMux: http.NewServeMux()}
	m.JSON("GET /changes", f.changes)
	for path, code := range map[string]int{
		"/changes?open=x": 200,
		"/changes?open=" + strings.Repeat("x", maxOpenName+1):  400,
		"/changes?open=x" + strings.Repeat("&open=x", maxOpen): 400,
	} {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != code {
			t.Errorf("%s: %d, want %d", path, w.Code, code)
		}
	}
	if len(f.open) != 0 {
		t.Errorf("what does not exist is still open: %v", f.open)
	}
}

// What one reader has opened is told to nobody else, read at once when it is opened,
// and without reading all the rest again.
func TestOpenedValues(t *testing.T) {
	v := &values{now: map[string]any{"a": 1}, ones: map[string]any{"x": 1, "y": 1}}
	f := NewFeed(v.state())
	f.opens([]string{"x"})
	f.opens([]string{"y"})
	patch := func(version string, open, fresh []string) *patch {
		t.Helper()
		p, err := f.since(version, open, fresh)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := patch("", nil, nil)
	if keys(first) != "a" {
		t.Errorf("without anything open: %s", keys(first))
	}
	if p := patch("", []string{"x"}, []string{"x"}); keys(p) != "a x" {
		t.Errorf("with x open: %s", keys(p))
	}
	f.opens([]string{"y"})
	if p := patch(first.Version, []string{"y"}, []string{"y"}); keys(p) != "y" || v.reads != 1 {
		t.Errorf("when y is opened: %s after %d reads", keys(p), v.reads)
	}
	v.mu.Lock()
	v.ones = map[string]any{"x": 2}
	v.mu.Unlock()
	f.at = time.Time{}
	if p := patch(first.Version, []string{"x"}, nil); keys(p) != "x" || p.Gone != nil {
		t.Errorf("x has changed, y is gone: %s, gone %v", keys(p), p.Gone)
	}
	if p := patch(first.Version, []string{"y"}, nil); len(p.Set) != 0 || !slices.Equal(p.Gone, []string{"y"}) {
		t.Errorf("for the reader of y: %s, gone %v", keys(p), p.Gone)
	}
	// One who asks again and again keeps what it asks for; in the end it goes.
	f.closes([]string{"x"})
	f.at = time.Time{}
	if p := patch("", []string{"x"}, nil); keys(p) != "a x" {
		t.Errorf("just after the last reader of x: %s", keys(p))
	}
	f.open["x"].left = time.Now().Add(-2 * linger)
	f.at = time.Time{}
	if p := patch("", []string{"x"}, nil); keys(p) != "a" || f.open["x"] != nil {
		t.Errorf("long after the last reader of x: %s", keys(p))
	}
}

// A stream that breaks off goes on where it was, by what the browser says it had
// last.
func TestEventsResume(t *testing.T) {
	v := &values{now: map[string]any{"a": 1, "b": 2}, ones: map[string]any{"deep": 7}}
	f := NewFeed(v.state())
	left := make(chan struct{}, 2)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := f.events(w, r); err != nil {
			t.Error(err)
		}
		left <- struct{}{}
	}))
	defer server.Close()
	first := firstEvent(t, server.URL+"?open=deep", "")
	if !first.Full || keys(first) != "a b deep" {
		t.Errorf("first: %+v", first)
	}
	<-left
	v.set("b", 3)
	f.mu.Lock()
	f.at = time.Time{}
	f.mu.Unlock()
	second := firstEvent(t, server.URL+"?since=nonsense", first.Version)
	if second.Full || keys(second) != "b" || second.Gone != nil {
		t.Errorf("second: %+v", second)
	}
}

func firstEvent(t *testing.T, url, last string) *patch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			p := new(patch)
			if err := json.Unmarshal([]byte(data), p); err != nil {
				t.Fatal(err)
			}
			return p
		}
	}
	t.Fatal("no event")
	return nil
}
