package gossip

import (
	"encoding/json"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/landfall-dist/landfall/internal/identity"
)

// Which certificates are denied is told by seeders, to members and to each other: a
// seeder's hello has a digest of its list, and its meta one of the hello, so that whoever
// has not got the newest list asks for it, by a call of its own since it may be long. What
// was told once stays, so that an older list takes nothing back. Nobody but a seeder is
// believed: an agent that was taken over can deny nobody.

// deniedAgain is how long a list that could not be taken is not asked for again.
const deniedAgain = time.Minute

// own tells one certificate and deny list of this member's from the next ones.
func (v *vouching) own() string {
	_, denied := v.source.Denied()
	return v.source.Fingerprint().String() + denied
}

// deny takes over what a seeder denies, by the digest of its hello.
func (v *vouching) deny(addr string, from identity.ID, digest string) {
	if !v.lacks(digest) {
		return
	}
	text, err := v.client.Denied(v.g.ctx, addr)
	added := 0
	if err == nil {
		added, err = v.source.TakeDenied(text)
	}
	v.mu.Lock()
	if err != nil {
		v.deniedAt = time.Now()
	} else {
		v.deniedFrom, v.deniedAt = digest, time.Time{}
	}
	v.mu.Unlock()
	switch {
	case err != nil && v.g.ctx.Err() == nil:
		v.g.warn("certificates that a seeder denies are not all denied here", "seeder", from.String(), "error", err)
	case added > 0:
		v.g.cfg.Logger.Info("certificates denied that a seeder denies", "seeder", from.String(), "added", added)
	}
}

// lacks reports whether a deny list is not known here, and may be asked for now.
func (v *vouching) lacks(digest string) bool {
	_, own := v.source.Denied()
	v.mu.Lock()
	defer v.mu.Unlock()
	return digest != "" && digest != own && digest != v.deniedFrom && time.Since(v.deniedAt) >= deniedAgain
}

// askDenied asks a seeder anew whose deny list was not had.
func (v *vouching) askDenied(n *memberlist.Node) {
	var m Meta
	if json.Unmarshal(n.Meta, &m) != nil || m.Role != Seeder {
		return
	}
	h, ok := v.said(&m)
	if !ok || !v.lacks(h.Denied) {
		return
	}
	if f, err := identity.ParseFingerprint(m.Cert); err == nil {
		v.learn(n.Address(), f, m.Hello)
	}
}
