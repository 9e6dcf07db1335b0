package gossip

import (
	"encoding/json"
	"fmt"

	"github.com/oklog/ulid/v2"
)

// Links is what an agent tells the seeders of where a build's bytes came from.
type Links struct {
	Node        string `json:"n"` // who received
	ExecutionID string `json:"i"`
	From        []Link `json:"l"`
}

// Link is one sender: the id of a member, the bytes of the build that came from it,
// and at which rate, in bytes/s.
type Link struct {
	ID    string `json:"f"`
	Bytes int64  `json:"b"`
	Rate  int64  `json:"r,omitempty"`
}

// PackLinks cuts a long list of senders into messages that each fit a packet.
func PackLinks(node, executionID string, from []Link) []Links {
	return pack(from, func(some []Link) Links { return Links{node, executionID, some} })
}

func (l Links) encode() ([]byte, error) { return encode(kindLinks, l) }

func decodeLinks(body []byte) (Links, error) {
	var l Links
	if len(body) >= MaxProgress {
		return l, fmt.Errorf("links of %d bytes", len(body)+1)
	}
	if err := json.Unmarshal(body, &l); err != nil {
		return l, fmt.Errorf("links: %w", err)
	}
	if len(l.Node) > maxName {
		return l, fmt.Errorf("links: name too long")
	}
	if _, err := ulid.ParseStrict(l.ExecutionID); err != nil {
		return l, fmt.Errorf("links: executionId %q: %w", l.ExecutionID, err)
	}
	for _, from := range l.From {
		if len(from.ID) > maxName || !amounts(from.Bytes, from.Rate) {
			return l, fmt.Errorf("links of %s: out of range", l.ExecutionID)
		}
	}
	return l, nil
}
