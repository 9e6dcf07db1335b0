package gossip

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/private"
)

// toldHello is what a member has said of itself when its meta had this digest of it.
type toldHello struct {
	call.Hello
	digest string
}

// saidOf completes a member's meta by what did not fit there; nil without TLS.
func (v *vouching) saidOf() func(*Meta) {
	if v == nil {
		return nil
	}
	return func(m *Meta) {
		h, ok := v.said(m)
		if !ok {
			return
		}
		if m.Table == "" && len(h.Table) <= maxTable {
			m.Table = h.Table
		}
		if m.ArrivalsTable == "" && len(h.ArrivalsTable) <= maxTable {
			m.ArrivalsTable = h.ArrivalsTable
		}
		if m.Key == "" {
			m.Key = h.Key
		}
		if len(m.Trusts) == 0 {
			m.Trusts = h.Trusts
		}
	}
}

// said is what a member has said of itself, by its meta's fingerprint.
func (v *vouching) said(m *Meta) (call.Hello, bool) {
	f, err := identity.ParseFingerprint(m.Cert)
	if err != nil {
		return call.Hello{}, false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	h, ok := v.hellos[f]
	return h.Hello, ok
}

// ask asks a member for what it says of itself where that is news.
func (v *vouching) ask(n *memberlist.Node) {
	if v == nil || n.Name == v.g.name {
		return
	}
	var m Meta
	if json.Unmarshal(n.Meta, &m) != nil || m.Cert == "" {
		return
	}
	f, err := identity.ParseFingerprint(m.Cert)
	if err != nil {
		return
	}
	v.mu.Lock()
	h, ok := v.hellos[f]
	v.mu.Unlock()
	if !ok || h.digest != m.Hello {
		v.learn(n.Address(), f, m.Hello)
	}
}

// learn asks who is at an address for its certificate, in the background; where that is
// under way, was in vain just now, or too many are asked, it does nothing.
func (v *vouching) learn(addr string, want identity.Fingerprint, digest string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed || v.pending[addr] || len(v.pending) >= maxMeetings {
		return
	}
	if at, ok := v.failed[addr]; ok && time.Since(at) < learnAgain {
		return
	}
	v.pending[addr] = true
	v.wg.Go(func() {
		err := v.fetch(addr, want, digest)
		v.mu.Lock()
		delete(v.pending, addr)
		for a, at := range v.failed {
			if time.Since(at) >= learnAgain {
				delete(v.failed, a)
			}
		}
		if err != nil && len(v.failed) < maxMeetings {
			v.failed[addr] = time.Now()
		}
		v.mu.Unlock()
		if err != nil && v.g.ctx.Err() == nil {
			v.source.Count(err)
			v.g.warn("certificate of a member not learned", "addr", addr, "error", err)
		}
	})
}

func (v *vouching) fetch(addr string, want identity.Fingerprint, digest string) error {
	select {
	case v.slots <- struct{}{}:
		defer func() { <-v.slots }()
	case <-v.g.ctx.Done():
		return v.g.ctx.Err()
	}
	p, h, err := v.client.Hello(v.g.ctx, addr)
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.keep(p)
	v.hellos[p.Fingerprint] = toldHello{h, digest}
	v.mu.Unlock()
	if p.Fingerprint != want {
		return fmt.Errorf("%s is there with another certificate than the membership says", p.ID)
	}
	if p.ID.Kind == identity.Seeder && v.g.cfg.Role != Seeder {
		v.told(h.Serves)
	}
	v.deny(addr, p.ID, h.Denied)
	if v.g.roster.hasAddress(addr) {
		v.g.roster.stale()
		v.g.changes()
	} else {
		v.g.meet(addr, nil)
	}
	return nil
}

// told takes what a seeder says that regions serve.
func (v *vouching) told(serves call.Serves) {
	if len(serves) == 0 {
		return
	}
	v.serves.Store(&serves)
	if v.g.cfg.ServesFile == "" {
		return
	}
	b, err := json.Marshal(serves)
	if err == nil {
		err = private.Replace(v.g.cfg.ServesFile, b)
	}
	if err != nil {
		v.g.warn("what regions serve is not kept over a restart", "error", err)
	}
}

func (v *vouching) readServes() error {
	b, err := private.Read(v.g.cfg.ServesFile, maxServesFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var serves call.Serves
	if err == nil {
		err = json.Unmarshal(b, &serves)
	}
	if err == nil {
		err = serves.Check()
	}
	if err != nil {
		return fmt.Errorf("reading what regions serve: %w", err)
	}
	v.serves.Store(&serves)
	return nil
}

// hello is what this member says of itself beside its meta.
func (g *Gossip) hello() call.Hello {
	m := g.meta()
	h := call.Hello{Table: m.Table, ArrivalsTable: m.ArrivalsTable, Key: m.Key, Trusts: m.Trusts}
	if g.cfg.Role == Seeder {
		h.Serves = g.cfg.Serves
		_, h.Denied = g.cfg.Identity.Denied()
	}
	return h
}

// digestOf tells one hello from another.
func digestOf(h call.Hello) string {
	b, err := json.Marshal(h)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:6])
}

// expectMember accepts seeders and agents.
func expectMember(id identity.ID) error {
	if id.Kind == identity.Host {
		return identity.Refuse(identity.Misplaced, fmt.Errorf("%s is a host, and no member", id))
	}
	return nil
}
