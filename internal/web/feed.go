package web

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
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
	// maxReaders bounds the open pages.
	maxReaders = 200
	// maxOpen bounds what one reader has opened, maxOpenName the length of its name.
	maxOpen, maxOpenName = 8, 128
	// maxGone bounds the names remembered after their value is gone; a reader that
	// was away for longer gets everything anew.
	maxGone = 10_000
	// writeTimeout ends a reader that takes nothing any more.
	writeTimeout = 30 * time.Second
	// reconnect is how soon a browser comes again after a break, in milliseconds.
	reconnect = 1000
)

// State yields what a page shows, as values by name. open are the names that some
// reader has opened: what is too much to be sent of everything to everybody.
type State func(open []string) iter.Seq2[string, any]

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
	readers   int
	open      map[string]int // by how many
}

type item struct {
	json    []byte
	version int64 // of its last change
}

type tombstone struct {
	name    string
	version int64
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
	return &Feed{state: s, epoch: ulid.Make().String(), items: make(map[string]item), open: make(map[string]int)}
}

// join counts a reader in; false when there are too many.
func (f *Feed) join(open []string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readers >= maxReaders {
		return false
	}
	f.readers++
	for _, name := range open {
		f.open[name]++
		if f.open[name] == 1 {
			f.at = time.Time{} // it is not among the values read last
		}
	}
	return true
}

func (f *Feed) leave(open []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers--
	for _, name := range open {
		if f.open[name]--; f.open[name] == 0 {
			delete(f.open, name)
		}
	}
}

// refresh reads the state, unless that was done just now. The caller holds mu.
func (f *Feed) refresh() error {
	if time.Since(f.at) < eventInterval/2 {
		return nil
	}
	open := make([]string, 0, len(f.open))
	for name := range f.open {
		open = append(open, name)
	}
	slices.Sort(open)
	next := f.version + 1
	seen := make(map[string]bool, len(f.items))
	changed := false
	for name, value := range f.state(open) {
		b, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encoding %s: %w", name, err)
		}
		seen[name] = true
		if !bytes.Equal(b, f.items[name].json) {
			f.items[name], changed = item{b, next}, true
		}
	}
	for name := range f.items {
		if !seen[name] {
			delete(f.items, name)
			f.gone, changed = append(f.gone, tombstone{name, next}), true
		}
	}
	if drop := len(f.gone) - maxGone; drop > 0 {
		f.forgotten = f.gone[drop-1].version
		f.gone = slices.Delete(f.gone, 0, drop)
	}
	if changed {
		f.version = next
	}
	f.at = time.Now()
	return nil
}

// since returns what changed since a version, everything for one that is unknown;
// nil when nothing did. What is in fresh is there in any case.
func (f *Feed) since(version string, fresh []string) (*patch, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.refresh(); err != nil {
		return nil, err
	}
	p := &patch{Version: f.epoch + "-" + strconv.FormatInt(f.version, 10), Set: make(map[string]json.RawMessage)}
	if version == p.Version && len(fresh) == 0 {
		return nil, nil
	}
	from := f.known(version)
	p.Full = from < 0
	for name, i := range f.items {
		if i.version > from {
			p.Set[name] = i.json
		}
	}
	for _, name := range fresh {
		if i, ok := f.items[name]; ok {
			p.Set[name] = i.json
		}
	}
	for _, g := range f.gone {
		if _, back := f.items[g.name]; !p.Full && g.version > from && !back {
			p.Gone = append(p.Gone, g.name)
		}
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

// errReaders is the answer to one reader too many.
var errReaders = Errorf(http.StatusServiceUnavailable, "%d readers already; close a page", maxReaders)

// changes answers what has changed since ?since=VERSION, for readers whose way here
// does not let a stream through.
func (f *Feed) changes(r *http.Request) (int, any, error) {
	open, err := opened(r)
	if err != nil {
		return 0, nil, err
	}
	if !f.join(open) {
		return 0, nil, errReaders
	}
	defer f.leave(open)
	since := r.URL.Query().Get("since")
	p, err := f.since(since, open)
	if p == nil {
		p = &patch{Version: since, Set: map[string]json.RawMessage{}}
	}
	return http.StatusOK, p, err
}

// events sends what changes, as server-sent events, until the reader hangs up. One
// that says what it has, by Last-Event-ID or ?since=, gets only what came after.
func (f *Feed) events(w http.ResponseWriter, r *http.Request) error {
	open, err := opened(r)
	if err != nil {
		return err
	}
	if !f.join(open) {
		return errReaders
	}
	defer f.leave(open)
	control := http.NewResponseController(w)
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
		p, err := f.since(version, fresh)
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
		select {
		case <-r.Context().Done():
			return nil
		case <-ticker.C:
		}
	}
}
