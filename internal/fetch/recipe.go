package fetch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/private"
)

const (
	recipeSuffix = ".json"
	// maxRecipeFile bounds what is read back, in bytes: 256 infohashes in base64 and a key
	// of 1,024 bytes with every byte escaped.
	maxRecipeFile = 24 << 10
	// maxKey bounds a key, in bytes, as S3 does.
	maxKey = 1024
)

// Recipe says which segments make a build, as far as that is known. It is a hint of an
// agent: what the bytes have to be is the goal's to say (Build.Verify).
type Recipe struct {
	ExecutionID string `json:"executionId"`
	Key         string `json:"key"`
	// Size is in bytes.
	Size   int64           `json:"size"`
	Scheme manifest.Scheme `json:"scheme"`
	// InfoHashes are of the first segments.
	InfoHashes announce.InfoHashes `json:"infoHashes"`
	// Sealed: no more segments come.
	Sealed bool `json:"sealed"`
}

// check returns the layout of what a recipe says, or what is wrong with it.
func (r Recipe) check() (*manifest.Layout, error) {
	if err := executionid.Check(r.ExecutionID, time.Now()); err != nil {
		return nil, fmt.Errorf("recipe: %w", err)
	}
	layout, err := manifest.NewLayout(r.Scheme, r.Size)
	switch {
	case err != nil:
		return nil, fmt.Errorf("recipe of %s: %w", r.ExecutionID, err)
	case len(r.Key) > maxKey:
		return nil, fmt.Errorf("recipe of %s: a key of %d bytes, at most %d", r.ExecutionID, len(r.Key), maxKey)
	case len(r.InfoHashes)%len(manifest.InfoHash{}) != 0 || r.InfoHashes.Len() > layout.NumSegments():
		return nil, fmt.Errorf("recipe of %s: %d bytes of infohashes for %d segments", r.ExecutionID, len(r.InfoHashes), layout.NumSegments())
	case r.Sealed && r.InfoHashes.Len() < layout.NumSegments():
		return nil, fmt.Errorf("recipe of %s: sealed with %d of %d segments", r.ExecutionID, r.InfoHashes.Len(), layout.NumSegments())
	}
	return layout, nil
}

// with is a recipe and what another one says beyond it; a shorter one takes nothing away.
func (r Recipe) with(o Recipe) (Recipe, error) {
	short := min(len(r.InfoHashes), len(o.InfoHashes))
	if r.Size != o.Size || r.Scheme != o.Scheme || !bytes.Equal(r.InfoHashes[:short], o.InfoHashes[:short]) {
		return r, fmt.Errorf("build %s: %w", r.ExecutionID, ErrContradiction)
	}
	if len(o.InfoHashes) > short {
		r.InfoHashes = bytes.Clone(o.InfoHashes)
	}
	r.Sealed = r.Sealed || o.Sealed
	return r, nil
}

// recipes are the directory that keeps what is known of builds over a restart.
type recipes struct{ dir string }

// note is one of its files. Checked are the segments whose parts were found to be what
// their info dictionary says, in order.
type note struct {
	Recipe
	Checked   []int  `json:"checked,omitempty"`
	Composite string `json:"composite,omitempty"`
}

func (r recipes) file(id string) string { return filepath.Join(r.dir, id+recipeSuffix) }

func (r recipes) write(n note) error {
	text, err := json.Marshal(n)
	if err == nil {
		err = private.Replace(r.file(n.ExecutionID), text)
	}
	if err != nil {
		return fmt.Errorf("noting the recipe of %s: %w", n.ExecutionID, err)
	}
	return nil
}

func (r recipes) forget(id string) error {
	if err := os.Remove(r.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forgetting the recipe of %s: %w", id, err)
	}
	return nil
}

// read returns what the directory has; broken is called with what cannot be used, which
// is removed.
func (r recipes) read(broken func(file string, err error)) ([]note, error) {
	if err := private.MkdirAll(r.dir); err != nil {
		return nil, err
	}
	if err := private.RemoveUnfinished(r.dir); err != nil {
		return nil, err
	}
	found, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("reading recipes: %w", err)
	}
	var notes []note
	for _, f := range found {
		id, ok := strings.CutSuffix(f.Name(), recipeSuffix)
		if !ok {
			continue
		}
		n, err := r.readOne(id)
		if err == nil && len(notes) >= MaxBuilds {
			err = ErrTooMany
		}
		if err != nil {
			broken(f.Name(), errors.Join(err, os.Remove(r.file(id))))
			continue
		}
		notes = append(notes, n)
	}
	return notes, nil
}

func (r recipes) readOne(id string) (n note, err error) {
	text, err := private.Read(r.file(id), maxRecipeFile)
	if err == nil {
		err = json.Unmarshal(text, &n)
	}
	if err != nil {
		return n, err
	}
	layout, err := n.check()
	switch {
	case err != nil:
		return n, err
	case n.ExecutionID != id:
		return n, fmt.Errorf("it is of %s", n.ExecutionID)
	}
	for _, i := range n.Checked {
		if i < 0 || i >= layout.NumSegments() {
			return n, fmt.Errorf("segment %d of %d", i, layout.NumSegments())
		}
	}
	return n, nil
}
