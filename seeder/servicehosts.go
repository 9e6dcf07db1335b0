package seeder

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/web"
)

const (
	// hostsPatience is how long agents may take to say which hosts they have: an answer
	// without one of them is better than none.
	hostsPatience = 3 * time.Second
	// defaultHosts is how many hosts one answer lists.
	defaultHosts = 100
)

// getHosts asks the agents for hosts of a service.
func (s *Seeder) getHosts(r *http.Request) (int, any, error) {
	q := r.URL.Query()
	asked := gossip.HostsQuestion{Service: r.PathValue("name"), State: q.Get("state"), Limit: defaultHosts}
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > gossip.MaxHosts {
			return 0, nil, web.Errorf(http.StatusBadRequest, "limit is %.40q, expected 1 to %d", v, gossip.MaxHosts)
		}
		asked.Limit = n
	}
	if asked.State != "" && !slices.Contains(api.HostStates(), asked.State) {
		return 0, nil, web.Errorf(http.StatusBadRequest, "state is %.40q, expected one of %v", asked.State, api.HostStates())
	}
	if v := q.Get("after"); v != "" {
		after, err := gossip.ParseHostPlace(v)
		if err != nil {
			return 0, nil, web.Errorf(http.StatusBadRequest, "after: %w", err)
		}
		asked.After = after
	}
	if _, err := s.serviceView(asked.Service); err != nil {
		return 0, nil, err
	}
	out, err := s.hosts(r.Context(), asked)
	return http.StatusOK, out, err
}

// hosts asks the agents for hosts of a service, and makes one list of what they say.
func (s *Seeder) hosts(ctx context.Context, asked gossip.HostsQuestion) (api.HostViews, error) {
	ctx, cancel := context.WithTimeout(ctx, hostsPatience)
	defer cancel()
	answers, silent, err := s.gossip.HostsOf(ctx, asked)
	if err != nil {
		return api.HostViews{}, &web.Error{Code: http.StatusServiceUnavailable, Err: err, RetryAfter: hostsPatience}
	}
	out := mergeHosts(answers, silent, asked.After, asked.Limit)
	for i := range out.Hosts {
		h := &out.Hosts[i]
		if of, ok := s.index.get(h.Running); ok {
			h.Key = of.FileKey
		}
	}
	return out, nil
}

// mergeHosts makes one list of what agents say of the hosts after a place. It ends where an
// agent has hosts that it has not named, so that the next one, which begins there, skips none.
// A host that two of them know has moved: it is where it was seen last.
func mergeHosts(answers []gossip.HostsAnswer, silent []gossip.Member, after gossip.HostPlace, limit int) api.HostViews {
	hosts := make(map[gossip.HostPlace]api.HostView)
	out := api.HostViews{Hosts: []api.HostView{}}
	var end gossip.HostPlace // the zero value for none
	for _, a := range answers {
		out.All += a.All
		if a.From.Region < after.Region {
			continue // all its hosts stand before
		}
		var last gossip.HostPlace
		named := 0
		for _, h := range a.Hosts {
			at := gossip.PlaceOf(&h)
			if at.Compare(after) <= 0 { // of a program from before there was an after
				continue
			}
			if at.Compare(last) > 0 {
				last = at
				named++
			}
			if before, ok := hosts[at]; ok {
				out.All--
				if !seenBefore(before, h) {
					continue
				}
			}
			hosts[at] = h
		}
		switch {
		case a.Rest == 0:
		case named < min(limit, gossip.LeastHosts): // it does not get on, or hardly: nobody waits for what it keeps back
			out.Unanswered = append(out.Unanswered, a.From.Region)
		case end == gossip.HostPlace{} || last.Compare(end) < 0:
			end = last
		}
	}
	for at, h := range hosts {
		if end == (gossip.HostPlace{}) || at.Compare(end) <= 0 {
			out.Hosts = append(out.Hosts, h)
		}
	}
	slices.SortFunc(out.Hosts, func(a, b api.HostView) int { return gossip.PlaceOf(&a).Compare(gossip.PlaceOf(&b)) })
	if n := len(out.Hosts); n > limit || end != (gossip.HostPlace{}) {
		out.Hosts = out.Hosts[:min(n, limit)]
		out.Next = gossip.PlaceOf(&out.Hosts[len(out.Hosts)-1]).String()
	}
	out.All = max(out.All, len(out.Hosts))
	for _, m := range silent {
		out.Unanswered = append(out.Unanswered, m.Region)
	}
	slices.Sort(out.Unanswered)
	out.Unanswered = slices.Compact(out.Unanswered)
	return out
}

// seenBefore reports whether a is what was known of a host before b.
func seenBefore(a, b api.HostView) bool {
	switch {
	case b.SeenAt == nil:
		return false
	case a.SeenAt == nil:
		return true
	}
	return a.SeenAt.Before(*b.SeenAt)
}
