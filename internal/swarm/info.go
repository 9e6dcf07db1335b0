package swarm

import (
	"context"
	"fmt"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// Info waits until the info dictionary is here and checks it; unlike Entry it begins no
// download. Errors wrap manifest.ErrInvalid for an info that cannot be right.
func (t *Torrent) Info(ctx context.Context) (*manifest.Manifest, error) {
	select {
	case <-t.opened:
	case <-t.gotInfo():
		return t.info()
	case <-t.dropped:
		return nil, ErrDropped
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	e, err := t.pinned() // which may be cold
	if err != nil {
		return nil, fmt.Errorf("info dictionary of %s: %w", t.fetch.InfoHash, err)
	}
	defer e.Unpin()
	return e.Manifest(), nil
}

// info parses the dictionary, which is here.
func (t *Torrent) info() (*manifest.Manifest, error) {
	engine := t.engine()
	if engine == nil {
		return nil, ErrDropped
	}
	m, err := manifest.ParseInfo(engine.Metainfo().InfoBytes)
	if err != nil {
		return nil, fmt.Errorf("info dictionary of %s: %w", t.fetch.InfoHash, err)
	}
	if m.Shape != t.fetch.Shape {
		return nil, fmt.Errorf("info dictionary of %s: %w: it is %+v, announced was %+v", t.fetch.InfoHash, manifest.ErrInvalid, m.Shape, t.fetch.Shape)
	}
	return m, nil
}
