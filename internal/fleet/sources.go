package fleet

import (
	"maps"
	"slices"
	"strings"

	"github.com/landfall-dist/landfall/internal/hostwire"
)

// agents notes which agents for hosts there are, and passes that down where it has changed.
func (m *machine) agents(urls []string, sources []hostwire.Peer) {
	if w := encode(&hostwire.Welcome{Version: hostwire.Version, Region: m.region, Agents: urls}); string(w) != string(m.welcome) {
		m.welcome = w
		for _, h := range m.hosts {
			m.send(h, "welcome", w)
		}
	}
	if slices.Equal(m.sources, sources) {
		return
	}
	m.sources = slices.Clone(sources)
	for _, name := range slices.Sorted(maps.Keys(m.services)) {
		s := m.services[name]
		for _, r := range s.list {
			m.neighboursOf(r.host)
			if s.sourced > m.places() {
				m.noSource(r)
			}
		}
		m.fillSources(s)
	}
}

// places is how many hosts of each service here get builds from agents.
func (m *machine) places() int { return max(1, sourcePlaces/max(1, len(m.sources))) }

// fillSources has as many hosts of a service get builds from agents as may.
func (m *machine) fillSources(s *service) {
	if s.sourced >= m.places() || len(s.list) == 0 {
		return
	}
	from := m.rng.IntN(len(s.list))
	for i := range s.list {
		if s.sourced >= m.places() {
			return
		}
		r := s.list[(from+i)%len(s.list)]
		if !r.sourced && r.host.link != nil {
			r.sourced = true
			s.sourced++
			m.neighboursOf(r.host)
		}
	}
}

func (m *machine) noSource(r *running) {
	if r.sourced {
		r.sourced = false
		r.service.sourced--
		m.neighboursOf(r.host)
	}
}

// neighboursOf notes that a host's neighbours, or its sources, may be others than before.
func (m *machine) neighboursOf(h *host) {
	h.neighboursDue = true
	m.due[h] = struct{}{}
}

// tellNeighbours sends a host its neighbours, if they are others than it was told.
func (m *machine) tellNeighbours(h *host) {
	if !h.neighboursDue || h.link == nil {
		return
	}
	h.neighboursDue = false
	seen := map[*host]bool{h: true}
	n := &hostwire.Neighbours{Peers: []hostwire.Peer{}}
	sourced := false
	for _, r := range h.services {
		sourced = sourced || r.sourced
		r.node.neighbours(func(other *host) {
			if !seen[other] && other.addr.IsValid() && len(n.Peers) < hostwire.MaxPeers {
				seen[other] = true
				n.Peers = append(n.Peers, peerOf(other.name, other.start, other.addr))
			}
		})
		for _, p := range r.far {
			if !slices.Contains(n.Peers, p) && len(n.Peers) < hostwire.MaxPeers {
				n.Peers = append(n.Peers, p)
			}
		}
	}
	if sourced || len(n.Peers) == 0 { // who has no neighbours has nobody else
		n.Sources = m.sources
	}
	slices.SortFunc(n.Peers, func(a, b hostwire.Peer) int { return strings.Compare(a.Name, b.Name) })
	if told := h.toldNeighbours; told != nil && slices.Equal(n.Peers, told.Peers) && slices.Equal(n.Sources, told.Sources) {
		return
	}
	h.toldNeighbours = n
	m.send(h, "neighbours", encode(n))
}
