package gossip

import "github.com/landfall-dist/landfall/internal/api"

// View is the members as HTTP shows them.
func View(members []Member) []api.Member {
	out := make([]api.Member, 0, len(members))
	for _, m := range members {
		out = append(out, api.Member{
			Name:   m.Name,
			Role:   string(m.Role),
			Region: m.Region,
			Addr:   m.Addr.String(),
			State:  m.State,
		})
	}
	return out
}
