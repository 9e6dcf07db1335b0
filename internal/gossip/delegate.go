package gossip

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist calls. Nothing here may block.
type delegate struct{ g *Gossip }

func (d delegate) NodeMeta(limit int) []byte {
	b, err := json.Marshal(d.g.cfg.Meta)
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

func (e events) NotifyJoin(*memberlist.Node)   { e.notify() }
func (e events) NotifyLeave(*memberlist.Node)  { e.notify() }
func (e events) NotifyUpdate(*memberlist.Node) { e.notify() }

func (e events) notify() {
	select {
	case e.g.changed <- struct{}{}:
	default: // somebody is about to look anyway
	}
}

// logWriter passes memberlist's lines on at the level they name.
type logWriter struct{ logger *slog.Logger }

var logLevels = map[string]slog.Level{
	"[DEBUG]": slog.LevelDebug,
	"[INFO]":  slog.LevelDebug,
	"[WARN]":  slog.LevelInfo,
	"[ERR]":   slog.LevelWarn,
}

func (w logWriter) Write(p []byte) (int, error) {
	line := bytes.TrimSpace(p)
	level := slog.LevelDebug
	if i := bytes.IndexByte(line, '['); i >= 0 {
		line = line[i:]
		if end := bytes.IndexByte(line, ' '); end > 0 {
			if l, ok := logLevels[string(line[:end])]; ok {
				level, line = l, line[end+1:]
			}
		}
	}
	w.logger.Log(context.Background(), level, "memberlist", "text", string(line))
	return len(p), nil
}
