package gossip

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/hashicorp/memberlist"

	"github.com/landfall-dist/landfall/internal/announce"
)

// delegate is what memberlist calls. Nothing here may block.
type delegate struct{ g *Gossip }

func (d delegate) NodeMeta(limit int) []byte {
	meta := d.g.meta().bounded()
	v := d.g.vouching
	if v != nil {
		meta.Cert, meta.Hello = v.source.Fingerprint().String(), digestOf(d.g.hello())
		limit -= maxMetaSignature
	}
	b, err := json.Marshal(meta)
	if err == nil && len(b) > limit { // long names with much to be escaped
		meta.ArrivalsTable = ""
		b, err = json.Marshal(meta)
	}
	if err == nil && len(b) > limit {
		meta.Trusts = nil
		b, err = json.Marshal(meta)
	}
	if err == nil && len(b) > limit {
		meta.Table = ""
		b, err = json.Marshal(meta)
	}
	if err == nil && len(b) > limit && v != nil {
		meta.Key = ""
		b, err = json.Marshal(meta)
	}
	if err != nil || len(b) > limit {
		// New bounds every field, so this cannot be; a member without meta
		// is ignored by the others.
		return nil
	}
	if v != nil {
		if b, err = v.sign(d.g.name, d.g.told, b); err != nil {
			d.g.warn("the own meta is not signed", "error", err)
			return nil
		}
	}
	return b
}

// NotifyMsg copies the message: memberlist uses the buffer again.
func (d delegate) NotifyMsg(b []byte) {
	most := maxMessage
	if len(b) > 0 {
		most = mostOf(b[0])
	}
	if len(b) == 0 || len(b) > most {
		d.g.inbox.drop()
		d.g.warn("message refused", "bytes", len(b), "most", most)
		return
	}
	if isFleet(b[0]) {
		_ = d.g.fleet.put(fleetMessage{message: bytes.Clone(b)}) // counted; who sent it hears nothing
		return
	}
	if b[0] == kindBye { // not queued: the news that it has left follows
		d.g.bye(string(b[1:]))
		return
	}
	d.g.inbox.put(bytes.Clone(b))
}

func (d delegate) GetBroadcasts(overhead, limit int) [][]byte { return nil }

// LocalState ends with who this is, for an answer.
func (d delegate) LocalState(join bool) []byte {
	return announce.AppendSender(d.g.cfg.Book.State(), d.g.name)
}

// MergeRemoteState gets a buffer of its own.
func (d delegate) MergeRemoteState(buf []byte, join bool) {
	if len(buf) > maxState {
		d.g.inbox.drop()
		d.g.warn("state of a member refused", "bytes", len(buf), "most", maxState)
		return
	}
	d.g.inbox.putState(buf)
}

// events is what memberlist calls under its own lock when the membership changes.
type events struct{ g *Gossip }

func (e events) NotifyAlive(n *memberlist.Node) error {
	err := e.g.vouching.admits(n)
	if err == nil {
		err = e.g.roster.admit(n)
	}
	if errors.Is(err, errUnknownCertificate) {
		e.g.cfg.Logger.Debug("member refused for now", "member", n.Name, "addr", n.Address(), "error", err)
	} else if err != nil {
		e.g.warn("member refused", "member", n.Name, "addr", n.Address(), "error", err)
	}
	return err
}

func (e events) NotifyJoin(n *memberlist.Node) {
	if e.g.believed(n) {
		return
	}
	e.g.roster.come(n)
	e.g.vouching.ask(n)
	e.g.tell(n, false)
	e.g.changes()
	if e.g.cfg.Role == Seeder && n.Name != e.g.name {
		e.g.meet(n.Address(), nil)
	}
}

func (e events) NotifyUpdate(n *memberlist.Node) {
	e.g.roster.come(n)
	e.g.vouching.ask(n)
	e.g.changes()
}

func (e events) NotifyLeave(n *memberlist.Node) {
	if !e.g.doubted(n) {
		e.g.gone(n)
	}
}
