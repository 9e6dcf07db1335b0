package host

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/web"
)

// handler answers how the host is.
func (h *Host) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		web.Write(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := h.ready(); err != nil {
			web.Write(w, http.StatusServiceUnavailable, api.Error{Error: err.Error()})
			return
		}
		web.Write(w, http.StatusOK, map[string]string{"status": "ready"})
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { web.Write(w, http.StatusOK, h.Status()) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(h.registry(), promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	return web.Protection{Addr: h.cfg.HTTP.Addr(), Hosts: h.cfg.AllowHosts, Logger: h.cfg.Logger}.Wrap(mux)
}

// ready is why the host does not run its goals; nil when it does.
func (h *Host) ready() error {
	var why []string
	for _, name := range h.cfg.Services {
		if err := h.services[name].seen.Load().ready; err != nil {
			why = append(why, err.Error())
		}
	}
	if len(why) == 0 {
		return nil
	}
	return errors.New(strings.Join(why, "; "))
}

// Status is how the host is.
func (h *Host) Status() *api.HostStatus {
	s := &api.HostStatus{
		Host: h.cfg.Name, Region: h.where(), Zone: h.cfg.Zone, Labels: h.cfg.Labels, Version: h.cfg.Version,
		Services: []api.HostService{}, Builds: []api.HostBuild{},
	}
	if at := h.link.at.Load(); at != nil {
		s.Agent = at.url
	}
	if err := h.ready(); err != nil {
		s.NotReady = err.Error()
	}
	age, known, behind := h.shelf.Age(time.Now())
	if s.Behind = behind; known {
		seconds := age.Seconds()
		s.GoalAge = &seconds
	}
	for _, name := range h.cfg.Services {
		s.Services = append(s.Services, h.services[name].status())
	}
	for _, b := range h.fetch.Builds() {
		p := b.Progress()
		build := api.HostBuild{
			ExecutionID: b.ExecutionID(), Key: b.Recipe().Key, Size: p.Size, Bytes: p.Bytes, Whole: p.Whole,
			DownloadedBytes: p.Downloaded, UploadedBytes: p.Uploaded,
		}
		if p.Err != nil {
			build.Error = p.Err.Error()
		}
		s.Builds = append(s.Builds, build)
	}
	return s
}

func (s *service) status() api.HostService {
	v, r := s.seen.Load(), s.release.State()
	out := api.HostService{
		Service: s.name, Goal: v.state.Goal, State: v.state.State, Running: r.Running.ExecutionID, Key: r.Running.Key, Wanted: v.wanted,
		Phase: string(r.Phase), Attempt: r.Attempt, Error: v.failed, Output: r.Output, Releases: []string{},
	}
	if ids, err := s.release.Releases(); err == nil {
		out.Releases = append(out.Releases, ids...)
	}
	return out
}

// metrics is what the host counts as it happens. The rest is read when it is asked for.
type metrics struct {
	streams  prometheus.Counter
	switches *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		streams:  prometheus.NewCounter(prometheus.CounterOpts{Name: "landfall_host_streams_total", Help: "Streams to agents that were opened."}),
		switches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "landfall_host_switches_total", Help: "Switches of a service that have ended, by how: done, failed (the old build runs) or broken."}, []string{"service", "result"}),
	}
}

// registry is what /metrics shows.
func (h *Host) registry() *prometheus.Registry {
	r := web.NewRegistry(h.cfg.Version, h.ready)
	gauge := func(name, help string, labels prometheus.Labels, f func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "landfall_host_" + name, Help: help, ConstLabels: labels}, f))
	}
	r.MustRegister(h.metrics.streams, h.metrics.switches, limits.Collector(h.cfg.Limits), h.fetch.Collector())
	messages := func(direction, kind string, f func() int64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "landfall_host_messages_total", Help: "Messages over streams to agents, down from them and up to them, by kind.",
			ConstLabels: prometheus.Labels{"direction": direction, "kind": kind},
		}, func() float64 { return float64(f()) }))
	}
	for _, kind := range hostwire.Kinds() {
		messages("down", kind, func() int64 { _, received := h.link.passed.Messages(kind); return received })
		messages("up", kind, func() int64 { sent, _ := h.link.passed.Messages(kind); return sent })
	}
	gauge("connected", "1 while there is a stream to an agent, else 0.", nil, func() float64 { return one(h.link.at.Load() != nil) })
	gauge("goal_age_seconds", "How long ago a seeder last said that the goals here are the newest; -1 where none has.", nil, func() float64 {
		age, known, _ := h.shelf.Age(time.Now())
		if !known {
			return -1
		}
		return age.Seconds()
	})
	bytes := func(of func(*api.HostBuild) int64) func() float64 {
		return func() (n float64) {
			for _, b := range h.Status().Builds {
				n += float64(of(&b))
			}
			return n
		}
	}
	gauge("build_bytes", "Bytes of the builds that goals name, as far as they are here and verified.", nil, bytes(func(b *api.HostBuild) int64 { return b.Bytes }))
	for _, name := range h.cfg.Services {
		s, labels := h.services[name], prometheus.Labels{"service": name}
		gauge("goal_version", "Version of the goal that is followed; 0 for none yet.", labels, func() float64 { return float64(s.seen.Load().state.Goal) })
		gauge("service_ready", "1 when the service runs its goal, else 0.", labels, func() float64 { return one(s.seen.Load().ready == nil) })
		for _, result := range []string{"done", "failed", "broken"} {
			h.metrics.switches.WithLabelValues(name, result)
		}
	}
	return r
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
