package call

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptrace"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers calls at the address it returns, as the membership's port does.
func serve(t *testing.T, source *identity.Source, handlers Handlers) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(source, handlers, slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				cfg := source.Server(identity.GossipProto, identity.CallProto)
				if e := handlers.Enrolment; e != nil {
					cfg = source.WithEnrolment(cfg, e.Authority.Certificate())
				}
				conn := tls.Server(raw, cfg)
				ctx, cancel := context.WithTimeout(context.Background(), timeout)
				defer cancel()
				if err := conn.HandshakeContext(ctx); err != nil {
					raw.Close()
					return
				}
				if conn.ConnectionState().NegotiatedProtocol == identity.EnrolProto {
					s.HandStranger(conn)
				} else {
					s.Hand(conn)
				}
			})
		}
	})
	t.Cleanup(func() {
		err := errors.Join(l.Close(), s.Close())
		wg.Wait()
		if err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestCalls(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	seeder, agent := prod.Source(t, prod.Seeder("s1")), prod.Source(t, prod.Agent("region-a", "a1"))
	said := Hello{Table: "table", Key: "key", Trusts: []string{"a", "b"}, Serves: Serves{"region-a": {"a-builds"}}}
	var got atomic.Pointer[string]
	addr := serve(t, seeder, Handlers{
		Hello: func() Hello { return said },
		Message: func(from identity.Peer, message []byte) error {
			if string(message) == "no" {
				return errors.New("not this one")
			}
			text := from.ID.String() + " " + string(message)
			got.Store(&text)
			return nil
		},
	})
	c := NewClient(agent)
	defer c.Close()
	ctx := t.Context()
	p, h, err := c.Hello(ctx, addr)
	if err != nil || p.ID != seeder.ID() || p.Fingerprint != seeder.Fingerprint() || h.Table != "table" || !h.Serves.Has("region-a", "a-builds") || len(h.Trusts) != 2 {
		t.Errorf("hello: %v, %+v, %v", p.ID, h, err)
	}
	for range 3 {
		if err := c.Send(ctx, addr, []byte("hello")); err != nil || *got.Load() != "spiffe://prod/agent/region-a/a1 hello" {
			t.Errorf("message: %v", err)
		}
	}
	for what, message := range map[string]string{"not this one": "no", "more than 1024 bytes": strings.Repeat("x", MaxMessage+1)} {
		if err := c.Send(ctx, addr, []byte(message)); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, expected %q in it", err, what)
		}
	}
	if _, err := c.Renew(ctx, addr, nil); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "--ca DIR") {
		t.Errorf("renewal without an authority: %v", err)
	}
	// Progress goes to seeders alone, and what regions serve is theirs to say.
	other := serve(t, agent, Handlers{Hello: func() Hello { return said }})
	if err := NewClient(seeder).Send(ctx, other, []byte("hello")); err == nil || !strings.Contains(err.Error(), "expected a seeder") {
		t.Errorf("to an agent: %v", err)
	}
	if _, h, err := c.Hello(ctx, other); err != nil || len(h.Serves) > 0 {
		t.Errorf("an agent says what regions serve: %v, %v", h.Serves, err)
	}
	// So is what is denied.
	seeders := serve(t, seeder, Handlers{Hello: func() Hello { return Hello{Denied: "digest"} }, Denied: func() string { return "serial 1\n" }})
	agents := serve(t, agent, Handlers{Hello: func() Hello { return Hello{Denied: "digest"} }, Denied: func() string { return "serial 1\n" }})
	if list, err := c.Denied(ctx, seeders); err != nil || list != "serial 1\n" {
		t.Errorf("denied: %q, %v", list, err)
	}
	if list, err := c.Denied(ctx, agents); err == nil || list != "" || !strings.Contains(err.Error(), "is no seeder") {
		t.Errorf("an agent denies: %q, %v", list, err)
	}
	if _, h, err := c.Hello(ctx, agents); err != nil || h.Denied != "" {
		t.Errorf("an agent says that it denies: %q, %v", h.Denied, err)
	}
	if _, err := c.Denied(ctx, other); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "for seeders to say") {
		t.Errorf("asked of an agent: %v", err)
	}
	long := serve(t, seeder, Handlers{Denied: func() string { return strings.Repeat("#", identity.MaxDenied+1) }})
	if _, err := c.Denied(ctx, long); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a list that is too long: %v", err)
	}
	stranger := NewClient(identitytest.New(t, "prod", nil).Source(t, prod.Seeder("s1")))
	if _, _, err := stranger.Hello(ctx, addr); err == nil {
		t.Error("a stranger is answered")
	}
}

func TestHelloIsBounded(t *testing.T) {
	many := Serves{}
	for i := range maxRegions + 1 {
		many[fmt.Sprint("r", i)] = nil
	}
	for name, h := range map[string]Hello{
		"regions":       {Serves: many},
		"buckets":       {Serves: Serves{"a": make([]string, maxBuckets+1)}},
		"region's name": {Serves: Serves{"A": nil}},
		"bucket's name": {Serves: Serves{"a": {""}}},
		"table":         {Table: strings.Repeat("t", maxText+1)},
		"keys":          {Trusts: make([]string, maxTrusts+1)},
		"denied":        {Denied: strings.Repeat("t", maxText+1)},
		"key":           {Trusts: []string{strings.Repeat("t", maxText+1)}},
	} {
		if h.Check() == nil {
			t.Errorf("%s: no bound", name)
		}
	}
	prod := identitytest.New(t, "prod", nil)
	s := prod.Source(t, prod.Seeder("s1"))
	addr := serve(t, s, Handlers{Hello: func() Hello { return Hello{Table: strings.Repeat("t", MaxHello)} }})
	if _, _, err := NewClient(s).Hello(t.Context(), addr); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a hello that is too long: %v", err)
	}
}

// TestConnectionsOfOneAreBounded: one identity does not take the places of the others.
func TestConnectionsOfOneAreBounded(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	seeder, greedy, other := prod.Source(t, prod.Seeder("s1")), prod.Source(t, prod.Agent("region-a", "a1")), prod.Source(t, prod.Agent("region-b", "b1"))
	addr := serve(t, seeder, Handlers{Hello: func() Hello { return Hello{} }})
	closed := make(chan int, 2*maxOfOne)
	var open []*tls.Conn
	for i := range maxOfOne + 2 {
		conn, err := tls.Dial("tcp", addr, greedy.Client(identity.CallProto, nil))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
		go func() {
			_, _ = io.Copy(io.Discard, conn) // until it is closed
			closed <- i
		}()
	}
	for range 2 {
		select {
		case <-closed:
		case <-time.After(time.Minute):
			t.Fatal("nobody was turned away")
		}
	}
	if _, _, err := NewClient(other).Hello(t.Context(), addr); err != nil {
		t.Errorf("another finds no place: %v", err)
	}
	for _, c := range open {
		c.Close()
	}
	for range maxOfOne {
		<-closed
	}
}

// TestCallsOfOneAreBounded: who asks for too much is told so, and nobody else waits for it.
func TestCallsOfOneAreBounded(t *testing.T) {
	w := newWorld(t)
	seeder := w.open(t, "s1")
	var taken atomic.Int64
	addr := serve(t, seeder, Handlers{
		Hello:   func() Hello { return Hello{} },
		Message: func(from identity.Peer, _ []byte) error { taken.Add(1); return nil },
		Renew:   w.dir.RenewFor,
	})
	greedy, other := NewClient(w.open(t, "a1")), NewClient(w.open(t, "b1"))
	defer greedy.Close()
	defer other.Close()
	// As often as they come: more than the allowance, whatever has been refilled meanwhile.
	begun, sent := time.Now(), 0
	for ; ; sent++ {
		if sent > allowance+int(refill*(time.Since(begun).Seconds()+1)) {
			t.Fatalf("%d messages were taken", sent)
		}
		if err := greedy.Send(t.Context(), addr, []byte("x")); err != nil {
			if !strings.Contains(err.Error(), "too much at once") {
				t.Fatal(err)
			}
			break
		}
	}
	if sent < allowance || taken.Load() != int64(sent) {
		t.Errorf("%d sent, %d taken, %d may be at once", sent, taken.Load(), allowance)
	}
	if err := other.Send(t.Context(), addr, []byte("x")); err != nil {
		t.Errorf("another: %v", err)
	}
	if err := w.renewer(w.open(t, "b1"), nil, addr).Renew(t.Context()); err != nil {
		t.Errorf("another's renewal: %v", err)
	}
	s := NewServer(seeder, Handlers{}, slog.New(slog.DiscardHandler))
	defer s.Close()
	at := time.Unix(1, 0)
	for i := range 2 * maxAllowances {
		s.mayCost(identity.ID{Name: fmt.Sprint(i)}, 1, at)
	}
	if len(s.rates) > maxAllowances {
		t.Errorf("%d are remembered", len(s.rates))
	}
	if !s.mayCost(identity.ID{Name: "new"}, 1, at.Add(time.Minute)) {
		t.Error("there is never room again")
	}
}

// TestConnectionsGrowOld: one that is as old as it may be ends with the next call.
func TestConnectionsGrowOld(t *testing.T) {
	w := newWorld(t)
	seeder, agent := w.open(t, "s1"), w.open(t, "a1")
	addr := serve(t, seeder, Handlers{Message: func(identity.Peer, []byte) error { return nil }})
	c := NewClient(agent)
	defer c.Close()
	send := func() (reused bool) {
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }})
		if err := c.Send(ctx, addr, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		return reused
	}
	send()
	if !send() {
		t.Fatal("a call does not use the connection of the last one")
	}
	w.later(identity.MaxConnectionAge + time.Second)
	if send(); send() {
		t.Error("an old connection goes on")
	}
}

// world is an authority's directory, a seeder that has it and an agent, with a clock.
type world struct {
	now     atomic.Int64
	dir     *ca.Dir
	sources map[string]*identity.Source
	paths   map[string]string
}

func (w *world) clock() time.Time      { return time.Unix(w.now.Load(), 0) }
func (w *world) later(d time.Duration) { w.now.Add(int64(d / time.Second)) }
func (w *world) open(t *testing.T, name string) *identity.Source {
	t.Helper()
	return identitytest.Open(t, identity.FilesIn(w.paths[name]), w.clock)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{sources: map[string]*identity.Source{}, paths: map[string]string{}}
	w.now.Store(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC).Unix())
	var err error
	if w.dir, err = ca.Init(filepath.Join(t.TempDir(), "ca"), "prod", nil, w.clock); err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]identity.ID{
		"s1": {Cluster: "prod", Kind: identity.Seeder, Name: "s1"},
		"a1": {Cluster: "prod", Kind: identity.Agent, Region: "region-a", Name: "a1"},
		"b1": {Cluster: "prod", Kind: identity.Agent, Region: "region-b", Name: "b1"},
	} {
		w.paths[name] = filepath.Join(t.TempDir(), name)
		if _, err := w.dir.Write(id, w.paths[name]); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// renewer is a member's, which knows the seeder's address.
func (w *world) renewer(s *identity.Source, authority *ca.Dir, seeder string) *Renewer {
	return &Renewer{
		Source: s, Client: NewClient(s), Authority: authority,
		Seeders: func() []string { return []string{seeder} },
		Logger:  slog.New(slog.DiscardHandler),
	}
}

// TestNobodyIsCutOffForHavingBeenAway: whoever was away comes back by itself, until
// RenewFor after its certificate has ended.
func TestNobodyIsCutOffForHavingBeenAway(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		name         string
		seeder, last time.Duration // the seeder is away from the start; then a region
		back         bool
	}{
		{"seeder away 3 days, region away 10 days", 3 * day, 10 * day, true},
		{"seeder away 40 days, region away 60 days", 40 * day, 60 * day, true},
		{"region away 119 days", 0, 119 * day, true},
		{"region away 121 days", 0, 121 * day, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			agent := w.open(t, "a1")
			w.later(c.seeder)
			// The seeder comes back: its certificate may have ended.
			seeder := w.open(t, "s1")
			own := w.renewer(seeder, w.dir, "")
			if own.Due() != (c.seeder >= day) {
				t.Errorf("due: %t", own.Due())
			}
			if own.Due() {
				if err := own.Renew(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			addr := serve(t, seeder, Handlers{Hello: func() Hello { return Hello{} }, Renew: w.dir.RenewFor})
			region := w.renewer(agent, nil, addr)
			if c.seeder > 0 {
				if err := region.Renew(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			// Now the region is away, and its agent starts again.
			w.later(c.last)
			if err := own.Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
			back, err := identity.Open(identity.FilesIn(w.paths["a1"]), w.clock)
			if !c.back {
				if err == nil || !strings.Contains(err.Error(), "seeder ca issue") {
					t.Errorf("not told what to do: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			client := NewClient(back)
			if _, _, err := client.Hello(t.Context(), addr); (back.Expired() == nil) != (err == nil) {
				t.Errorf("before it is renewed: %v", err)
			}
			if err := w.renewer(back, nil, addr).Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, _, err := client.Hello(t.Context(), addr); err != nil || back.Expired() != nil {
				t.Errorf("renewed: %v, %v", err, back.Expired())
			}
		})
	}
}

// TestRenewalIsOnesOwn: of one's own certificate, for who is not denied.
func TestRenewalIsOnesOwn(t *testing.T) {
	w := newWorld(t)
	seeder := w.open(t, "s1")
	addr := serve(t, seeder, Handlers{Hello: func() Hello { return Hello{} }, Renew: w.dir.RenewFor})
	b := w.open(t, "b1")
	if err := w.renewer(b, nil, addr).Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Each try is told of.
	var tried []error
	for _, at := range []string{addr, "127.0.0.1:1"} {
		r := w.renewer(b, nil, at)
		r.Tried = func(err error) { tried = append(tried, err) }
		r.try(t.Context())
	}
	if len(tried) != 2 || tried[0] != nil || tried[1] == nil {
		t.Errorf("told: %v", tried)
	}
	if _, err := w.dir.RenewFor(identity.Peer{ID: b.ID()}, []byte("rubbish")); err == nil {
		t.Error("rubbish was signed")
	}
	if _, err := w.dir.RenewFor(identity.Peer{ID: identity.ID{Cluster: "prod", Kind: identity.Host, Region: "region-a", Name: "h1"}}, nil); err == nil || !strings.Contains(err.Error(), "host") {
		t.Errorf("a host: %v", err)
	}
	// The denied one has expired as well, and may do nothing.
	if _, err := w.dir.Deny("id spiffe://prod/agent/region-a/a1", ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.dir.Renew(w.paths["s1"]); err != nil { // takes the list along
		t.Fatal(err)
	}
	if err := seeder.Reload(); err != nil {
		t.Fatal(err)
	}
	a := w.open(t, "a1")
	if err := w.renewer(a, nil, addr).Renew(t.Context()); err == nil {
		t.Error("a denied one was renewed")
	}
}

// TestRenewalThatFailsIsSaid, once in a while, and renewal goes on by itself.
func TestRenewalThatFailsIsSaid(t *testing.T) {
	w := newWorld(t)
	seeder, agent := w.open(t, "s1"), w.open(t, "a1")
	addr := serve(t, seeder, Handlers{Hello: func() Hello { return Hello{} }})
	r := w.renewer(agent, nil, addr)
	var log bytes.Buffer
	r.Logger = slog.New(slog.NewTextHandler(&log, nil))
	for range 3 {
		r.try(t.Context())
	}
	if n := strings.Count(log.String(), "certificate not renewed"); n != 1 || !strings.Contains(log.String(), "--ca DIR") {
		t.Errorf("said %d times: %s", n, &log)
	}
	w.later(2 * time.Hour)
	r.try(t.Context())
	if n := strings.Count(log.String(), "certificate not renewed"); n != 2 {
		t.Errorf("said %d times: %s", n, &log)
	}
	r.Seeders = func() []string { return nil }
	if err := r.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), "--join") {
		t.Errorf("nobody is asked: %v", err)
	}
}

func TestChecker(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	c := Checker{prod.Source(t, prod.Seeder("s1")), Serves{"region-a": {"a-builds"}, "region-b": {"b-builds"}}}
	message := []byte("it is here")
	sign := func(id identity.ID) []byte {
		b, err := identity.Signer{Source: prod.Source(t, id)}.Sign("arrival", message)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, k := range []struct {
		name          string
		bucket, agent string
		by            identity.ID
		want          string
	}{
		{"own", "a-builds", "a1", prod.Agent("region-a", "a1"), ""},
		{"another region's bucket", "b-builds", "a1", prod.Agent("region-a", "a1"), "does not serve b-builds"},
		{"another's name", "a-builds", "a2", prod.Agent("region-a", "a1"), "signed by spiffe://prod/agent/region-a/a1"},
		{"a seeder", "a-builds", "a1", prod.Seeder("a1"), "signed by spiffe://prod/seeder/a1"},
		{"a host", "a-builds", "a1", prod.Host("region-a", "a1"), "signed by spiffe://region-a.prod/host/a1"},
	} {
		err := c.Check(k.bucket, k.agent, "arrival", message, sign(k.by))
		if k.want == "" && err != nil || k.want != "" && (err == nil || !strings.Contains(err.Error(), k.want)) {
			t.Errorf("%s: %v", k.name, err)
		}
	}
	if err := c.Check("a-builds", "a1", "arrival", message, nil); err == nil {
		t.Error("not signed")
	}
}
