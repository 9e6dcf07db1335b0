package gossip

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/announce"
)

const (
	// maxMembers bounds the members known at a time. A member is a region's agent or
	// a seeder: five times the buckets that one execution may go to, twice over.
	maxMembers = 512
	// reservedPlaces of them are for seeders, for who is at an address of --join and
	// for who was a member before the restart: strangers do not shut these out.
	reservedPlaces = 64
	// maxGone bounds the names that have left of late, which memberlist keeps for
	// goneFor: who makes up names by the thousand is not listened to meanwhile.
	maxGone = 2 * maxMembers
	goneFor = 2 * time.Minute
)

// errFull is why a member is refused.
var errFull = errors.New("the cluster is full")

// roster is who is in the cluster, as memberlist's events say. Its lock is held for
// a few lines: memberlist calls it under its own.
type roster struct {
	self string

	mu    sync.Mutex
	nodes map[string]memberlist.Node // by name, the living
	gone  map[string]time.Time       // when names have left
	// preferred are addresses of --join and of those remembered.
	preferred map[string]bool
	// twins are superseded names that answer all the same: two processes have one
	// id, and neither must be forgotten.
	twins   map[string]bool
	refused int64
	// unfit are members whose certificate is not believed any more; memberlist goes on
	// to know them.
	unfit map[string]bool
	// said completes a meta by what its member has said over TLS; nil without.
	said    func(*Meta)
	current *snapshot // nil after a change
}

// snapshot is the roster at one time; nobody changes it.
type snapshot struct {
	nodes []memberlist.Node // of members, in order of name
	// members are the same, decoded.
	members []Member
	// superseded are the earlier starts of members that are in members.
	superseded []memberlist.Node
}

func newRoster(self string) *roster {
	return &roster{
		self:      self,
		nodes:     make(map[string]memberlist.Node),
		gone:      make(map[string]time.Time),
		preferred: make(map[string]bool),
		twins:     make(map[string]bool),
		unfit:     make(map[string]bool),
	}
}

// list has all nodes, also those that are no members any more in our eyes.
func (r *roster) list() []memberlist.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.nodes))
}

// same reports whether a node is here as it is, and believed.
func (r *roster) same(n *memberlist.Node) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	here, ok := r.nodes[n.Name]
	return ok && !r.unfit[n.Name] && bytes.Equal(here.Meta, n.Meta) && here.Address() == n.Address()
}

// setUnfit notes whether a member is believed. It reports whether that is news.
func (r *roster) setUnfit(name string, unfit bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.nodes[name]; !ok || r.unfit[name] == unfit {
		return false
	}
	delete(r.unfit, name)
	if unfit {
		r.unfit[name] = true
	}
	r.current = nil
	return true
}

// certified reports whether the member of this name is here with a certificate.
func (r *roster) certified(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ok := r.nodes[name]
	return ok && isCertified(n.Meta)
}

func (r *roster) hasAddress(addr string) bool { return r.addresses()[addr] }

// stale has the members made anew: one has said more of itself.
func (r *roster) stale() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = nil
}

func isCertified(meta []byte) bool {
	var m Meta
	return json.Unmarshal(meta, &m) == nil && m.Cert != ""
}

// admit says whether memberlist may take in a node that it has heard of.
func (r *roster) admit(n *memberlist.Node) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.nodes[n.Name]; known || n.Name == r.self {
		return nil
	}
	places := maxMembers
	if !r.preferred[n.Address()] && !isSeeder(n.Meta) {
		places -= reservedPlaces
	}
	if len(r.nodes) >= places {
		r.refused++
		return fmt.Errorf("%w: %d members", errFull, len(r.nodes))
	}
	if len(r.gone) >= maxGone {
		for name, at := range r.gone {
			if time.Since(at) > goneFor {
				delete(r.gone, name)
			}
		}
		if len(r.gone) >= maxGone {
			r.refused++
			return fmt.Errorf("%w: %d members have left within %s", errFull, len(r.gone), goneFor)
		}
	}
	return nil
}

func isSeeder(meta []byte) bool {
	var m Meta
	return json.Unmarshal(meta, &m) == nil && m.Role == Seeder
}

// come takes in a node that is new, or has changed.
func (r *roster) come(n *memberlist.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes[n.Name] = *n
	delete(r.unfit, n.Name)
	delete(r.gone, n.Name)
	r.current = nil
}

func (r *roster) leave(n *memberlist.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.nodes, n.Name)
	delete(r.twins, n.Name)
	delete(r.unfit, n.Name)
	r.gone[n.Name] = time.Now()
	r.current = nil
}

// prefer keeps a place for who is at these addresses.
func (r *roster) prefer(addrs ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range addrs {
		if len(r.preferred) < 2*maxMembers {
			r.preferred[a] = true
		}
	}
}

// twin notes that a superseded name is alive. It reports whether that is news.
func (r *roster) twin(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.nodes[name]; !ok || r.twins[name] {
		return false
	}
	r.twins[name] = true
	r.current = nil
	return true
}

// alive reports whether the member of this name is in the cluster.
func (r *roster) alive(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.nodes[name]
	return ok
}

// addresses are those at which a living member is known.
func (r *roster) addresses() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]bool, len(r.nodes))
	for _, n := range r.nodes {
		out[n.Address()] = true
	}
	return out
}

// refusals counts the members that were not taken in.
func (r *roster) refusals() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused
}

// now is the roster without those that a newer start has superseded: of two starts
// of one id, or at one address, the earlier is over, whatever memberlist still
// thinks of it, which in a wide network can take a minute and a half.
func (r *roster) now() *snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil {
		return r.current
	}
	type start struct{ name, began string }
	newest := make(map[string]start)
	var all []Member
	for _, n := range r.nodes {
		m, ok := member(&n)
		if !ok || r.unfit[n.Name] {
			continue
		}
		if r.said != nil {
			r.said(&m.Meta)
		}
		all = append(all, m)
		for _, place := range places(&m, &n) {
			if began := startOf(n.Name); newest[place].name == "" || newest[place].began < began {
				newest[place] = start{n.Name, began}
			}
		}
	}
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	s := &snapshot{}
	for _, m := range all {
		n := r.nodes[m.Name]
		isNewest := !slices.ContainsFunc(places(&m, &n), func(place string) bool { return newest[place].name != m.Name })
		if !isNewest && m.Name != r.self && !r.twins[m.Name] {
			s.superseded = append(s.superseded, n)
			continue
		}
		s.nodes, s.members = append(s.nodes, n), append(s.members, m)
	}
	r.current = s
	return s
}

// places are what a member has for itself: its id, and its address. Who has a certificate
// supersedes nobody of another role or region by saying that he is where they are.
func places(m *Member, n *memberlist.Node) []string {
	if m.Cert == "" {
		return []string{"id " + m.ID, "at " + n.Address()}
	}
	whose := string(m.Role) + " " + m.Region + " "
	return []string{"certified id " + whose + m.ID, "certified at " + whose + n.Address()}
}

// startOf is the ULID that a name ends in, made when the process started; empty
// where there is none.
func startOf(name string) string {
	if len(name) <= ulid.EncodedSize {
		return ""
	}
	id := name[len(name)-ulid.EncodedSize:]
	if _, err := ulid.ParseStrict(id); err != nil {
		return ""
	}
	return id
}

// Members returns everyone in the cluster that is not dead, this process
// included, in order of name. Of two starts of one member it has the newer.
func (g *Gossip) Members() []Member { return slices.Clone(g.roster.now().members) }

// others are the nodes of all members but this one, for memberlist to send to.
func (g *Gossip) others() []memberlist.Node {
	return slices.DeleteFunc(slices.Clone(g.roster.now().nodes), func(n memberlist.Node) bool { return n.Name == g.name })
}

const alive = "alive"

func member(n *memberlist.Node) (Member, bool) {
	m := Member{Name: n.Name, State: alive}
	if err := json.Unmarshal(n.Meta, &m.Meta); err != nil {
		return Member{}, false
	}
	addr, ok := netip.AddrFromSlice(n.Addr)
	if !ok || len(m.ID) > maxName || len(m.Region) > maxName || len(m.Table) > maxTable || len(m.ArrivalsTable) > maxTable {
		return Member{}, false
	}
	if m.Role != Seeder && (m.Role != Agent || announce.CheckBucketName(m.Bucket) != nil) {
		return Member{}, false
	}
	m.Addr = addr.Unmap()
	return m, true
}
