package services

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/private"
)

const (
	copySuffix = ".json"
	// maxCopy bounds a copy in bytes: a deployment, two builds, and a goal in base64.
	maxCopy = maxDocument + 4*goal.MaxLength
)

// Copies are a seeder's own of what the table says of services, for when that cannot be read
// and something must be done all the same. The nil one keeps nothing.
type Copies struct {
	dir string

	mu sync.Mutex // held over the disk: what is written later is what stays
	// ahead are the versions of those that the table lacks.
	ahead map[string]int64
}

// Copy is a service as this seeder has known it last.
type Copy struct {
	Service deployment.Service `json:"service"`
	Wire    []byte             `json:"goal"` // as it is signed
	// Table is the version that the table had when it was read or written last; that of the
	// service is greater while its goal was sent and is not in the table.
	Table int64 `json:"table"`
}

// Ahead reports whether the table lacks it.
func (c *Copy) Ahead() bool { return c.Service.Version > c.Table }

// OpenCopies keeps copies in a directory, which it makes if need be.
func OpenCopies(dir string) (*Copies, error) {
	err := private.MkdirAll(dir)
	if err == nil {
		err = private.RemoveUnfinished(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("copies of services: %w", err)
	}
	return &Copies{dir: dir, ahead: make(map[string]int64)}, nil
}

// Put keeps a service. One that the table has does not take the place of a later one that it
// lacks.
func (c *Copies) Put(of *Copy) error {
	if c == nil {
		return nil
	}
	text, err := json.Marshal(of)
	if err != nil {
		return fmt.Errorf("copy of service %s: %w", of.Service.Name, err)
	}
	if len(text) > maxCopy {
		return fmt.Errorf("copy of service %s: %d bytes, at most %d", of.Service.Name, len(text), maxCopy)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	name, version := of.Service.Name, of.Service.Version
	if !of.Ahead() && version < c.ahead[name] {
		return nil
	}
	if delete(c.ahead, name); of.Ahead() {
		c.ahead[name] = version
	}
	if err := private.Replace(filepath.Join(c.dir, name+copySuffix), text); err != nil {
		return fmt.Errorf("copy of service %s: %w", of.Service.Name, err)
	}
	return nil
}

// Get returns a service; nil where there is no copy of it.
func (c *Copies) Get(service string) (*Copy, error) {
	if c == nil {
		return nil, nil
	}
	if err := goal.CheckService(service); err != nil {
		return nil, err
	}
	text, err := private.Read(filepath.Join(c.dir, service+copySuffix), maxCopy)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	of := new(Copy)
	if err == nil {
		err = json.Unmarshal(text, of)
	}
	if err == nil && (of.Service.Name != service || of.Service.Version < 1 || of.Service.Current == nil || len(of.Wire) == 0) {
		err = errors.New("it is none")
	}
	if err != nil {
		return nil, fmt.Errorf("copy of service %s: %w", service, err)
	}
	return of, nil
}

// Ahead are the copies that the table lacks; the error has those that cannot be read.
func (c *Copies) Ahead() (all []*Copy, err error) {
	if c == nil {
		return nil, nil
	}
	names, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, fmt.Errorf("copies of services: %w", err)
	}
	var odd error
	for _, n := range names {
		service, ok := strings.CutSuffix(n.Name(), copySuffix)
		if !ok {
			continue
		}
		of, err := c.Get(service)
		if err != nil {
			odd = errors.Join(odd, err)
		} else if of != nil && of.Ahead() {
			all = append(all, of)
		}
	}
	return all, odd
}
