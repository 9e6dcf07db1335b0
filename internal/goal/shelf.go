package goal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/private"
	"github.com/landfall-dist/landfall/internal/signing"
)

const (
	goalSuffix = ".goal"
	beatFile   = "beat"
)

// ErrOld is wrapped by Add when a greater version is on the shelf.
var ErrOld = errors.New("older than what is known")

// Shelf keeps the greatest goal of each service, the greatest list of recalls and the newest
// beat of both, in a directory where it has one. It is safe for concurrent use.
type Shelf struct {
	dir   string // empty for memory alone
	trust *signing.Trust
	now   func() time.Time

	writing sync.Mutex // held over the disk, so that versions on it only grow, too
	mu      sync.Mutex // held for a few lines
	goals   map[string]kept
	beat    *Beat
	wire    []byte // the beat's
	recall  *Recall
	recalls []byte // as they are sent

	recallBeat     *RecallBeat
	recallBeatWire []byte

	own    []string             // services whose goals are to be here
	behind map[string]time.Time // what is known not to be the newest, and when a beat first said so
}

type kept struct {
	goal *Goal
	wire []byte
}

// OpenShelf reads what a directory has, which it makes if need be; empty for none. What is
// no goal, or is signed by nobody who is trusted any more, is left out, and the error says
// so beside the shelf, which can be used. Own are services of which a goal lacks that a beat
// names, though none has come yet.
func OpenShelf(dir string, trust *signing.Trust, own ...string) (*Shelf, error) {
	s := &Shelf{dir: dir, trust: trust, now: time.Now, goals: make(map[string]kept), own: own}
	if dir == "" {
		return s, nil
	}
	if err := private.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("goals: %w", err)
	}
	if err := private.RemoveUnfinished(dir); err != nil {
		return nil, fmt.Errorf("goals: %w", err)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("goals: %w", err)
	}
	var odd error
	for _, n := range names {
		if n.Name() != beatFile && n.Name() != recallFile && n.Name() != recallBeatFile && !strings.HasSuffix(n.Name(), goalSuffix) {
			continue
		}
		file := filepath.Join(dir, n.Name())
		wire, err := readFile(file)
		var doc any
		if err == nil {
			doc, err = Open(wire, trust, s.now())
		}
		if err == nil && fileOf(doc) != n.Name() {
			err = fmt.Errorf("%w: it is called otherwise", ErrInvalid)
		}
		if err != nil {
			odd = errors.Join(odd, fmt.Errorf("%s left out: %w", file, err))
			continue
		}
		s.keep(doc, wire)
	}
	return s, odd
}

func readFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxLength+1))
}

func fileOf(doc any) string {
	switch d := doc.(type) {
	case *Goal:
		return d.Service + goalSuffix
	case *Recall:
		return recallFile
	case *RecallBeat:
		return recallBeatFile
	}
	return beatFile
}

func (s *Shelf) keep(doc any, wire []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch d := doc.(type) {
	case *Goal:
		s.goals[d.Service] = kept{d, wire}
	case *Beat:
		s.beat, s.wire = d, wire
	case *Recall:
		s.recall, s.recalls = d, wire
	case *RecallBeat:
		s.recallBeat, s.recallBeatWire = d, wire
	}
	s.compareWithBeats()
}

// compareWithBeats notes what is known not to be the newest. It is called with mu held.
func (s *Shelf) compareWithBeats() {
	behind := make(map[string]time.Time)
	note := func(name string, at time.Time) {
		if before, ok := s.behind[name]; ok {
			at = before
		}
		behind[name] = at
	}
	if s.beat != nil {
		for service, version := range s.beat.Versions {
			k, ok := s.goals[service]
			if ok && k.goal.Version < version || !ok && slices.Contains(s.own, service) {
				note(service, s.beat.Time)
			}
		}
	}
	if s.recallsBehind() {
		note(Recalls, s.recallBeat.Time)
	}
	s.behind = behind
}

// Add takes a signed goal, beat or list of recalls, and reports whether it is newer than what
// was there; then it is on the disk, too. Errors wrap ErrInvalid, ErrUntrusted, ErrOld or ErrContradiction.
func (s *Shelf) Add(wire []byte) (added bool, err error) {
	doc, err := Open(wire, s.trust, s.now())
	if err != nil {
		return false, err
	}
	if known, err := s.compare(doc, wire); known || err != nil { // as most often
		return false, err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if doc, err = Open(wire, s.trust, s.now()); err != nil { // Recheck may have run meanwhile
		return false, err
	}
	if known, err := s.compare(doc, wire); known || err != nil {
		return false, err
	}
	wire = bytes.Clone(wire)
	if s.dir != "" {
		if err := private.Replace(filepath.Join(s.dir, fileOf(doc)), wire); err != nil {
			return false, fmt.Errorf("keeping a goal: %w", err)
		}
	}
	s.keep(doc, wire)
	return true, nil
}

// Recheck drops what is signed by nobody who is trusted any more, and returns its names as Wire
// takes them: older versions that somebody else has signed count again. What is on the disk is
// left out at the next start, unless something newer has taken its place.
func (s *Shelf) Recheck() (dropped []string) {
	s.writing.Lock()
	defer s.writing.Unlock()
	names := []string{"", Recalls, RecallBeats}
	for _, g := range s.Goals() {
		names = append(names, g.Service)
	}
	for _, name := range names {
		wire := s.Wire(name)
		if wire == nil {
			continue
		}
		if _, err := Open(wire, s.trust, s.now()); errors.Is(err, signing.ErrUntrusted) {
			s.drop(name)
			dropped = append(dropped, name)
		}
	}
	return dropped
}

func (s *Shelf) drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch name {
	case "":
		s.beat, s.wire = nil, nil
	case Recalls:
		s.recall, s.recalls = nil, nil
	case RecallBeats:
		s.recallBeat, s.recallBeatWire = nil, nil
	default:
		delete(s.goals, name)
	}
	s.compareWithBeats()
}

// compare reports whether a document is the one on the shelf, or a beat that says no more;
// its error says that a goal is no newer one.
func (s *Shelf) compare(doc any, wire []byte) (known bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch d := doc.(type) {
	case *Beat:
		if s.beat != nil && !d.Time.After(s.beat.Time) {
			return true, nil
		}
	case *RecallBeat:
		if s.recallBeat != nil && !d.Time.After(s.recallBeat.Time) {
			return true, nil
		}
	case *Recall:
		switch {
		case s.recall == nil || s.recall.Version < d.Version:
		case bytes.Equal(wire, s.recalls):
			return true, nil
		case s.recall.Version == d.Version:
			return false, fmt.Errorf("recalls %d: %w", d.Version, ErrContradiction)
		default:
			return false, fmt.Errorf("recalls %d: %w: %d", d.Version, ErrOld, s.recall.Version)
		}
	case *Goal:
		k, ok := s.goals[d.Service]
		switch {
		case !ok || k.goal.Version < d.Version:
		case bytes.Equal(wire, k.wire):
			return true, nil
		case k.goal.Version == d.Version:
			return false, fmt.Errorf("goal %d of %s: %w", d.Version, d.Service, ErrContradiction)
		default:
			return false, fmt.Errorf("goal %d of %s: %w: %d", d.Version, d.Service, ErrOld, k.goal.Version)
		}
		if !ok && len(s.goals) >= MaxServices {
			return false, fmt.Errorf("goal of %s: %w: %d services are known, at most %d", d.Service, ErrInvalid, len(s.goals), MaxServices)
		}
	}
	return false, nil
}

// Goals are the newest, by the service's name. Nobody may change them.
func (s *Shelf) Goals() []*Goal {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Goal, 0, len(s.goals))
	for _, name := range slices.Sorted(maps.Keys(s.goals)) {
		out = append(out, s.goals[name].goal)
	}
	return out
}

// Goal is a service's newest; nil for none. Nobody may change it.
func (s *Shelf) Goal(service string) *Goal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.goals[service].goal
}

// Wire is a service's newest goal as it is sent, the beat where service is empty, the list of
// recalls for Recalls and its beat for RecallBeats; nil for none.
func (s *Shelf) Wire(service string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch service {
	case "":
		return s.wire
	case Recalls:
		return s.recalls
	case RecallBeats:
		return s.recallBeatWire
	}
	return s.goals[service].wire
}

// RecallsBehind reports whether there is a newer list of recalls than the one here.
func (s *Shelf) RecallsBehind() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recallsBehind()
}

// recallsBehind is called with mu held.
func (s *Shelf) recallsBehind() bool {
	return s.recallBeat != nil && s.recallBeat.Version > 0 && (s.recall == nil || s.recall.Version < s.recallBeat.Version)
}

// Recalled reports whether a build, by its composite SHA-256, is recalled.
func (s *Shelf) Recalled(sha256 string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recall.Has(sha256)
}

// Age is how long ago a seeder last said that the goals here are the newest: since the beat
// that was signed last, or since a goal that is newer than it; or, where that is longer ago
// and lists of recalls have ever been heard of, that the list is. It is 0 where no goal is
// known, and known false. Behind are the services of which the beat names a greater version,
// or one and there is none here, and Recalls where its own one does: age counts from the
// first beat that did, so that who passes beats on and keeps a goal back is seen, too.
func (s *Shelf) Age(now time.Time) (age time.Duration, known bool, behind []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var last time.Time
	if s.beat != nil {
		last = s.beat.Time
	}
	for _, k := range s.goals {
		if k.goal.Issued.After(last) {
			last = k.goal.Issued
		}
	}
	behind = slices.Sorted(maps.Keys(s.behind))
	if last.IsZero() {
		return 0, false, behind
	}
	if b := s.recallBeat; b != nil {
		list := b.Time
		if s.recall != nil && s.recall.Issued.After(list) {
			list = s.recall.Issued
		}
		if list.Before(last) {
			last = list
		}
	}
	for _, since := range s.behind {
		if since.Before(last) {
			last = since
		}
	}
	return max(0, now.Sub(last)), true, behind
}
