package release

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/landfall-dist/landfall/internal/hook"
	"github.com/landfall-dist/landfall/internal/private"
)

// Phase is how far a switch is.
type Phase string

// The phases of a switch, in order; Done is its end.
const (
	Before Phase = "before" // the --before command runs
	Switch Phase = "switch" // current is made to point to the new release
	Exec   Phase = "exec"   // the --exec command runs
	Check  Phase = "check"  // until the service is healthy
	Done   Phase = "done"
)

// The phases in which a switch that has failed is taken back; Failed and Broken are its
// ends: the build before runs, or nobody knows what does.
const (
	Back      Phase = "back"
	BackExec  Phase = "back-exec"
	BackCheck Phase = "back-check"
	Failed    Phase = "failed"
	Broken    Phase = "broken"
)

var (
	forward  = []Phase{Before, Switch, Exec, Check, Done}
	backward = []Phase{Back, BackExec, BackCheck, Failed}
)

// final reports whether nothing comes after.
func (p Phase) final() bool { return p == Done || p == Failed || p == Broken }

// back reports whether a switch is being taken back.
func (p Phase) back() bool { return slices.Contains(backward, p) }

// next is the phase that follows, when p has gone well or not.
func (p Phase) next(failed bool) Phase {
	switch i, j := slices.Index(forward, p), slices.Index(backward, p); {
	case p.final() || i < 0 && j < 0:
		return p
	case j >= 0 && failed:
		return Broken
	case j >= 0:
		return backward[j+1]
	case failed:
		return Back
	default:
		return forward[i+1]
	}
}

const (
	// maxJournal bounds the journal in bytes: two builds with keys of 1,024 bytes, and
	// what was printed, all of it escaped in JSON.
	maxJournal = 64 << 10
	// maxError bounds the reason of a failure that is kept, in bytes.
	maxError = 1 << 10
)

// record is the journal: a switch. The zero value is none.
type record struct {
	Version    int64  `json:"version"`
	Deployment string `json:"deployment,omitempty"`
	From       Build  `json:"from,omitzero"`
	To         Build  `json:"to,omitzero"`
	Phase      Phase  `json:"phase,omitempty"`
	Attempt    int    `json:"attempt,omitempty"`
	Error      string `json:"error,omitempty"`
	Output     string `json:"output,omitempty"`
	// Hook is the command that runs, by which one that has outlived its host is found.
	Hook hook.Process `json:"hook,omitzero"`
	// running is what current points to; it is read, not written.
	running Build
}

func (r record) state() State {
	return State{
		Version: r.Version, Deployment: r.Deployment, Running: r.running, From: r.From, To: r.To,
		Phase: r.Phase, Attempt: r.Attempt, Error: r.Error, Output: r.Output,
	}
}

// check reports what is wrong with a journal that was read.
func (r record) check() error {
	if r.Version == 0 {
		return nil
	}
	if !slices.Contains(slices.Concat(forward, backward, []Phase{Broken}), r.Phase) {
		return fmt.Errorf("phase %.40q is not known", string(r.Phase))
	}
	if r.Version < 0 || r.Attempt < 0 {
		return errors.New("a number is negative")
	}
	if r.From.ExecutionID != "" {
		if err := checkID(r.From.ExecutionID); err != nil {
			return err
		}
	}
	return checkID(r.To.ExecutionID)
}

// readJournal returns the last switch and what runs.
func (s *Service) readJournal() (r record, err error) {
	file := s.path("journal")
	text, err := private.Read(file, maxJournal)
	if err == nil {
		if err = json.Unmarshal(text, &r); err == nil {
			err = r.check()
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		r, err = record{}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("journal of %s: %w; see what %s points to, then remove %s", s.cfg.Service, err, s.path("current"), file)
	}
	id, err := s.pointed()
	if err != nil {
		return record{}, err
	}
	r.running = s.build(id, r)
	return r, nil
}

// build is what is known of a release: by a journal, or by its manifest.
func (s *Service) build(id string, r record) Build {
	switch id {
	case "":
		return Build{}
	case r.To.ExecutionID:
		return r.To
	case r.From.ExecutionID:
		return r.From
	}
	b, err := s.readManifest(id)
	if err != nil {
		s.cfg.Logger.Warn("manifest of a release not read", "executionId", id, "error", err)
		return Build{ExecutionID: id}
	}
	return b
}

// write makes a record what is known: on the disk first.
func (s *Service) write(r record) error {
	text, err := json.Marshal(r)
	if err == nil {
		err = private.Replace(s.path("journal"), text)
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	s.set(r)
	return nil
}

// set makes a record what is known, on the disk or not.
func (s *Service) set(r record) {
	if id, err := s.pointed(); err == nil {
		r.running = s.build(id, r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = r
}

// tidy removes what a process that was killed has left unfinished.
func (s *Service) tidy() error {
	entries, err := os.ReadDir(s.path("releases"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name()[0] == '.' {
			err = errors.Join(err, removeTree(s.path("releases", e.Name())))
		}
	}
	return errors.Join(err, private.RemoveUnfinished(s.dir), private.RemoveUnfinished(s.path("manifests")))
}
