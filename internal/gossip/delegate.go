package gossip

import (
	"bytes"
	"encoding/json"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist calls. Nothing here may block.
type delegate struct{ g *Gossip }

func (d delegate) NodeMeta(limit int) []byte {
	meta := d.g.cfg.Meta.bounded()
	b, err := json.Marshal(meta)
	if err == nil && len(b) > limit { // long names with much to be escaped
		meta.Trusts = nil
		b, err = json.Marshal(meta)
	}
	if err != nil || len(b) > limit {
		// New bounds every field, so this cannot be; a member without meta
		// is ignored by the others.
		return nil
	}
	return b
}

// NotifyMsg copies the message: memberlist uses the buffer again.
func (d delegate) NotifyMsg(b []byte) { d.g.enqueue(bytes.Clone(b)) }

func (d delegate) GetBroadcasts(overhead, limit int) [][]byte { return nil }

func (d delegate) LocalState(join bool) []byte { return d.g.cfg.Book.State() }

func (d delegate) MergeRemoteState(buf []byte, join bool) {
	d.g.enqueue(append([]byte{kindState}, buf...))
}

type events struct{ g *Gossip }

func (e events) NotifyJoin(n *memberlist.Node) {
	e.g.tell(n, false)
	e.notify()
}

func (e events) NotifyLeave(n *memberlist.Node) {
	e.g.tell(n, true)
	e.notify()
}

func (e events) NotifyUpdate(*memberlist.Node) { e.notify() }

func (e events) notify() {
	e.g.epoch.Add(1)
	select {
	case e.g.changed <- struct{}{}:
	default: // somebody is about to look anyway
	}
}
