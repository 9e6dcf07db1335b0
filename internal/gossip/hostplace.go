package gossip

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
)

// HostPlace is where a host stands among all: they are in order of region, then of name. The
// zero value stands before all of them.
type HostPlace struct{ Region, Host string }

// PlaceOf is where a host stands.
func PlaceOf(h *api.HostView) HostPlace { return HostPlace{h.Region, h.Host} }

// ParseHostPlace reads REGION/HOST, as String writes it. A host's name has no slash.
func ParseHostPlace(s string) (HostPlace, error) {
	i := strings.LastIndexByte(s, '/')
	if i < 1 || i > maxName {
		return HostPlace{}, fmt.Errorf("%.80q: expected REGION/HOST, and at most %d bytes of region", s, maxName)
	}
	if err := goal.CheckName("host", s[i+1:]); err != nil {
		return HostPlace{}, err
	}
	return HostPlace{s[:i], s[i+1:]}, nil
}

// String is REGION/HOST.
func (p HostPlace) String() string { return p.Region + "/" + p.Host }

// Compare is below 0 where p stands before q, above it where it stands after it.
func (p HostPlace) Compare(q HostPlace) int {
	return cmp.Or(cmp.Compare(p.Region, q.Region), cmp.Compare(p.Host, q.Host))
}

// MarshalText implements encoding.TextMarshaler.
func (p HostPlace) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *HostPlace) UnmarshalText(text []byte) (err error) {
	*p, err = ParseHostPlace(string(text))
	return err
}
