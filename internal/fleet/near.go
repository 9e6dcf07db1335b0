package fleet

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

// The region's agents tell each other their hosts, so that all of them are one swarm: with
// graphs of their own alone, each agent would have to hand out each build to its own.
const (
	// Buckets is into how many lists an agent's hosts are cut, by name: who comes or goes
	// has one of them told again.
	Buckets = 128
	// MaxBucket bounds such a list in bytes. Hosts that do not fit have neighbours among
	// their own agent's alone.
	MaxBucket = 32 << 10
	// ringReach is how far apart hosts of different agents may be in the ring of all hosts of
	// a service and zone, in order of their hashes, to be neighbours. Both agents come to the
	// same pairs by themselves. Of three agents' hosts each has 2.7 such neighbours.
	ringReach = 2
	// maxNear bounds the hosts of other agents that are known.
	maxNear = 100_000
)

// near is a host of another agent, as that one tells.
type near struct {
	Host     string         `json:"h"`
	Start    string         `json:"s"`
	Zone     string         `json:"z,omitempty"`
	Addr     netip.AddrPort `json:"a"`
	Services []string       `json:"v"`
	// Lost: it has no stream there just now.
	Lost bool `json:"l,omitempty"`
}

// bucket is one list of an agent's hosts.
type bucket struct {
	Number int    `json:"b"`
	Hosts  []near `json:"h"`
}

func bucketOf(name string) int {
	h := fnv.New32a()
	h.Write([]byte(name)) //nolint:errcheck // it never fails
	return int(h.Sum32() % Buckets)
}

// decodeBucket reads a list of another agent.
func decodeBucket(text []byte) (b bucket, err error) {
	if len(text) > MaxBucket {
		return b, fmt.Errorf("hosts of another agent: %d bytes, at most %d", len(text), MaxBucket)
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return b, fmt.Errorf("hosts of another agent: %w", err)
	}
	if b.Number < 0 || b.Number >= Buckets {
		return b, fmt.Errorf("hosts of another agent: list %d of %d", b.Number, Buckets)
	}
	for _, n := range b.Hosts {
		if err := hostwire.CheckName(n.Host); err != nil {
			return b, err
		}
		if _, err := ulid.ParseStrict(n.Start); err != nil || len(n.Zone) > hostwire.MaxLabel || len(n.Services) > hostwire.MaxServices || !n.Addr.IsValid() || n.Addr.Port() == 0 {
			return b, fmt.Errorf("hosts of another agent: %s is not as a host can be", n.Host)
		}
	}
	return b, nil
}

// tellsNear notes that a host has come, has changed or has gone.
func (m *machine) tellsNear(h *host) {
	m.nearOut[bucketOf(h.name)] = true
	m.ringsDue = true
}

// nearLists are the lists that have changed since they were told, by number.
func (m *machine) nearLists() map[int][]byte {
	if len(m.nearOut) == 0 {
		return nil
	}
	lists := make(map[int]*bucket)
	for n := range m.nearOut {
		lists[n] = &bucket{Number: n, Hosts: []near{}}
	}
	clear(m.nearOut)
	for _, h := range m.hosts {
		b := lists[bucketOf(h.name)]
		if b == nil || !h.addr.IsValid() {
			continue
		}
		n := near{Host: h.name, Start: h.start, Zone: h.zone, Addr: h.addr, Lost: h.link == nil}
		for _, r := range h.services {
			if r.node != nil {
				n.Services = append(n.Services, r.service.name)
			}
		}
		if len(n.Services) > 0 {
			b.Hosts = append(b.Hosts, n)
		}
	}
	texts := make(map[int][]byte)
	for number, b := range lists {
		for {
			text, err := json.Marshal(b)
			if err != nil {
				m.warn("hosts are not told to the region's other agents", "error", err)
				break
			}
			if len(text) <= MaxBucket {
				texts[number] = text
				break
			}
			b.Hosts = b.Hosts[:len(b.Hosts)*MaxBucket/(len(text)+1)]
		}
	}
	return texts
}

// hearsNear takes a list of another agent's hosts.
func (m *machine) hearsNear(agent string, b bucket) {
	lists := m.near[agent]
	if lists == nil {
		if len(m.near) >= hostwire.MaxAgents {
			return
		}
		lists = make(map[int][]near)
		m.near[agent] = lists
	}
	known := -len(lists[b.Number]) + len(b.Hosts)
	for _, lists := range m.near {
		for _, hosts := range lists {
			known += len(hosts)
		}
	}
	if known > maxNear {
		m.warn("hosts of the region's other agents are left out, there are too many", "agent", agent)
		return
	}
	lists[b.Number] = b.Hosts
	m.ringsDue = true
}

// forgetNear forgets the hosts of agents that are no members any more.
func (m *machine) forgetNear(agents []string) {
	for agent, lists := range m.near {
		if slices.Contains(agents, agent) {
			delete(m.strayed, agent)
			continue
		}
		for _, hosts := range lists {
			for _, n := range hosts {
				m.strayed[agent] = append(m.strayed[agent], n.Host)
			}
		}
		delete(m.near, agent)
		m.ringsDue = true
	}
	for agent, hosts := range m.strayed {
		hosts = slices.DeleteFunc(hosts, func(name string) bool {
			h := m.hosts[name]
			return h != nil && h.link != nil || m.elsewhere(name)
		})
		if m.strayed[agent] = hosts; len(hosts) > 0 && m.counter != nil && m.counter.isGone(agent) {
			continue
		}
		delete(m.strayed, agent)
		if m.counter != nil && m.counter.isGone(agent) {
			m.counter.forget(agent)
		}
	}
}

// elsewhere reports whether another agent has a host.
func (m *machine) elsewhere(host string) bool {
	for _, lists := range m.near {
		if slices.ContainsFunc(lists[bucketOf(host)], func(n near) bool { return n.Host == host && !n.Lost }) {
			return true
		}
	}
	return false
}

// place is a host in a ring.
type place struct {
	hash  int64
	agent string   // empty for this one
	own   *running // nil for another agent's
	peer  hostwire.Peer
}

// rings gives hosts neighbours among those of other agents.
func (m *machine) rings() {
	if !m.ringsDue {
		return
	}
	m.ringsDue = false
	type of struct{ service, zone string }
	rings := make(map[of][]place)
	for _, s := range m.services {
		for _, r := range s.hosts {
			if r.node != nil && r.host.addr.IsValid() {
				h := r.host
				key := of{s.name, h.zone}
				rings[key] = append(rings[key], place{r.hash(), "", r, peerOf(h.name, h.start, h.addr)})
			} else if r.far != nil {
				r.far = nil
				m.neighboursOf(r.host)
			}
		}
	}
	for agent, lists := range m.near {
		for _, hosts := range lists {
			for _, n := range hosts {
				for _, service := range n.Services {
					if key := (of{service, n.Zone}); rings[key] != nil { // else none of ours is there
						rings[key] = append(rings[key], place{goal.HashOf(service, n.Host), agent, nil, peerOf(n.Host, n.Start, n.Addr)})
					}
				}
			}
		}
	}
	for _, ring := range rings {
		slices.SortFunc(ring, func(a, b place) int {
			return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.peer.Name, b.peer.Name), cmp.Compare(a.agent, b.agent))
		})
		for i, p := range ring {
			if p.own == nil {
				continue
			}
			var far []hostwire.Peer
			for d := 1; d <= ringReach && d < len(ring); d++ {
				for _, other := range []place{ring[(i+d)%len(ring)], ring[(i-d+len(ring))%len(ring)]} {
					if other.agent != "" && other.peer.ID != p.peer.ID && !slices.Contains(far, other.peer) {
						far = append(far, other.peer)
					}
				}
			}
			if !slices.Equal(far, p.own.far) {
				p.own.far = far
				m.neighboursOf(p.own.host)
			}
		}
	}
}

func peerOf(host, start string, addr netip.AddrPort) hostwire.Peer {
	return hostwire.Peer{Name: hostwire.NameOf(host, start), ID: host, Addr: addr}
}

// hash is the host's place on the circle of its service.
func (r *running) hash() int64 {
	if r.hashed == 0 {
		r.hashed = 1 + goal.HashOf(r.service.name, r.host.name)
	}
	return r.hashed - 1
}
