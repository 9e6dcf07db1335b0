package fleet

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/signing"
)

// served is a Fleet on loopback, with goals that the test signs, until the test ends.
type served struct {
	*Fleet
	t     testing.TB
	url   string
	shelf *goal.Shelf
	sign  func(doc any) []byte
	log   *lockedBuffer

	mu      sync.Mutex
	reports map[string]goal.Counts
	failed  []goal.Failure
	changed chan struct{}
}

// lockedBuffer is a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newServed(t testing.TB, change ...func(*Config)) *served {
	t.Helper()
	key := signing.Ed25519(ed25519.NewKeyFromSeed(make([]byte, 32)))
	trust := signing.TrustIn(key.Public())
	shelf, err := goal.OpenShelf("", trust)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &served{t: t, url: l.Addr().String(), shelf: shelf, reports: map[string]goal.Counts{}, changed: make(chan struct{}, 1), log: &lockedBuffer{}}
	s.sign = func(doc any) []byte {
		wire, err := goal.Sign(context.Background(), key, doc)
		if err != nil {
			t.Fatal(err)
		}
		return wire
	}
	cfg := Config{
		Listener: l, Region: "region-a", Shelf: shelf,
		Agents: func() ([]string, []hostwire.Peer, []string) { return []string{s.url}, nil, nil },
		Recipe: func(string) (hostwire.Recipe, bool) { return hostwire.Recipe{}, false },
		Report: s.report,
		Logger: slog.New(slog.NewTextHandler(s.log, nil)),
	}
	for _, c := range change {
		c(&cfg)
	}
	if s.url = "http://" + s.url; cfg.Identity != nil {
		s.url = strings.Replace(s.url, "http:", "https:", 1)
	}
	s.Fleet = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *served) report(counts []goal.Counts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range counts {
		s.failed = append(s.failed, c.Failures...)
		s.reports[c.Service] = c
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// wait waits for counts of a service.
func (s *served) wait(what string, is func(goal.Counts) bool) {
	s.t.Helper()
	deadline := time.After(time.Minute)
	for {
		s.mu.Lock()
		got := s.reports["web"]
		s.mu.Unlock()
		if is(got) {
			return
		}
		select {
		case <-s.changed:
		case <-deadline:
			s.t.Fatalf("%s: %+v", what, got)
		}
	}
}

// goal signs a goal, and has the agent hear of it.
func (s *served) goal(version, cut int64, change ...func(*goal.Goal)) {
	s.t.Helper()
	build := func(id string) goal.Build {
		return goal.Build{SourceBucket: "global", Key: "k", ExecutionID: id, Size: 1, SHA256: base64.StdEncoding.EncodeToString(make([]byte, 32)) + "-1"}
	}
	old := build(stable)
	g := &goal.Goal{Service: "web", Version: version, Deployment: start, Target: build(target), Stable: &old,
		Regions: map[string]goal.Region{"region-a": {Open: true, Cut: cut}}, MaxUnavailable: "10%", Issued: time.Now()}
	for _, c := range change {
		c(g)
	}
	if added, err := s.shelf.Add(s.sign(g)); err != nil || !added {
		s.t.Fatal(added, err)
	}
	s.Follow(s.t.Context(), "web")
}

// remote is a host with a real stream.
type remote struct {
	*hostwire.Stream
	t     testing.TB
	name  string
	state hostwire.ServiceState
}

func (s *served) dial(name string, change ...func(*hostwire.Hello)) *remote {
	s.t.Helper()
	r := &remote{t: s.t, name: name, state: hostwire.ServiceState{Service: "web", State: goal.Healthy, Running: stable}}
	hello := &hostwire.Hello{Version: hostwire.Version, Host: name, Start: start, PeerPort: 7000, Services: []hostwire.ServiceState{r.state}}
	for _, c := range change {
		c(hello)
	}
	var err error
	if r.Stream, err = hostwire.Dial(s.t.Context(), hostwire.DialConfig{URL: s.url, Hello: hello}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(r.Close)
	return r
}

func (r *remote) says(state, running, wants string) {
	r.t.Helper()
	r.state.State, r.state.Running, r.state.Wants = state, running, wants
	if err := r.Send(&hostwire.State{ServiceState: r.state}); err != nil {
		r.t.Error(err)
	}
}

// next returns the next message of a kind.
func next[M hostwire.Message](r *remote) M {
	r.t.Helper()
	for {
		m, err := r.Receive()
		if err != nil {
			r.t.Fatalf("%s: %v", r.name, err)
		}
		if m, ok := m.(M); ok {
			return m
		}
	}
}

// Over real streams: goals down, leave one after the other, counts up, all the way.
func TestHostsSwitchByAGoal(t *testing.T) {
	s := newServed(t)
	const hosts = 20
	var wg sync.WaitGroup
	var mu sync.Mutex
	switching, most := 0, 0
	for i := range hosts {
		r := s.dial(fmt.Sprint("host-", i))
		wg.Go(func() {
			if w := next[*hostwire.Welcome](r); len(w.Agents) != 1 || w.Agents[0] != s.url || w.Region != "region-a" {
				t.Errorf("%+v", w)
			}
			next[*hostwire.Goal](r)
			r.says(goal.Ready, stable, target)
			if l := next[*hostwire.Leave](r); l.Version != 1 || l.Service != "web" || l.Seconds <= 0 {
				t.Errorf("%+v", l)
			}
			mu.Lock()
			switching++
			most = max(most, switching)
			mu.Unlock()
			r.says(goal.Switching, stable, "")
			mu.Lock()
			switching--
			mu.Unlock()
			r.says(goal.Healthy, target, "")
		})
	}
	s.goal(1, goal.Circle)
	wg.Wait()
	s.wait("all are healthy", func(c goal.Counts) bool {
		return c.Healthy == hosts && c.OnTarget == hosts && c.Below == hosts && c.Version == 1
	})
	if most > 2 {
		t.Errorf("%d switched at a time, at most 2", most)
	}
	if roster := s.Roster(t.Context(), "web"); len(roster) != hosts {
		t.Errorf("roster of %d", len(roster))
	}
	if all, rest, views := s.Hosts(t.Context(), "web", goal.Healthy, "", 5); all != hosts || rest != hosts-5 || len(views) != 5 || views[0].Region != "region-a" {
		t.Errorf("%d, %+v", all, views)
	}
}

// The end of a stream in order is no loss, a broken one is.
func TestHostsThatGo(t *testing.T) {
	s := newServed(t)
	s.goal(1, 0)
	stays := s.dial("stays")
	next[*hostwire.Goal](stays)
	leaves := s.dial("leaves")
	s.wait("both are here", func(c goal.Counts) bool { return c.Hosts == 2 })
	go io.Copy(io.Discard, nullReader{leaves}) //nolint:errcheck // it is read while it is closed
	leaves.Close()
	s.wait("one has left", func(c goal.Counts) bool { return c.Hosts == 1 })

	// A second stream of a host takes the first one's place.
	again := s.dial("stays")
	next[*hostwire.Goal](again)
	for {
		if _, err := stays.Receive(); err != nil {
			break
		}
	}
	s.wait("there is one", func(c goal.Counts) bool { return c.Hosts == 1 && c.Absent == 0 })
}

// nullReader reads a stream's messages as nothing.
type nullReader struct{ r *remote }

func (n nullReader) Read([]byte) (int, error) { _, err := n.r.Receive(); return 0, err }

// A failure is told at once, with what the hook has printed.
func TestFailureIsToldAtOnce(t *testing.T) {
	s := newServed(t)
	s.goal(1, goal.Circle)
	r := s.dial("host-1")
	next[*hostwire.Goal](r)
	r.state.Goal, r.state.Phase, r.state.Error, r.state.Output = 1, "check", "exit status 2", "boom"
	r.says(goal.Failed, stable, "")
	s.wait("it has failed", func(c goal.Counts) bool { return c.Failed == 1 })
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failed) != 1 || s.failed[0].Output != "boom" || s.failed[0].Phase != "check" || s.failed[0].Host != "host-1" {
		t.Errorf("%+v", s.failed)
	}
}

// Neighbours are told when they change, with addresses that are not the hosts' to choose.
func TestNeighboursAreTold(t *testing.T) {
	source := hostwire.Peer{Name: "agent-1.x", ID: "agent-1", Addr: netip.MustParseAddrPort("127.0.0.1:7001")}
	s := newServed(t, func(c *Config) {
		c.Agents = func() ([]string, []hostwire.Peer, []string) { return nil, []hostwire.Peer{source}, nil }
	})
	var rs []*remote
	for i := range 3 {
		rs = append(rs, s.dial(fmt.Sprint("host-", i), func(h *hostwire.Hello) { h.PeerPort = uint16(7000 + i) }))
	}
	unreachable := s.dial("host-3", func(h *hostwire.Hello) { h.PeerPort = 0 })
	for _, r := range append(rs, unreachable) {
		want := 2
		if r == unreachable {
			want = 3
		}
		for {
			n := next[*hostwire.Neighbours](r)
			if len(n.Peers) == want && len(n.Sources) == 1 && n.Sources[0] == source {
				for _, p := range n.Peers {
					if !p.Addr.Addr().IsLoopback() || p.Name != hostwire.NameOf(p.ID, start) || p.ID == r.name {
						t.Errorf("%+v", p)
					}
				}
				break
			}
		}
	}
}

// Hosts that lie or flood harm themselves, and are named.
func TestHostileHosts(t *testing.T) {
	s := newServed(t)
	s.goal(1, goal.Circle)
	honest := s.dial("honest")
	next[*hostwire.Goal](honest)

	// What is not for a host to say ends its stream.
	liar := s.dial("liar")
	if err := liar.Send(&hostwire.Leave{Service: "web", Version: 1, Seconds: 1}); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := liar.Receive(); err != nil {
			break
		}
	}
	garbage := s.dial("garbage")
	if err := garbage.SendEncoded(hostwire.Encoded("\xff\xff\xff\xff")); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := garbage.Receive(); err != nil {
			break
		}
	}
	// A service that it did not name is not its to speak of.
	r := s.dial("stranger")
	r.state.Service = "db"
	r.says(goal.Healthy, target, "")

	flood := s.dial("flood")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for flood.Send(&hostwire.State{ServiceState: flood.state}) == nil {
			continue
		}
	}()
	honest.says(goal.Ready, stable, target)
	next[*hostwire.Leave](honest)
	for !strings.Contains(s.log.String(), "host=flood") {
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(s.log)
		}
	}
	go io.Copy(io.Discard, nullReader{flood}) //nolint:errcheck // it is read while it is closed
	flood.Close()
	<-ended
	if got := s.log.String(); !strings.Contains(got, "host=garbage") {
		t.Errorf("garbage is not named: %s", got)
	}
}

// No more hosts than may be; who is refused is told so.
func TestHostsBeyondTheMost(t *testing.T) {
	s := newServed(t, func(c *Config) { c.MaxHosts = 2 })
	s.dial("host-1")
	s.dial("host-2")
	_, err := hostwire.Dial(t.Context(), hostwire.DialConfig{URL: s.url, Hello: &hostwire.Hello{Version: 1, Host: "host-3", Start: start}})
	var refused *hostwire.RefusedError
	if !errors.As(err, &refused) {
		t.Error(err)
	}
}

// A fault in what is known of the hosts costs their streams, and nothing else.
func TestFault(t *testing.T) {
	s := newServed(t)
	s.goal(1, 0)
	r := s.dial("host-1")
	next[*hostwire.Goal](r)
	s.tell(t.Context(), func(*machine) { panic("a fault of a test") })
	for {
		if _, err := r.Receive(); err != nil {
			break
		}
	}
	for again := s.dial("host-1"); ; again = s.dial("host-1") { // until there is a list anew
		m, err := again.Receive()
		for err == nil {
			if _, ok := m.(*hostwire.Goal); ok {
				return
			}
			m, err = again.Receive()
		}
	}
}

func TestMetrics(t *testing.T) {
	s := newServed(t)
	s.goal(1, 0)
	next[*hostwire.Goal](s.dial("host-1"))
	s.wait("it is here", func(c goal.Counts) bool { return c.Hosts == 1 })
	r := prometheus.NewRegistry()
	r.MustRegister(Collector(s.Fleet))
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			values[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			if f.GetName() == "landfall_fleet_messages_total" {
				values[m.Label[0].GetValue()+" "+m.Label[1].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	if values["up hello"] != 1 || values["down goal"] != 1 || values["up goal"] != 0 {
		t.Errorf("%v", values)
	}
	if values["landfall_fleet_hosts"] != 1 || values["landfall_fleet_messages_total"] < 3 || values["landfall_fleet_bytes_total"] < 100 {
		t.Errorf("%v", values)
	}
	if at := values["landfall_fleet_goals_newest_timestamp_seconds"]; at < 1e9 || at > float64(time.Now().Unix()+1) {
		t.Errorf("%v", values)
	}
}
