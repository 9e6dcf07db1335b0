package web

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
)

const (
	// eventInterval is how often readers hear of changes.
	eventInterval = time.Second
	// maxReaders bounds the open pages, maxReadersPerAddress those of one address: half,
	// since a proxy has one. Beyond them an old one goes, of whoever has most.
	maxReaders, maxReadersPerAddress = 200, 100
	// evictedReconnect is how soon a browser comes again whose page was closed for
	// another, in milliseconds.
	evictedReconnect = 10_000
	// maxOpen bounds what one reader has opened, maxOpenName the length of its name.
	maxOpen, maxOpenName = 8, 128
	// linger is how long a name stays open without a reader: one who asks again and
	// again is away in between. maxLingering bounds the names open then.
	linger, maxLingering = 10 * time.Second, 500
	// maxGone bounds the names remembered after their value is gone; a reader that
	// was away for longer gets everything anew.
	maxGone = 10_000
	// writeTimeout ends a reader that takes nothing any more.
	writeTimeout = 30 * time.Second
	// reconnect is how soon a browser comes again after a break, in milliseconds.
	reconnect = 1000
)

// State is what a page shows, as values by name.
type State struct {
	// All yields what everybody is told.
	All func() iter.Seq2[string, any]
	// One returns a value that only those are told who have opened it: what is too
	// much for everybody. ok is false for a name that is not known. Nil: there is
	// none.
	One func(name string) (value any, ok bool)
}

// Feed tells any number of readers what has changed of a State. The State is read
// once for all of them, and not at all while there are none.
type Feed struct {
	state State
	// epoch tells this process's versions from those of the one before.
	epoch string

	mu      sync.Mutex
	at      time.Time // when the state was read last
	version int64
	items   map[string]item
	gone    []tombstone
	// forgotten is the version up to which tombstones were dropped.
	forgotten int64
	readers   map[*reader]struct{}
	open      map[string]*opening
}

// reader is an open page.
type reader struct {
	addr   netip.Addr
	joined time.Time
	// wrote is when it last took something; one that takes nothing has gone, and
	// nobody knows yet. Feed.mu guards it.
	wrote time.Time
	// evicted is closed when its place is another's; interrupt ends a write under way.
	evicted   chan struct{}
	interrupt func()
}

// stuckAfter is how long a reader may take nothing before it is the first to go.
const stuckAfter = 5 * eventInterval

// opening is a name that somebody has opened, or had until just now.
type opening struct {
	readers int
	left    time.Time
}

type item struct {
	json    []byte
	version int64 // of its last change
	one     bool  // of State.One
}

type tombstone struct {
	name    string
	version int64
	one     bool
}

// patch is what a reader is sent.
type patch struct {
	// Version is to be given back, as Last-Event-ID or ?since=, for what comes next.
	Version string `json:"version"`
	// Full: what is not in Set does not exist.
	Full bool                       `json:"full,omitempty"`
	Set  map[string]json.RawMessage `json:"set"`
	Gone []string                   `json:"gone,omitempty"`
}

// NewFeed makes a Feed.
func NewFeed(s State) *Feed {
	return &Feed{state: s, epoch: ulid.Make().String(), items: make(map[string]item), readers: make(map[*reader]struct{}), open: make(map[string]*opening)}
}

// join makes room for a page of an address.
func (f *Feed) join(addr netip.Addr, interrupt func()) *reader {
	f.mu.Lock()
	defer f.mu.Unlock()
	count := make(map[netip.Addr]int)
	for r := range f.readers {
		count[r.addr]++
	}
	most := addr
	if len(f.readers) >= maxReaders {
		for a, n := range count {
			if n > count[most] {
				most = a
			}
		}
	}
	if count[addr] >= maxReadersPerAddress || len(f.readers) >= maxReaders {
		f.evict(most)
	}
	now := time.Now()
	r := &reader{addr: addr, joined: now, wrote: now, evicted: make(chan struct{}), interrupt: interrupt}
	f.readers[r] = struct{}{}
	return r
}

// evict ends a page of an address: one that takes nothing, or the oldest.
func (f *Feed) evict(addr netip.Addr) {
	now := time.Now()
	var goes *reader
	for r := range f.readers {
		if r.addr != addr {
			continue
		}
		stuck := now.Sub(r.wrote) > stuckAfter
		if goes == nil || stuck && r.wrote.Before(goes.wrote) || !stuck && now.Sub(goes.wrote) <= stuckAfter && r.joined.Before(goes.joined) {
			goes = r
		}
	}
	if goes != nil {
		delete(f.readers, goes)
		close(goes.evicted)
		goes.interrupt()
	}
}

func (f *Feed) took(r *reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r.wrote = time.Now()
}

func (f *Feed) leave(r *reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.readers, r)
}

// opens counts a reader of names in.
func (f *Feed) opens(open []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range open {
		o, ok := f.open[name]
		if !ok {
			o = &opening{}
			f.open[name] = o
		}
		o.readers++
	}
}

func (f *Feed) closes(open []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range open {
		o := f.open[name]
		if o.readers--; o.readers == 0 {
			o.left = time.Now()
			if _, known := f.items[name]; !known || len(f.open) > maxLingering {
				delete(f.open, name)
			}
		}
	}
}

// refresh reads the state, unless that was done just now. The caller holds mu.
func (f *Feed) refresh() error {
	if time.Since(f.at) < eventInterval/2 {
		return nil
	}
	f.at = time.Now()
	f.version++ // also where nothing has changed: a version says nothing but the order
	seen := make(map[string]bool, len(f.items))
	for name, value := range f.state.All() {
		seen[name] = true
		if err := f.set(name, value, false); err != nil {
			return err
		}
	}
	for name, o := range f.open {
		if o.readers == 0 && time.Since(o.left) > linger {
			delete(f.open, name)
			continue
		}
		ok, err := f.readOne(name)
		if err != nil {
			return err
		}
		seen[name] = seen[name] || ok
	}
	for name, i := range f.items {
		if !seen[name] {
			delete(f.items, name)
			f.gone = append(f.gone, tombstone{name, f.version, i.one})
		}
	}
	if drop := len(f.gone) - maxGone; drop > 0 {
		f.forgotten = f.gone[drop-1].version
		f.gone = slices.Delete(f.gone, 0, drop)
	}
	return nil
}

// readOne reads a value that was opened; false when there is none.
func (f *Feed) readOne(name string) (ok bool, err error) {
	if f.state.One == nil {
		return false, nil
	}
	value, ok := f.state.One(name)
	if !ok {
		return false, nil
	}
	return true, f.set(name, value, true)
}

func (f *Feed) set(name string, value any, one bool) error {
	b, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	if !bytes.Equal(b, f.items[name].json) {
		f.items[name] = item{b, f.version, one}
	}
	return nil
}

// since returns what changed since a version for a reader with these names open,
// everything for a version that is unknown; nil when nothing did. What is in fresh is
// there in any case.
func (f *Feed) since(version string, open, fresh []string) (*patch, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.refresh(); err != nil {
		return nil, err
	}
	p := &patch{Version: f.epoch + "-" + strconv.FormatInt(f.version, 10), Set: make(map[string]json.RawMessage)}
	from := f.known(version)
	p.Full = from < 0
	for name, i := range f.items {
		if i.version > from && (!i.one || slices.Contains(open, name)) {
			p.Set[name] = i.json
		}
	}
	for _, name := range fresh {
		if _, read := f.items[name]; !read { // opened since the state was read
			if _, err := f.readOne(name); err != nil {
				return nil, err
			}
		}
		if i, ok := f.items[name]; ok {
			p.Set[name] = i.json
		}
	}
	for _, g := range f.gone {
		if _, back := f.items[g.name]; !p.Full && g.version > from && !back && (!g.one || slices.Contains(open, g.name)) {
			p.Gone = append(p.Gone, g.name)
		}
	}
	if !p.Full && len(fresh) == 0 && len(p.Set) == 0 && len(p.Gone) == 0 {
		return nil, nil
	}
	return p, nil
}

// known is the number in a version that this Feed has given out, -1 for any other.
func (f *Feed) known(version string) int64 {
	epoch, number, _ := strings.Cut(version, "-")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || epoch != f.epoch || n < f.forgotten || n > f.version {
		return -1
	}
	return n
}

// opened reads ?open=NAME, given any number of times.
func opened(r *http.Request) ([]string, error) {
	open := r.URL.Query()["open"]
	if len(open) > maxOpen {
		return nil, Errorf(http.StatusBadRequest, "open is given %d times, at most %d", len(open), maxOpen)
	}
	for _, name := range open {
		if len(name) > maxOpenName {
			return nil, Errorf(http.StatusBadRequest, "open is longer than %d bytes", maxOpenName)
		}
	}
	return open, nil
}

// changes answers what has changed since ?since=VERSION, for readers whose way here
// does not let a stream through.
func (f *Feed) changes(r *http.Request) (int, any, error) {
	open, err := opened(r)
	if err != nil {
		return 0, nil, err
	}
	f.opens(open)
	defer f.closes(open)
	since := r.URL.Query().Get("since")
	p, err := f.since(since, open, open)
	if p == nil {
		p = &patch{Version: since, Set: map[string]json.RawMessage{}}
	}
	return http.StatusOK, p, err
}

// goodbye ends a page that is closed for another, and has its browser wait before it
// comes again.
func goodbye(w http.ResponseWriter, control *http.ResponseController) error {
	if control.SetWriteDeadline(time.Now().Add(eventInterval)) == nil {
		fmt.Fprintf(w, "retry: %d\n:\n\n", evictedReconnect) //nolint:errcheck // it may have gone
		control.Flush()                                      //nolint:errcheck // the same
	}
	return nil
}

// events sends what changes, as server-sent events, until the reader hangs up. One
// that says what it has, by Last-Event-ID or ?since=, gets only what came after.
func (f *Feed) events(w http.ResponseWriter, r *http.Request) error {
	open, err := opened(r)
	if err != nil {
		return err
	}
	control := http.NewResponseController(w)
	me := f.join(client(r.RemoteAddr), func() { control.SetWriteDeadline(time.Now()) }) //nolint:errcheck // then it ends by itself
	defer f.leave(me)
	f.opens(open)
	defer f.closes(open)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would keep it back
	version := r.Header.Get("Last-Event-ID")
	if version == "" {
		version = r.URL.Query().Get("since")
	}
	ticker := time.NewTicker(eventInterval)
	defer ticker.Stop()
	greeting, fresh := fmt.Sprintf("retry: %d\n", reconnect), open
	for {
		p, err := f.since(version, open, fresh)
		if err != nil {
			return err
		}
		fresh = nil
		text := greeting + ":\n\n" // nothing new; finds out whether the reader is still there
		if p != nil {
			b, err := json.Marshal(p)
			if err != nil {
				return err
			}
			version = p.Version
			text = fmt.Sprintf("%sid: %s\ndata: %s\n\n", greeting, version, b)
		}
		greeting = ""
		if err := control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		if _, err := io.WriteString(w, text); err != nil {
			return nil
		}
		if control.Flush() != nil {
			return nil
		}
		f.took(me)
		select {
		case <-r.Context().Done():
			return nil
		case <-me.evicted:
			return goodbye(w, control)
		case <-ticker.C:
		}
	}
}
