package seeder

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/services"
)

// shownOnPage is how many executions, the newest, the page for people lists; the
// search reaches all of them.
const shownOnPage = 500

// shownLinks is how many links of a swarm, the strongest, the page is told of: 64
// agents have 4,032, which nobody can tell apart; told all of them, a page was sent
// 380 kB a second, and 48 kB with this bound.
const shownLinks = 150

// shownRecalls is how many recalled builds, the newest, the page is told of: all 300 that there
// can be, with keys of full length, would be 400 kB.
const shownRecalls = 20

// The names under which the page gets its values; those of an execution end with
// its id, those of a service with its name. A reader opens the last three.
const (
	aboutValue     = "about"
	membersValue   = "members"
	badPeersValue  = "badPeers"
	listedValue    = "listed/"
	serviceValue   = "service/"
	recallsValue   = "recalls"
	executionValue = "execution/"
	swarmValue     = "swarm/"
	deployedValue  = "deployed/"
)

// about is what the page says of the seeder.
type about struct {
	Bucket       string   `json:"bucket"`
	Version      string   `json:"version"`
	Name         string   `json:"name"`
	Destinations []string `json:"destinations"`
	// Unserved are those of them where no agent would take a build.
	Unserved   []api.Unserved `json:"unserved,omitempty"`
	Executions int            `json:"executions"`        // all that there are
	Skipped    int64          `json:"skipped,omitempty"` // items of the table that are none
	Loading    bool           `json:"loading,omitempty"`
	// Insecure: everybody who reaches the HTTP side may change something.
	Insecure bool       `json:"insecure,omitempty"`
	Limits   api.Limits `json:"limits"`
}

// listed is an execution as the page's list shows it.
type listed struct {
	ID     string    `json:"id"`
	Key    string    `json:"key"`
	Status string    `json:"status"`
	Phase  string    `json:"phase"`
	Size   int64     `json:"size"`
	Start  time.Time `json:"start"`
	// Took is the seconds from start to end; 0 before.
	Took         float64 `json:"took,omitempty"`
	Destinations int     `json:"destinations"`
	Landed       int     `json:"landed"`
	Failed       int     `json:"failed,omitempty"`
	// Done is how far it has come, from 0 to 1000.
	Done int  `json:"done"`
	Sick bool `json:"sick,omitempty"` // something is tried again
	High bool `json:"high,omitempty"` // it goes before others
}

// listedService is a service as the page's list shows it.
type listedService struct {
	Service string `json:"service"`
	Target  string `json:"target,omitempty"` // its key
	Stable  string `json:"stable,omitempty"`
	// State is its newest deployment's, Wave which of how many is open, Reason what holds it
	// up.
	State  string         `json:"state,omitempty"`
	Wave   int            `json:"wave,omitempty"`
	Waves  int            `json:"waves,omitempty"`
	Reason string         `json:"reason,omitempty"`
	Hosts  api.HostCounts `json:"hosts"`
}

// recallsOnPage are the builds that must run nowhere.
type recallsOnPage struct {
	All    int                 `json:"all"`
	Newest []api.RecalledBuild `json:"newest"`
}

func showRecalls(r services.Recalls) recallsOnPage {
	out := recallsOnPage{All: len(r.Builds)}
	for _, b := range r.Builds {
		out.Newest = append(out.Newest, api.RecalledBuild(b))
	}
	slices.SortFunc(out.Newest, func(a, b api.RecalledBuild) int {
		return cmp.Or(b.At.Compare(a.At), strings.Compare(a.SHA256, b.SHA256))
	})
	out.Newest = out.Newest[:min(len(out.Newest), shownRecalls)]
	return out
}

func listService(s *api.Service) listedService {
	l := listedService{Service: s.Service, Hosts: s.Hosts, Reason: s.Error}
	if s.Target != nil {
		l.Target = s.Target.Key
	}
	if s.Stable != nil {
		l.Stable = s.Stable.Key
	}
	if d := s.Deployment; d != nil {
		l.State, l.Wave, l.Waves, l.Reason = d.State, d.Wave, len(d.Policy.Waves), cmp.Or(s.Error, d.Reason)
		if l.Reason == "" && d.State == api.DeploymentGate && len(d.WaitsFor) > 0 {
			l.Reason = "has still to arrive in " + strings.Join(d.WaitsFor, ", ")
		}
	}
	return l
}

// state is what the page shows everybody.
func (s *Seeder) state() iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		shown, total := s.index.listed(shownOnPage)
		ok := yield(aboutValue, about{
			Bucket:       s.cfg.Bucket.Name(),
			Version:      s.cfg.Version,
			Name:         s.cfg.Gossip.ID,
			Destinations: s.cfg.Destinations,
			Unserved:     s.index.unservedOf(s.cfg.Destinations),
			Executions:   total,
			Skipped:      s.items.skipped.Load(),
			Loading:      !s.isLoaded(),
			Insecure:     s.protection().Open(),
			Limits:       s.cfg.Limits.Rates(),
		}) && yield(membersValue, gossip.View(s.gossip.Members())) && yield(badPeersValue, peerwire.View(s.swarm.BadPeers()))
		for _, l := range shown {
			ok = ok && yield(listedValue+l.ID, l)
		}
		for _, service := range s.servicesView().Services {
			ok = ok && yield(serviceValue+service.Service, listService(&service))
		}
		if r := s.recalls.get(); ok && len(r.Builds) > 0 {
			yield(recallsValue, showRecalls(r))
		}
	}
}

// opened is a value that a reader has opened.
func (s *Seeder) opened(name string) (value any, ok bool) {
	if id, is := strings.CutPrefix(name, executionValue); is {
		return s.index.one(id)
	}
	if service, is := strings.CutPrefix(name, deployedValue); is {
		v, err := s.serviceView(service)
		return v, err == nil
	}
	if id, is := strings.CutPrefix(name, swarmValue); is {
		if r, known := s.index.get(id); known {
			v := s.swarmView(r)
			v.Links = strongest(v.Links, shownLinks)
			return v, true
		}
	}
	return nil, false
}

// listed returns the newest executions for the page, newest first, and how many
// there are in all.
func (x *index) listed(limit int) (newest []listed, total int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := len(x.order) - 1; i >= max(0, len(x.order)-limit); i-- {
		newest = append(newest, x.listing(x.at(x.order[i].id())))
	}
	return newest, len(x.order)
}

func (x *index) listing(e *execution) listed {
	r := e.record
	l := listed{
		ID:           r.ExecutionID,
		Key:          r.FileKey,
		Status:       string(r.Status),
		Phase:        e.live.phase,
		Size:         r.Size,
		High:         r.High,
		Start:        r.StartTime.UTC(),
		Destinations: len(r.Destinations),
		Landed:       len(r.Successful),
		Failed:       len(slices.DeleteFunc(slices.Clone(r.Failed), r.Cancelled)),
	}
	if !r.CompletedAt.IsZero() {
		l.Took = r.CompletedAt.Sub(r.StartTime).Seconds()
	}
	if r.Status == ledger.Completed {
		l.Done = 1000
		return l
	}
	l.Sick = e.live.err != nil
	// Pulling, downloading and landing count alike.
	done, whole := float64(e.live.pulled), float64(1+2*len(r.Destinations))*float64(max(1, r.Size))
	for _, b := range r.Destinations {
		d := x.destination(e, b)
		done += float64(d.VerifiedBytes + d.LandedBytes)
		l.Sick = l.Sick || d.Error != "" && d.State != api.StateFailed && d.State != api.StateCancelled
	}
	l.Done = int(1000 * min(1, done/whole))
	return l
}

// swarmView is who has what of a build, and from whom.
func (s *Seeder) swarmView(r *ledger.Record) api.SwarmView {
	v := api.SwarmView{Holders: []api.Holder{}, Links: s.index.linksOf(r.ExecutionID)}
	v.AllLinks, v.Traffic = len(v.Links), traffic(v.Links)
	infohash, err := manifest.ParseInfoHash(r.InfoHash)
	if err != nil { // not known yet, or none
		return v
	}
	entry, cached := s.cfg.Cache.Entry(infohash)
	t, seeded := s.swarm.Torrent(infohash)
	if !cached || !seeded {
		return v
	}
	v.Pieces, v.PieceLength = entry.Shape().NumPieces(), entry.Shape().PieceLength
	here, peers := t.Fill()
	v.Seeder = here
	names := gossip.ByPeerID(s.gossip.Members(), peerwire.PeerID)
	for _, p := range peers {
		if m, ok := names[p.ID]; ok && m.Role == gossip.Agent {
			v.Holders = append(v.Holders, api.Holder{Agent: m.ID, Region: m.Region, Bucket: m.Bucket, Fill: p.Fill})
		}
	}
	return v
}

// strongest returns the links over which most bytes came, at most so many, in order of
// their names as before: what does not change is not sent again.
func strongest(links []api.Link, most int) []api.Link {
	if len(links) <= most {
		return links
	}
	byBytes := slices.SortedStableFunc(slices.Values(links), func(a, b api.Link) int { return cmp.Compare(b.Bytes, a.Bytes) })
	least := byBytes[most-1].Bytes
	out := make([]api.Link, 0, most)
	for _, l := range links {
		if l.Bytes >= least && len(out) < most {
			out = append(out, l)
		}
	}
	return out
}

// traffic sums the links up, in order of the members' names.
func traffic(links []api.Link) []api.Traffic {
	of := make(map[string]*api.Traffic)
	at := func(member string) *api.Traffic {
		if of[member] == nil {
			of[member] = &api.Traffic{Member: member}
		}
		return of[member]
	}
	for _, l := range links {
		from, to := at(l.From), at(l.To)
		from.Sent, from.UpRate = from.Sent+l.Bytes, from.UpRate+l.Rate
		to.Received, to.DownRate = to.Received+l.Bytes, to.DownRate+l.Rate
	}
	out := []api.Traffic{}
	for _, name := range slices.Sorted(maps.Keys(of)) {
		out = append(out, *of[name])
	}
	return out
}
