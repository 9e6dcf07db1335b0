package host

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/api/apitest"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/release"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/internal/swarm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	timeout    = 90 * time.Second
	testRegion = "region-a"
	deployment = "01J0000000000000000000000D"
)

// key signs the goals of all tests.
var key = newKey()

func newKey() signing.Ed25519 {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	return signing.Ed25519(private)
}

// testBuild is a zip with one file that says which build it is.
type testBuild struct {
	content []byte
	known   *manifest.Build
	goal    goal.Build
	recipe  *hostwire.Recipe
}

func newBuild(t *testing.T, n int) *testBuild {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.Create("version")
	if err == nil {
		_, err = fmt.Fprintf(f, "build %d", n)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	out := remade(t, b.Bytes())
	out.goal.Key = fmt.Sprintf("web-%d.zip", n)
	out.recipe.Key = out.goal.Key
	return out
}

// remade is a build of any bytes.
func remade(t *testing.T, content []byte) *testBuild {
	t.Helper()
	out := &testBuild{content: content, known: manifesttest.Build(t, content)}
	out.goal = goal.Build{
		SourceBucket: "global-builds", Key: "web.zip", ExecutionID: executionid.New(time.Now(), ""),
		Size: out.known.Size, SHA256: out.known.Composite(),
	}
	out.recipe = &hostwire.Recipe{
		ExecutionID: out.goal.ExecutionID, Key: out.goal.Key, Size: out.known.Size, Scheme: out.known.Scheme,
		PieceLength: out.known.PieceLength, PartLength: out.known.PartLength, Sealed: true,
	}
	for i := range out.known.NumSegments() {
		out.recipe.InfoHashes = out.recipe.InfoHashes.Append(out.known.Segment(i).InfoHash())
	}
	return out
}

// goalOf is a goal with an open gate that has all hosts run target.
func goalOf(version int64, target *testBuild, stable *testBuild) *goal.Goal {
	g := &goal.Goal{
		Service: "web", Version: version, Deployment: deployment, Target: target.goal, MaxUnavailable: "100%", Issued: time.Now(),
		Regions: map[string]goal.Region{testRegion: {Open: true, Cut: goal.Circle}},
	}
	if stable != nil {
		g.Stable = &stable.goal
	}
	return g
}

// sign is a goal's wire.
func sign(t *testing.T, g *goal.Goal, by signing.Signer) *hostwire.Goal {
	t.Helper()
	wire, err := goal.Sign(t.Context(), by, g)
	if err != nil {
		t.Fatal(err)
	}
	return &hostwire.Goal{Wire: wire}
}

// testAgent is a region's agent, as far as a host sees it: what it says the test says.
type testAgent struct {
	t     *testing.T
	url   string
	swarm *swarm.Swarm
	cache *cache.Cache
	peer  hostwire.Peer
	stop  func() // ends it, and waits

	mu     sync.Mutex
	stream *hostwire.Stream
	hellos []*hostwire.Hello
	states []hostwire.ServiceState
	known  map[[20]byte]peerwire.Member
}

func newAgent(t *testing.T) *testAgent { return newAgentAt(t, "127.0.0.1:0") }

func newAgentAt(t *testing.T, addr string) *testAgent {
	t.Helper()
	a := &testAgent{t: t, known: make(map[[20]byte]peerwire.Member)}
	logger := slog.New(slog.DiscardHandler)
	var err error
	if a.cache, err = cache.Open(t.TempDir(), 1<<40, logger); err != nil {
		t.Fatal(err)
	}
	members, fleet, streams := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0"), listen(t, addr)
	a.url = "http://" + streams.Addr().String()
	a.peer = hostwire.Peer{Name: "agent", ID: "agent", Addr: fleet.Addr().(*net.TCPAddr).AddrPort()}
	a.swarm, err = swarm.New(swarm.Config{
		Cache: a.cache, Name: "agent",
		Config: peerwire.Config{Listener: members, Logger: logger, Member: func([20]byte) peerwire.Member { return peerwire.Member{} }},
		Fleet: &swarm.Fleet{Listener: fleet, Host: func(id [20]byte) peerwire.Member {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.known[id]
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- hostwire.Serve(ctx, hostwire.ServeConfig{Listener: streams, MaxStreams: 10, Handle: a.handle, Logger: logger})
	}()
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, a.swarm.Close(), a.cache.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(a.stop)
	return a
}

// handle takes what a host says until its stream is over.
func (a *testAgent) handle(ctx context.Context, s *hostwire.Stream, h *hostwire.Hello) {
	a.mu.Lock()
	name := hostwire.NameOf(h.Host, h.Start)
	a.known[peerwire.PeerID(name)] = peerwire.Member{Name: name, ID: h.Host, Region: testRegion, Host: true}
	a.stream, a.hellos = s, append(a.hellos, h)
	a.states = append(a.states, h.Services...)
	a.mu.Unlock()
	_ = s.Send(&hostwire.Welcome{Version: hostwire.Version, Region: testRegion, Agents: []string{a.url}})
	_ = s.Send(&hostwire.Neighbours{Sources: []hostwire.Peer{a.peer}})
	for {
		m, err := s.Receive()
		if err != nil {
			break
		}
		if state, ok := m.(*hostwire.State); ok {
			a.mu.Lock()
			a.states = append(a.states, state.ServiceState)
			a.mu.Unlock()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stream == s {
		a.stream = nil
	}
}

// connected is the host's stream, which is waited for.
func (a *testAgent) connected() (s *hostwire.Stream) {
	a.t.Helper()
	until(a.t, "a stream", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		s = a.stream
		return s != nil
	})
	return s
}

// say sends messages over the host's stream, which is waited for.
func (a *testAgent) say(messages ...hostwire.Message) {
	a.t.Helper()
	s := a.connected()
	for _, m := range messages {
		if err := s.Send(m); err != nil {
			a.t.Error(err)
		}
	}
}

// last is what the host has said last of its service.
func (a *testAgent) last() (s hostwire.ServiceState) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.states); n > 0 {
		s = a.states[n-1]
	}
	return s
}

// await waits until the host has said something of its service that holds.
func (a *testAgent) await(what string, holds func(hostwire.ServiceState) bool) hostwire.ServiceState {
	a.t.Helper()
	until(a.t, what, func() bool { return holds(a.last()) })
	return a.last()
}

// has has the agent hand a build out.
func (a *testAgent) has(b *testBuild) {
	a.t.Helper()
	for i := range b.known.NumSegments() {
		a.hasSegment(b, i)
	}
}

// hasSegment has it hand out one of a build's segments.
func (a *testAgent) hasSegment(b *testBuild, i int) {
	a.t.Helper()
	m := b.known.Segment(i)
	p, err := a.cache.Pull(b.goal.ExecutionID, i, "etag", m.Size, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	offset, length := b.known.SegmentRange(i)
	if _, err := p.WriteAt(b.content[offset:offset+length], 0); err != nil {
		a.t.Fatal(err)
	}
	e, err := p.Commit(m)
	if err != nil {
		a.t.Fatal(err)
	}
	torrent, err := a.swarm.Seed(e, b.goal.ExecutionID, nil)
	if err == nil {
		err = torrent.HandToHosts(handout.Place{Execution: b.goal.ExecutionID, Segment: i}, 0)
	}
	e.Unpin()
	if err != nil {
		a.t.Fatal(err)
	}
}

// sent is how many bytes of a build have gone to hosts.
func (a *testAgent) sent(b *testBuild) (n int64) {
	for i := range b.known.NumSegments() {
		if torrent, ok := a.swarm.Torrent(b.known.Segment(i).InfoHash()); ok {
			n += torrent.Stats().UploadedBytes
		}
	}
	return n
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// testHost is a host that runs.
type testHost struct {
	*Host
	url      string
	contract *apitest.Contract // what its HTTP side is held to
	stop     func()            // ends it, and waits
}

// startHost runs a host until the test ends, or stop is called.
func startHost(t *testing.T, dir string, change func(*Config), agents ...string) *testHost {
	t.Helper()
	peers, http := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	cfg := Config{
		Name: "host-1", Zone: "a", Labels: map[string]string{"rack": "7"}, Agents: agents, Dir: dir, Services: []string{"web"},
		Hooks: release.Config{Unpack: true}, Trust: signing.TrustIn(key.Public()), Peers: peers, HTTP: http, Version: "test",
		Logger: slog.New(slog.DiscardHandler), rejoin: 10 * time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	out := &testHost{Host: h, url: "http://" + http.Addr().String(), contract: apitest.LoadHost(t)}
	out.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, h.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(out.stop)
	return out
}

// get asks the host's HTTP side.
func (h *testHost) get(t *testing.T, path string) (code int, body string) {
	t.Helper()
	return h.getAs(t, "", path)
}

// getAs is get by a name of the host; empty for its address.
func (h *testHost) getAs(t *testing.T, name, path string) (code int, body string) {
	t.Helper()
	c := &http.Client{Transport: h.contract.Transport(t, "host", &http.Transport{DisableKeepAlives: true})}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = name
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// runs is what current of a host's service says.
func runs(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "web", "current", "version"))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not in %s: %s", timeout, what)
		}
		time.Sleep(10 * time.Millisecond) // between looks
	}
}
