package gossip

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/retry"
)

// mailAgain is when who could not be reached is tried again. A goal at a living agent may
// not wait for long.
var mailAgain = retry.Policy{First: 300 * time.Millisecond, Max: 5 * time.Second}

// mailing brings members the newest letter of each name: a goroutine for each member that
// lacks some, so that one that does not answer keeps nobody waiting. Letters are bounded by
// goal.MaxServices, members by maxMembers.
type mailing struct {
	g     *Gossip
	kind  byte
	late  string // is logged when a member is not reached
	pack  func(list [][]byte) []byte
	wants func(Member) bool
	// deliver is set by tests; else it is the Gossip's.
	deliver func(name string, message []byte) error
	backoff retry.Policy
	wg      sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	number  int64 // of the newest letter
	letters map[string]*letter
	readers map[string]*reader
}

// letter is what stands under one name: a text, or counts and the failures with them.
type letter struct {
	number   int64
	text     []byte
	counts   goal.Counts
	failures []numberedFailure
}

type numberedFailure struct {
	number int64
	goal.Failure
}

// reader is what a member has got, by name.
type reader struct {
	has     map[string]int64
	working bool
}

func newMailing(g *Gossip, kind byte, late string, pack func([][]byte) []byte, wants func(Member) bool) *mailing {
	return &mailing{g: g, kind: kind, late: late, pack: pack, wants: wants, deliver: g.deliver, backoff: mailAgain,
		letters: make(map[string]*letter), readers: make(map[string]*reader)}
}

// count takes over newer counts, and adds their failures.
func (l *letter) count(c goal.Counts) {
	for _, f := range c.Failures {
		l.failures = append(l.failures, numberedFailure{l.number, f})
	}
	l.failures = l.failures[max(0, len(l.failures)-goal.MaxFailures):]
	c.Failures = nil
	l.counts = c
}

// encode is the letter for who has got the one of a number already. Failures that do not
// fit are left out, the oldest first; the counts have them all the same.
func (l *letter) encode(since int64) []byte {
	if l.text != nil {
		return l.text
	}
	c := l.counts
	for _, f := range l.failures {
		if f.number > since {
			c.Failures = append(c.Failures, f.Failure)
		}
	}
	for {
		b, err := json.Marshal(c)
		switch {
		case err == nil && len(b) <= maxCounts:
			return b
		case len(c.Failures) == 0:
			return nil // no counts are so long
		}
		c.Failures = c.Failures[1:]
	}
}

// put changes the letter of a name, or begins it, and has who lacks it get it.
func (m *mailing) put(name string, change func(*letter)) error {
	m.mu.Lock()
	l := m.letters[name]
	if l == nil {
		if len(m.letters) > goal.MaxServices+2 { // and a beat, and the recalls with theirs
			m.mu.Unlock()
			return fmt.Errorf("%s: %d services are told of already, at most %d", name, len(m.letters), goal.MaxServices)
		}
		l = new(letter)
		m.letters[name] = l
	}
	m.number++
	l.number = m.number
	change(l)
	m.mu.Unlock()
	m.sync()
	return nil
}

func (m *mailing) drop(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.letters, name)
	for _, r := range m.readers {
		delete(r.has, name)
	}
}

// again has a member get the letters of these names once more.
func (m *mailing) again(member string, names []string) {
	m.mu.Lock()
	if r := m.readers[member]; r != nil {
		for _, name := range names {
			delete(r.has, name)
		}
	}
	m.mu.Unlock()
	m.sync()
}

// sync looks who is a member, and has those get their letters who lack some.
func (m *mailing) sync() {
	names := m.g.namesOf(m.wants)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	for name := range m.readers {
		if _, found := slices.BinarySearch(names, name); !found {
			delete(m.readers, name)
		}
	}
	for _, name := range names {
		r := m.readers[name]
		if r == nil {
			r = &reader{has: make(map[string]int64)}
			m.readers[name] = r
		}
		if !r.working && m.lacks(r) {
			r.working = true
			m.wg.Go(func() { m.work(name, r) })
		}
	}
}

// lacks reports whether a reader has not got all letters. The caller holds mu.
func (m *mailing) lacks(r *reader) bool {
	for name, l := range m.letters {
		if r.has[name] != l.number {
			return true
		}
	}
	return false
}

// behind is how many members lack a letter.
func (m *mailing) behind() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.readers {
		if m.lacks(r) {
			n++
		}
	}
	return n
}

// work brings a member what it lacks, and ends when that is nothing, or when it is gone.
func (m *mailing) work(member string, r *reader) {
	for try := 0; ; {
		message, numbers := m.next(member, r)
		if message == nil {
			return
		}
		err := m.deliver(member, message)
		if err == nil {
			m.mu.Lock()
			for name, number := range numbers {
				r.has[name] = number
			}
			m.mu.Unlock()
			try = 0
			continue
		}
		try++
		if !errors.Is(err, errGone) && m.g.ctx.Err() == nil {
			m.g.warn(m.late, "member", member, "error", err)
		}
		if !retry.Wait(m.g.ctx, m.backoff.Delay(try)) {
			return
		}
	}
}

// next packs what a reader lacks, what is of all services before goals (a build that is
// recalled no more may be named by the next one), the newest first, as far as it fits one message; nil when
// that is nothing, and then nobody works for the reader any more.
func (m *mailing) next(member string, r *reader) (message []byte, numbers map[string]int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name, l := range m.letters {
		if r.has[name] != l.number {
			names = append(names, name)
		}
	}
	if len(names) == 0 || m.closed || m.readers[member] != r {
		r.working = false
		return nil, nil
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(turn(a), turn(b)), cmp.Compare(m.letters[b].number, m.letters[a].number))
	})
	var list [][]byte
	numbers = make(map[string]int64)
	size := 2 + len(m.g.name) + len("[]")
	for _, name := range names {
		l := m.letters[name]
		text := l.encode(r.has[name])
		if size += len(text) + 2; size > maxFleet && len(list) > 0 {
			break
		}
		list = append(list, text)
		numbers[name] = l.number
	}
	return packFleet(m.kind, m.g.name, m.pack(list)), numbers
}

// turn is 0 for what is of all services, whose names begin with a dot, and 1 for the others.
func turn(name string) int {
	if strings.HasPrefix(name, ".") {
		return 0
	}
	return 1
}

// close waits for what is under way; the context that ends it has ended.
func (m *mailing) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.wg.Wait()
}

// packFrames puts texts one after the other, each with its length.
func packFrames(list [][]byte) (out []byte) {
	for _, text := range list {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(text))), text...)
	}
	return out
}

// packList makes a JSON list of JSON texts.
func packList(list [][]byte) []byte {
	return slices.Concat([]byte("["), bytes.Join(list, []byte(",")), []byte("]"))
}
