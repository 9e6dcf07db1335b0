package seeder

import (
	"cmp"
	"fmt"
	"net/http"

	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/web"
)

// newScheme cuts the builds of executions that begin now.
const newScheme = manifest.Ramp

// schemeOf is how the build of an execution is cut that was begun with the scheme named, or
// by an older version, which names none.
func schemeOf(name string) manifest.Scheme { return cmp.Or(manifest.Scheme(name), manifest.Ramp) }

// layoutOf cuts the build of an execution as its item says: what was announced of it before
// a restart is announced again.
func layoutOf(r *ledger.Record) (*manifest.Layout, error) {
	return manifest.NewLayout(schemeOf(r.Scheme), r.Size)
}

// leftAlone is why an execution is shown and not taken up: a newer version has begun it, in a
// way that this one does not know. Nil for one that is.
func leftAlone(r *ledger.Record) error {
	if err := schemeOf(r.Scheme).Check(); err != nil {
		return fmt.Errorf("execution is not taken up: %w; start the version again that has begun it, or publish the build again", err)
	}
	return nil
}

// refuseLeftAlone is leftAlone as an answer.
func refuseLeftAlone(r *ledger.Record) error {
	if err := leftAlone(r); err != nil {
		return &web.Error{Code: http.StatusConflict, Err: err}
	}
	return nil
}
