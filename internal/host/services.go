package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/release"
)

const (
	// maxServicesFile bounds a file of services in bytes: no command in it can be longer
	// than Linux takes as one argument.
	maxServicesFile = 128 << 10
	// maxKeep bounds the releases that are kept of a service; each is a whole build.
	maxKeep = 1000
	// maxHookTime bounds what a hook, or a service until it is healthy, may take.
	maxHookTime = 24 * time.Hour
)

// fileService is a service as a file of services has it. What is absent is by default.
type fileService struct {
	Service      string `json:"service"`
	Dir          string `json:"dir"`
	Before       string `json:"before"`
	Exec         string `json:"exec"`
	Check        string `json:"check"`
	Unpack       bool   `json:"unpack"`
	Keep         *int   `json:"keep"`
	HookTimeout  string `json:"hookTimeout"`
	CheckTimeout string `json:"checkTimeout"`
}

// ReadServices reads a file of services: a JSON object whose services is a list of at most
// hostwire.MaxServices objects. It returns their names in that order, and what each does when
// it switches, as Config takes both.
func ReadServices(name string) (names []string, hooks map[string]release.Config, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, fmt.Errorf("services: %w", err)
	}
	defer f.Close()
	var file struct {
		Services []fileService `json:"services"`
	}
	from := &io.LimitedReader{R: f, N: maxServicesFile + 1}
	d := json.NewDecoder(from)
	d.DisallowUnknownFields()
	err = d.Decode(&file)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the JSON object")
		}
	}
	switch {
	case from.N == 0:
		return nil, nil, fmt.Errorf("services: %s is over %d bytes", name, maxServicesFile)
	case err != nil:
		return nil, nil, fmt.Errorf("services: %s: %w", name, err)
	}
	hooks = make(map[string]release.Config)
	for i, s := range file.Services {
		if _, twice := hooks[s.Service]; twice {
			return nil, nil, fmt.Errorf("services: %s has %.80q twice", name, s.Service)
		}
		if len(names) == hostwire.MaxServices {
			return nil, nil, fmt.Errorf("services: %s has %d, a host may have %d", name, len(file.Services), hostwire.MaxServices)
		}
		r, err := s.hooks()
		if err != nil {
			return nil, nil, fmt.Errorf("services: %s: number %d, %.80q: %w", name, i+1, s.Service, err)
		}
		names, hooks[s.Service] = append(names, s.Service), r
	}
	return names, hooks, nil
}

func (s *fileService) hooks() (r release.Config, err error) {
	r = release.Config{Dir: s.Dir, Before: s.Before, Exec: s.Exec, Check: s.Check, Unpack: s.Unpack}
	if err := release.CheckName(s.Service); err != nil {
		return r, err
	}
	if s.Keep != nil {
		if r.Keep = *s.Keep; r.Keep < 1 {
			return r, fmt.Errorf("keep is %d, expected more than 0", r.Keep)
		}
	}
	for _, t := range []struct {
		name, text string
		to         *time.Duration
	}{{"hookTimeout", s.HookTimeout, &r.HookTimeout}, {"checkTimeout", s.CheckTimeout, &r.CheckTimeout}} {
		if t.text == "" {
			continue
		}
		if *t.to, err = time.ParseDuration(t.text); err != nil || *t.to <= 0 {
			return r, fmt.Errorf("%s is %.40q, expected a time of more than 0 such as 2m", t.name, t.text)
		}
	}
	return r, checkHooks(r)
}

// checkHooks reports what is out of bounds in what a service does when it switches.
func checkHooks(r release.Config) error {
	switch {
	case r.Dir != "" && !filepath.IsAbs(r.Dir):
		return fmt.Errorf("directory %s must be absolute", r.Dir)
	case r.Keep < 0 || r.Keep > maxKeep:
		return fmt.Errorf("%d releases to keep, at most %d", r.Keep, maxKeep)
	}
	for _, t := range []time.Duration{r.HookTimeout, r.CheckTimeout} {
		if t < 0 || t > maxHookTime {
			return fmt.Errorf("a hook's time of %s, at most %s", t, maxHookTime)
		}
	}
	return nil
}

// hooksOf is what a service does when it switches.
func (cfg Config) hooksOf(service string) release.Config {
	r, own := cfg.HooksOf[service]
	if !own {
		r, r.Dir = cfg.Hooks, ""
	}
	if r.Dir == "" {
		r.Dir = cfg.Dir
	}
	r.Service, r.Logger = service, cfg.Logger
	return r
}
