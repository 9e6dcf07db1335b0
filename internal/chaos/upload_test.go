//go:build linux

package chaos

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// TestKillInAnUpload kills the client, the seeder, an agent, or all agents while a build goes
// up through the seeder and is landing already, with another build under the key and without.
// An upload that its client and the seeder live through arrives everywhere; another one
// leaves everything as it was.
func TestKillInAnUpload(t *testing.T) {
	t.Parallel()
	const part = manifest.MinPartLength
	w := Start(t, Options{Agents: []int{1, 1}, Seed: 16})
	for _, who := range []struct {
		name  string
		kill  func(cancel func())
		lives bool
	}{
		{"client", func(cancel func()) { cancel() }, false},
		{"seeder", func(func()) { w.Seeder.Kill(); w.Seeder.Run() }, false},
		{"agent", func(func()) { w.Agents[0].Kill(); w.Agents[0].Run() }, true},
		{"all agents", func(func()) { each(w.Agents, (*Member).Kill); each(w.Agents, (*Member).Run) }, true},
	} {
		for _, before := range []bool{false, true} {
			if before && !*longFlag && who.name != "seeder" {
				continue
			}
			w.Sub(t, fmt.Sprintf("%s, another build before: %v", who.name, before), func(t *testing.T) {
				key := fmt.Sprintf("%s %v.zip", who.name, before)
				if before {
					w.Completed(w.Put(key, several))
				}
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				goesOn, ended := make(chan struct{}), make(chan error, 1)
				v := &Version{Key: key, Size: 4*part + 1, seed: w.rng.Uint64()}
				go func() {
					ended <- w.upload(ctx, v, func(content io.Reader) io.Reader {
						first := make([]byte, 3*part+1)
						_, _ = io.ReadFull(content, first) // of so many bytes
						return io.MultiReader(bytes.NewReader(first), waiting{ctx, goesOn}, content)
					})
				}()
				w.Until("its first parts are in every region's upload", func() bool {
					e, err := w.Seeder.ByKey(context.Background(), key)
					return err == nil && e.Phase == api.PhaseUploading && len(e.Destinations) > 0 &&
						!slices.ContainsFunc(e.Destinations, func(d api.Destination) bool { return d.LandedBytes < part })
				})
				who.kill(cancel)
				close(goesOn)
				if err := <-ended; (err == nil) != who.lives {
					t.Errorf("the upload was answered with %v", err)
				}
				w.Settle()
				if now, wrong := w.found(key); wrong != "" || (now == v) != who.lives {
					t.Errorf("the upload has the key: %v %s", !who.lives, wrong)
				}
			})
		}
	}
}

// waiting is a body of nothing, that ends when it goes on.
type waiting struct {
	ctx    context.Context
	goesOn <-chan struct{}
}

func (w waiting) Read([]byte) (int, error) {
	select {
	case <-w.goesOn:
		return 0, io.EOF
	case <-w.ctx.Done():
		return 0, w.ctx.Err()
	}
}
