package agent

import (
	"iter"
	"net/http"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/web"
)

func (a *Agent) handler() http.Handler {
	protection, mux := a.mux()
	return protection.Wrap(mux)
}

func (a *Agent) mux() (web.Protection, *web.Mux) {
	mux := web.NewMux(web.Options{
		Page:    "agent",
		Ready:   a.ready,
		State:   web.State{All: a.state},
		Metrics: a.registry(),
		Roles:   map[string]operator.Role{"GET /status": operator.View},
		Logger:  a.cfg.Logger,
	})
	mux.JSON("GET /status", func(*http.Request) (int, any, error) { return http.StatusOK, a.status(), nil })
	protection := web.Protection{Addr: a.cfg.HTTP.Addr(), Hosts: a.cfg.Hosts, Security: a.cfg.Security, Role: mux.Role, Action: mux.Action, Logger: a.cfg.Logger}
	mux.Limits(a.cfg.Limits, protection.Open())
	return protection, mux
}

func (a *Agent) status() *api.AgentStatus {
	members := a.gossip.Members()
	names := gossip.ByPeerID(members, peerwire.PeerID)
	s := &api.AgentStatus{
		Node:     a.gossip.Name(),
		Region:   a.cfg.Region,
		Bucket:   a.cfg.Bucket.Name(),
		Version:  a.cfg.Version,
		Members:  gossip.View(members),
		Builds:   []api.Build{},
		BadPeers: peerwire.View(a.swarm.BadPeers()),
		Cache:    cache.View(a.cfg.Cache),
		Limits:   a.cfg.Limits.Rates(),
		Fleet:    a.fleetStatus(),
	}
	if own := a.cfg.Identity; own != nil {
		s.TLS = &api.TLS{Mode: string(a.cfg.TLS), Identity: own.ID().String(), CertificateEnds: own.Expires().UTC()}
	}
	if err := a.ready(); err != nil {
		s.NotReady = err.Error()
	}
	for _, b := range a.allBuilds() {
		s.Builds = append(s.Builds, b.seen.Load().view(names))
	}
	return s
}

// state is what the page shows: the status, cut into values.
func (a *Agent) state() iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		s := a.status()
		builds := s.Builds
		ok := yield("members", s.Members) && yield("badPeers", s.BadPeers) && yield("cache", s.Cache)
		s.Builds, s.Members, s.BadPeers, s.Cache, s.Fleet = nil, nil, nil, api.Cache{}, nil
		ok = ok && yield("about", s)
		for _, b := range builds {
			ok = ok && yield("build/"+b.ExecutionID, b)
		}
	}
}
