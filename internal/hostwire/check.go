package hostwire

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// CheckName reports what is wrong with the name of a host or a service: lower-case letters,
// digits, dashes, dots and underscores are allowed, as certificates have them.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName || name == "." || name == ".." ||
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
		return fmt.Errorf("%w: name %.80q: expected lower-case letters, digits, dashes, dots and underscores, at most %d", ErrInvalid, name, MaxName)
	}
	return nil
}

// Line makes a text fit Error, Phase and labels: one line without control characters, its
// beginning.
func Line(text string) string {
	text = strings.Join(strings.Fields(printable(text)), " ")
	if len(text) > MaxError {
		text = strings.ToValidUTF8(text[:MaxError], "")
	}
	return text
}

// Tail makes a text fit Output: the last lines, without control characters.
func Tail(text string) string {
	text = strings.TrimSpace(printable(text[max(0, len(text)-2*MaxOutput):]))
	if cut := len(text) - MaxOutput; cut > 0 {
		if end := strings.IndexByte(text[cut:], '\n'); end >= 0 && end < MaxOutput/2 {
			cut += end + 1
		}
		text = strings.ToValidUTF8(text[cut:], "")
	}
	return text
}

// printable replaces what no terminal should get.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return r
		case r == '\r':
			return -1
		case r == utf8.RuneError, unicode.IsControl(r):
			return '?'
		}
		return r
	}, text)
}

// checkText reports what is wrong with a text of a host.
func checkText(what, text string, most int) error {
	if len(text) > most {
		return fmt.Errorf("%w: %s of %d bytes, at most %d", ErrInvalid, what, len(text), most)
	}
	if !utf8.ValidString(text) {
		return fmt.Errorf("%w: %s is not UTF-8", ErrInvalid, what)
	}
	if at := strings.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }); at >= 0 {
		return fmt.Errorf("%w: %s has a control character", ErrInvalid, what)
	}
	return nil
}

func checkID(what, id string) error {
	if u, err := ulid.ParseStrict(id); err != nil || u.String() != id {
		return fmt.Errorf("%w: %s %.40q is no ULID", ErrInvalid, what, id)
	}
	return nil
}

func (h *Hello) check() error {
	if err := CheckName(h.Host); err != nil {
		return err
	}
	if err := checkID("start", h.Start); err != nil {
		return err
	}
	if err := checkText("zone", h.Zone, MaxLabel); err != nil {
		return err
	}
	if err := checkText("program", h.Program, MaxLabel); err != nil {
		return err
	}
	switch {
	case h.Version < 1:
		return fmt.Errorf("%w: version %d", ErrInvalid, h.Version)
	case len(h.Labels) > MaxLabels:
		return fmt.Errorf("%w: %d labels, at most %d", ErrInvalid, len(h.Labels), MaxLabels)
	case len(h.Services) > MaxServices:
		return fmt.Errorf("%w: %d services, at most %d", ErrInvalid, len(h.Services), MaxServices)
	case len(h.Holds) > MaxHolds:
		return fmt.Errorf("%w: %d builds, at most %d", ErrInvalid, len(h.Holds), MaxHolds)
	}
	for k, v := range h.Labels {
		if err := checkText("label", k, MaxLabel); err != nil {
			return err
		}
		if err := checkText("label", v, MaxLabel); err != nil {
			return err
		}
	}
	seen := make(map[string]bool, len(h.Services))
	for i := range h.Services {
		if err := h.Services[i].check(); err != nil {
			return err
		}
		if name := h.Services[i].Service; seen[name] {
			return fmt.Errorf("%w: service %s is named twice", ErrInvalid, name)
		}
		seen[h.Services[i].Service] = true
	}
	for i := range h.Holds {
		if err := h.Holds[i].check(); err != nil {
			return err
		}
	}
	return nil
}

func (s *ServiceState) check() error {
	if err := CheckName(s.Service); err != nil {
		return err
	}
	for what, id := range map[string]string{"running": s.Running, "wants": s.Wants} {
		if id == "" {
			continue
		}
		if err := checkID(what, id); err != nil {
			return err
		}
	}
	if s.Goal < 0 || s.Attempt < 0 {
		return fmt.Errorf("%w: goal %d, attempt %d", ErrInvalid, s.Goal, s.Attempt)
	}
	if err := checkText("state", s.State, MaxLabel); err != nil {
		return err
	}
	if err := checkText("phase", s.Phase, MaxLabel); err != nil {
		return err
	}
	if err := checkText("error", s.Error, MaxError); err != nil {
		return err
	}
	return checkText("output", s.Output, MaxOutput)
}

func (h *Holds) check() error {
	if h.Segments < 0 || h.Segments > manifest.MaxSegments {
		return fmt.Errorf("%w: %d segments", ErrInvalid, h.Segments)
	}
	return checkID("executionId", h.ExecutionID)
}

func (w *Welcome) check() error {
	if w.Version < 1 || len(w.Agents) > MaxAgents {
		return fmt.Errorf("%w: version %d, %d agents", ErrInvalid, w.Version, len(w.Agents))
	}
	for _, a := range w.Agents {
		if u, err := url.Parse(a); err != nil || len(a) > maxURL || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("%w: agent's address %.80q", ErrInvalid, a)
		}
	}
	return checkText("region", w.Region, MaxLabel)
}

func checkPeers(peers []Peer) error {
	if len(peers) > MaxPeers {
		return fmt.Errorf("%w: %d peers, at most %d", ErrInvalid, len(peers), MaxPeers)
	}
	for _, p := range peers {
		if p.ID == "" || len(p.ID) > MaxPeerName || p.Name == "" || len(p.Name) > MaxPeerName || !p.Addr.IsValid() || p.Addr.Port() == 0 {
			return fmt.Errorf("%w: peer %.80q at %s", ErrInvalid, p.ID, p.Addr)
		}
	}
	return nil
}

func (g *Goal) check() error { return checkDocument(g.Wire) }

func (b *Beat) check() error { return checkDocument(b.Wire) }

func checkDocument(wire []byte) error {
	if len(wire) == 0 || len(wire) > MaxDocument {
		return fmt.Errorf("%w: document of %d bytes", ErrInvalid, len(wire))
	}
	return nil
}

// Unknown is why this version cannot follow the recipe of a newer one; nil where it can.
// Receive returns such a one without its segments.
func (r *Recipe) Unknown() error { return r.Scheme.Check() }

// Layout is how the build is cut. The error wraps ErrInvalid.
func (r *Recipe) Layout() (*manifest.Layout, error) {
	l, err := manifest.NewLayout(r.Scheme, r.Size)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	case r.PieceLength != l.PieceLength || r.PartLength != l.PartLength:
		return nil, fmt.Errorf("%w: pieces of %d and parts of %d bytes in a build of %d", ErrInvalid, r.PieceLength, r.PartLength, r.Size)
	}
	return l, nil
}

func (r *Recipe) check() error {
	if err := checkID("executionId", r.ExecutionID); err != nil {
		return err
	}
	if err := announce.CheckKey(r.Key); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if r.Unknown() != nil {
		return checkText("scheme", string(r.Scheme), MaxLabel)
	}
	l, err := r.Layout()
	if err != nil {
		return err
	}
	segments := r.InfoHashes.Len()
	if r.From < 0 || r.From > l.NumSegments() || len(r.InfoHashes)%len(manifest.InfoHash{}) != 0 ||
		r.From+segments > l.NumSegments() || r.Sealed && r.From+segments < l.NumSegments() {
		return fmt.Errorf("%w: %d bytes of infohashes from segment %d on, of %d", ErrInvalid, len(r.InfoHashes), r.From, l.NumSegments())
	}
	for i := range segments {
		if r.InfoHashes.At(i) == (manifest.InfoHash{}) {
			return fmt.Errorf("%w: an infohash of zeros", ErrInvalid)
		}
	}
	return nil
}

func (n *Neighbours) check() error {
	if len(n.Sources) > MaxAgents {
		return fmt.Errorf("%w: %d sources, at most %d", ErrInvalid, len(n.Sources), MaxAgents)
	}
	return errors.Join(checkPeers(n.Peers), checkPeers(n.Sources))
}

func (l *Leave) check() error {
	if l.Version < 1 || l.Seconds < 0 {
		return fmt.Errorf("%w: leave for version %d within %d s", ErrInvalid, l.Version, l.Seconds)
	}
	return CheckName(l.Service)
}

func (*Ping) check() error { return nil }
