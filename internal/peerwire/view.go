package peerwire

import (
	"cmp"
	"encoding/hex"

	"github.com/landfall-dist/landfall/internal/api"
)

// View is the bad peers as HTTP shows them.
func View(bad []BadPeer) []api.BadPeer {
	out := make([]api.BadPeer, 0, len(bad))
	for _, b := range bad {
		v := api.BadPeer{
			Name:   cmp.Or(b.Name, b.Addr, hex.EncodeToString(b.ID[:])),
			Addr:   b.Addr,
			Region: b.Region,
			Reason: string(b.Reason),
			Since:  b.Since.UTC(),
			Times:  b.Times,
		}
		if !b.Until.IsZero() {
			until := b.Until.UTC()
			v.Until = &until
		}
		out = append(out, v)
	}
	return out
}
