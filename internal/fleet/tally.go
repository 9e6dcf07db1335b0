package fleet

import (
	"encoding/json"
	"fmt"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

const (
	// MaxTally bounds a tally in bytes.
	MaxTally = 32 << 10
	// maxAllowed bounds the zones, over all agents, in which hosts may switch at a time, so
	// that a tally is no longer.
	maxAllowed = 256
	// maxTallied bounds the numbers of a tally: hosts, terms and microseconds.
	maxTallied = 1 << 53
)

// tally is what an agent tells the region's others of one service: how many of its hosts
// switch, and how many would. The one that keeps the region's count says in it how many of
// each agent's may.
type tally struct {
	Service string `json:"s"`
	// At is the agent's own clock in microseconds; it grows from tally to tally.
	At    int64                `json:"t"`
	Zones map[string]zoneTally `json:"z,omitempty"`
	// Heeds is the count that the agent goes by: since the tally of that number it has given
	// leave by no earlier one. Term is 0 for none.
	Heeds counted `json:"h"`
	// Counts is set by who keeps the count.
	Counts *allowances `json:"c,omitempty"`
}

// counted names what the keeper of a term has allowed.
type counted struct {
	Term   int64 `json:"k,omitempty"`
	Number int64 `json:"n,omitempty"`
}

// zoneTally is one agent's hosts of a service in a zone.
type zoneTally struct {
	Here   int `json:"n"`           // with a stream, or held
	Known  int `json:"k,omitempty"` // the same, and those that were lost of late
	Held   int `json:"h,omitempty"` // which switch, or have leave to
	Lost   int `json:"l,omitempty"` // those of them that have no stream
	Asking int `json:"w,omitempty"` // which want leave beside those
}

// allowances are how many hosts may switch at a time.
type allowances struct {
	counted
	Agents map[string]allowance `json:"a,omitempty"` // by name
	// Most is how many of the region's hosts may switch at a time; 0 while none may.
	Most int `json:"m,omitempty"`
	// Waits says why there are none, or for whom places are kept.
	Waits string `json:"e,omitempty"`
}

// allowance is one agent's.
type allowance struct {
	Seen  int64          `json:"t"`           // At of the tally that it follows
	Zones map[string]int `json:"z,omitempty"` // 0 is left out
}

// decodeTally reads a tally of another agent.
func decodeTally(text []byte) (*tally, error) {
	if len(text) > MaxTally {
		return nil, fmt.Errorf("tally of %d bytes, at most %d", len(text), MaxTally)
	}
	t := new(tally)
	if err := json.Unmarshal(text, t); err != nil {
		return nil, fmt.Errorf("tally: %w", err)
	}
	if err := goal.CheckService(t.Service); err != nil {
		return nil, err
	}
	wrong := func(what string, n any) (*tally, error) {
		return nil, fmt.Errorf("tally of %s: %s %v", t.Service, what, n)
	}
	if len(t.Zones) > maxZones+1 {
		return wrong("zones", len(t.Zones))
	}
	for name, z := range t.Zones {
		if len(name) > hostwire.MaxLabel || min(z.Here, z.Known, z.Held, z.Lost, z.Asking) < 0 || max(z.Here, z.Known, z.Held, z.Lost, z.Asking) > goal.MaxHosts {
			return wrong("zone", fmt.Sprintf("%.80q", name))
		}
	}
	if !t.Heeds.valid() || t.At < 0 || t.At > maxTallied {
		return wrong("number", t.At)
	}
	c := t.Counts
	if c == nil {
		return t, nil
	}
	if !c.valid() || c.Term == 0 || len(c.Agents) > hostwire.MaxAgents || c.Most < 0 || c.Most > goal.MaxHosts || len(c.Waits) > goal.MaxOutput {
		return wrong("term", c.Term)
	}
	for agent, a := range c.Agents {
		if a.Seen < 0 || a.Seen > maxTallied || len(a.Zones) > maxAllowed {
			return wrong("agent", fmt.Sprintf("%.80q", agent))
		}
		for zone, n := range a.Zones {
			if n < 0 || n > goal.MaxHosts {
				return wrong("zone", fmt.Sprintf("%.80q", zone))
			}
		}
	}
	return t, nil
}

func (c counted) valid() bool {
	return c.Term >= 0 && c.Term < maxTallied && c.Number >= 0 && c.Number < maxTallied
}
