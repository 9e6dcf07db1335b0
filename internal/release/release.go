// Package release keeps the builds of one service in a directory, and switches the
// service from one to another:
//
//	DIR/SERVICE/releases/EXECUTIONID/…   a build: its one file, or what it unpacks to
//	DIR/SERVICE/manifests/EXECUTIONID    its files' SHA-256, as `sha256sum --check` reads them
//	DIR/SERVICE/current                  a link to the release that runs
//	DIR/SERVICE/journal                  the switch that is under way, or was the last
//
// A release is put into place whole or not at all. A switch is written to the journal,
// and that to the disk, before each of its phases; Open finds one that was interrupted,
// and Resume carries it on. Which build is to run, and when, is for others to say, and so
// is whether its bytes are the right ones.
package release

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// DefaultKeep is how many releases are kept, beside those that may not go.
	DefaultKeep = 3
	// DefaultHookTimeout is how long --before and --exec may take: draining a service's
	// connections takes minutes.
	DefaultHookTimeout = 5 * time.Minute
	// DefaultCheckTimeout is how long a service may take until it is healthy.
	DefaultCheckTimeout = 2 * time.Minute
	// MaxAttempts is how often a phase of a switch is taken up in all, when the process
	// has been ended in its midst each time: a hook that ends its own host must not do so
	// for ever.
	MaxAttempts = 5
	// maxID bounds an executionId in bytes; a ULID has 26.
	maxID = 64
)

var (
	// ErrInUse: another process has the service's directory.
	ErrInUse = errors.New("another process has it")
	// ErrAttempted: the last attempt was at this goal version.
	ErrAttempted = errors.New("there was an attempt at this version of the goal")
	// ErrNotPlaced: the release is not in its place.
	ErrNotPlaced = errors.New("the release is not there")
	// ErrNoRoom: the disk has no room for a release.
	ErrNoRoom = errors.New("no room on the disk")
	// ErrNothing: no build runs.
	ErrNothing = errors.New("no build runs yet")
	// ErrGivenUp: a switch was given up for a later goal.
	ErrGivenUp = errors.New("given up: a later goal wants another build")
)

// Config says where the releases of a service are, and what is done when it switches.
type Config struct {
	// Dir is that of all services; it must be absolute.
	Dir, Service string
	// Before and Exec are run by /bin/sh before and after the switch; empty for nothing.
	Before, Exec string
	// Check is an http(s) URL that answers 2xx, or a command of /bin/sh that succeeds,
	// when the service is healthy; empty: it always is.
	Check string
	// Unpack makes a release of what a zip or tar.gz holds, in place of the file.
	Unpack bool
	// Keep is how many releases are kept; 0 for DefaultKeep.
	Keep int
	// HookTimeout bounds Before and Exec, CheckTimeout the wait until the service is
	// healthy; 0 for the defaults.
	HookTimeout, CheckTimeout time.Duration
	Logger                    *slog.Logger
}

// Build is what a release is made of.
type Build struct {
	ExecutionID string `json:"executionId,omitempty"`
	Key         string `json:"key,omitempty"`
	Size        int64  `json:"size,omitempty"` // bytes
}

// Service is a service's directory. One goroutine switches, and one places; any may
// call the others.
type Service struct {
	cfg  Config
	dir  string // DIR/SERVICE
	lock *flock.Flock
	// reached is called at each step of a switch; tests end the process there.
	reached func(step string)

	mu  sync.Mutex
	now record
}

// State is what is known of the last switch, and what runs.
type State struct {
	// Version is the goal's whose switch is under way or was the last; 0 for none.
	Version    int64
	Deployment string
	// Running is what current points to; its ExecutionID is empty for nothing.
	Running Build
	// From and To are what the switch is between.
	From, To Build
	Phase    Phase
	Attempt  int
	// Error says why the switch has failed, Output is the end of what the hook printed
	// that ran last; empty for neither.
	Error, Output string
}

// Open opens a service's directory, which it makes where there is none, and removes what
// was left unfinished there.
func Open(cfg Config) (_ *Service, err error) {
	if err := CheckName(cfg.Service); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("releases in %s: the directory must be absolute", cfg.Dir)
	}
	for _, d := range []struct {
		of        *time.Duration
		otherwise time.Duration
	}{{&cfg.HookTimeout, DefaultHookTimeout}, {&cfg.CheckTimeout, DefaultCheckTimeout}} {
		if *d.of <= 0 {
			*d.of = d.otherwise
		}
	}
	if cfg.Keep <= 0 {
		cfg.Keep = DefaultKeep
	}
	cfg.Logger = cfg.Logger.With("service", cfg.Service)
	s := &Service{cfg: cfg, dir: filepath.Join(cfg.Dir, cfg.Service), reached: func(string) {}}
	for _, d := range []string{s.dir, s.path("releases"), s.path("manifests")} {
		if err := makeReadable(d); err != nil {
			return nil, fmt.Errorf("releases of %s: %w", cfg.Service, err)
		}
	}
	s.lock = flock.New(s.path("lock"))
	switch locked, err := s.lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("releases of %s: %w", cfg.Service, err)
	case !locked:
		return nil, fmt.Errorf("releases of %s in %s: %w", cfg.Service, s.dir, ErrInUse)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.tidy(); err != nil {
		return nil, fmt.Errorf("removing unfinished releases of %s: %w", cfg.Service, err)
	}
	if s.now, err = s.readJournal(); err != nil {
		return nil, err
	}
	return s, nil
}

// Close lets another process have the directory.
func (s *Service) Close() error { return s.lock.Close() }

// CheckName reports whether a service's name is one that can be a directory's.
func CheckName(service string) error {
	if service == "" || len(service) > 63 || service[0] == '.' || strings.Trim(service, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
		return fmt.Errorf("service %.80q: expected lower-case letters, digits, dashes, dots and underscores, at most 63, with no dot at the beginning", service)
	}
	return nil
}

// checkID reports whether an executionId can be a directory's name.
func checkID(id string) error {
	if id == "" || len(id) > maxID || strings.Trim(id, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return fmt.Errorf("executionId %.80q: expected digits and upper-case letters, at most %d", id, maxID)
	}
	return nil
}

// makeReadable makes a directory in which everybody may look: the service may be another
// user's than who switches it. One that is there stays as it is.
func makeReadable(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	switch err := os.Mkdir(dir, 0o755); {
	case errors.Is(err, os.ErrExist):
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is no directory", dir)
		}
		return err
	case err != nil:
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask is
		return err
	}
	return private.SyncDir(filepath.Dir(dir))
}

func (s *Service) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// Path is the directory of a release, whether it is there or not.
func (s *Service) Path(id string) string { return s.path("releases", id) }

// Placed reports whether a release is in its place.
func (s *Service) Placed(id string) bool {
	if checkID(id) != nil {
		return false
	}
	info, err := os.Lstat(s.Path(id))
	return err == nil && info.IsDir()
}

// State returns what is known.
func (s *Service) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now.state()
}

// Interrupted reports whether a switch is to be carried on by Resume.
func (s *Service) Interrupted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now.Version > 0 && !s.now.Phase.final()
}

// point has current point to a release, or to nothing for the empty one, from one moment
// to the next.
func (s *Service) point(id string) error {
	link := s.path("current")
	if id == "" {
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return private.SyncDir(s.dir)
	}
	if !s.Placed(id) {
		return fmt.Errorf("%s: %w", s.Path(id), ErrNotPlaced)
	}
	if got, err := os.Readlink(link); err == nil && got == filepath.Join("releases", id) {
		return private.SyncDir(s.dir)
	}
	next := s.path(".current-next")
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Join("releases", id), next); err != nil {
		return err
	}
	s.reached("linked")
	if err := os.Rename(next, link); err != nil {
		return err
	}
	return private.SyncDir(s.dir)
}

// pointed is the executionId of the release that current points to; empty for nothing.
func (s *Service) pointed() (string, error) {
	to, err := os.Readlink(s.path("current"))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("%s is to be a link to the release that runs: %w; move it away", s.path("current"), err)
	}
	id := filepath.Base(to)
	if checkID(id) != nil || !slices.Contains([]string{filepath.Join("releases", id), s.Path(id)}, to) {
		return "", fmt.Errorf("%s points to %.200q, which is no release of this directory; remove the link", s.path("current"), to)
	}
	return id, nil
}
