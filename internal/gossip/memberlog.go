package gossip

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"

	"github.com/landfall-dist/landfall/internal/seldom"
)

// memberLog passes memberlist's lines on at the level they name, those above debug
// once a while for each cause: whoever has no key may send as much as he likes. What
// a person has to act on is said in our own words.
type memberLog struct {
	logger *slog.Logger
	lines  *seldom.Lines
	// strangers are lines that name who has no key, by address.
	strangers *seldom.Lines
}

const (
	// maxMemberLines bounds the causes of lines that are told apart: memberlist has
	// some sixty, and a name of each member is in two of them.
	maxMemberLines = 256
	// maxStrangers bounds the addresses of which a line is logged in an interval.
	maxStrangers = 16
)

func newMemberLog(logger *slog.Logger) memberLog {
	return memberLog{logger, seldom.New(sayInterval, maxMemberLines), seldom.New(sayInterval, maxStrangers)}
}

var logLevels = map[string]slog.Level{
	"[DEBUG]": slog.LevelDebug,
	"[INFO]":  slog.LevelDebug,
	"[WARN]":  slog.LevelInfo,
	"[ERR]":   slog.LevelWarn,
}

func (w memberLog) Write(p []byte) (int, error) {
	level, text := parseMemberLine(p)
	switch name, suspected := between(text, "memberlist: Suspect ", " has failed"); {
	case suspected:
		w.say(w.lines, "suspect "+name, slog.LevelInfo, "member does not answer", "member", name)
		return len(p), nil
	case level == slog.LevelDebug:
		w.logger.Debug("memberlist", "text", text)
		return len(p), nil
	}
	if name, ok := between(text, "Was able to connect to ", " over TCP but UDP"); ok {
		w.say(w.lines, "udp "+name, slog.LevelWarn, "member answers over TCP and not over UDP: is its gossip port open for both?", "member", name)
		return len(p), nil
	}
	if hint := keyTrouble(text); hint != "" {
		_, from, _ := strings.Cut(text, "from=")
		host, _, err := net.SplitHostPort(from)
		if err != nil {
			host = from
		}
		w.say(w.strangers, host, slog.LevelWarn, "gossip refused", "from", from, "reason", hint)
		return len(p), nil
	}
	w.say(w.lines, cause(text), level, "memberlist", "text", text)
	return len(p), nil
}

func (w memberLog) say(lines *seldom.Lines, cause string, level slog.Level, message string, attrs ...any) {
	omitted, due := lines.Pass(cause)
	if !due {
		return
	}
	if omitted > 0 {
		attrs = append(attrs, "omitted", omitted)
	}
	w.logger.Log(context.Background(), level, message, attrs...)
}

// parseMemberLine takes a line's level off, after the time of the standard logger.
func parseMemberLine(p []byte) (slog.Level, string) {
	line := bytes.TrimSpace(p)
	if i := bytes.IndexByte(line, '['); i >= 0 {
		line = line[i:]
		if end := bytes.IndexByte(line, ' '); end > 0 {
			if level, ok := logLevels[string(line[:end])]; ok {
				return level, string(line[end+1:])
			}
		}
	}
	return slog.LevelDebug, string(line)
}

// cause is what lines about the same thing have in common: what stands before the
// first number, name in quotes or address.
func cause(text string) string {
	if i := strings.IndexAny(text, "0123456789'\"="); i >= 0 {
		text = text[:i]
	}
	return text
}

// between returns what stands between two texts, where both are there.
func between(text, before, after string) (string, bool) {
	if _, rest, ok := strings.Cut(text, before); ok {
		if name, _, ok := strings.Cut(rest, after); ok {
			return name, true
		}
	}
	return "", false
}
