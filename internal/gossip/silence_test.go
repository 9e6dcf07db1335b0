package gossip

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/signing"
)

// said is a log that a test reads while it is written.
type said struct {
	mu    sync.Mutex
	text  strings.Builder
	lines chan struct{}
}

func listen() *said { return &said{lines: make(chan struct{}, 1)} }

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.lines <- struct{}{}:
	default:
	}
	return s.text.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// line waits for a line that has all of the words.
func (s *said) line(t *testing.T, words ...string) string {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for {
	lines:
		for line := range strings.Lines(s.String()) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			return line
		}
		select {
		case <-s.lines:
		case <-deadline:
			t.Fatalf("no line has %q:\n%s", words, s)
		}
	}
}

func (s *said) logger(c *Config) { c.Logger = slog.New(slog.NewTextHandler(s, nil)) }

// metric reads one of a member's own; label is the value of its only one.
func metric(t *testing.T, n *node, name, label string) float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(Collector(n.Gossip))
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no %s %s", name, label)
	return 0
}

// deadAddr is where nobody listens any more.
func deadAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// keyed gives a member a gossip key that is 32 times the byte.
func keyed(b byte) func(*Config) {
	return func(c *Config) { c.Keys = [][]byte{bytes.Repeat([]byte{b}, keyLength)} }
}

func all(changes ...func(*Config)) func(*Config) {
	return func(c *Config) {
		for _, change := range changes {
			change(c)
		}
	}
}

// What was tried and the answer is said, for each address, and again only after half
// a minute; the member that has the address says what it refuses.
func TestUnreachedJoinIsSaid(t *testing.T) {
	web, err := net.Listen("tcp", "127.0.0.1:0") // something, but no member
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := web.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	t.Cleanup(func() { web.Close(); serving.Wait() })
	for name, k := range map[string]struct {
		ours, theirs func(*Config) // theirs nil: no member
		addr         string
		want         string
		refused      string // what the other side says
	}{
		"nobody":       {addr: deadAddr(t), want: "connection refused"},
		"a typo":       {addr: "seedr.invalid:7946", want: "lookup seedr.invalid"},
		"no member":    {addr: web.Addr().String()},
		"another key":  {ours: keyed(2), theirs: keyed(1), want: "another --gossip-key", refused: "another --gossip-key"},
		"no key":       {theirs: keyed(1), want: "this one has none", refused: "has no --gossip-key"},
		"no key there": {ours: keyed(2), theirs: func(*Config) {}, want: "the other side has no --gossip-key", refused: "this one has none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mine, other := listen(), listen()
			if k.theirs != nil {
				k.addr = start(t, seeder("s"), all(k.theirs, other.logger)).Addr()
			}
			if k.ours == nil {
				k.ours = func(*Config) {}
			}
			a := start(t, agent("a", "a"), all(k.ours, mine.logger, func(c *Config) { c.Join = []string{k.addr} }))
			line := mine.line(t, "level=WARN", "no member reached", "join="+k.addr, k.want)
			if err := a.Unreached(); err == nil || !strings.Contains(err.Error(), "--join "+k.addr) || strings.Contains(err.Error(), "\n") {
				t.Errorf("unreached: %v", err)
			}
			if k.refused != "" {
				other.line(t, "level=WARN", "gossip refused", "from=127.0.0.1", k.refused)
			}
			if n := strings.Count(mine.String(), "no member reached"); n != 1 {
				t.Errorf("said %d times in a few seconds: %s", n, line)
			}
			if n := strings.Count(other.String(), "gossip refused"); n > 1 {
				t.Errorf("refusal said %d times", n)
			}
		})
	}
}

// One address of several that is dead is said, and none when all are there.
func TestReachedJoinIsNotSaid(t *testing.T) {
	s := start(t, seeder("s"), nil)
	log := listen()
	dead := deadAddr(t)
	a := start(t, agent("a", "a"), all(log.logger, func(c *Config) { c.Join = []string{s.Addr(), dead} }))
	a.await(t, 2)
	log.line(t, "no member reached", "join="+dead)
	if strings.Contains(log.String(), "join="+s.Addr()) {
		t.Error(log)
	}
	if err := a.Unreached(); err == nil || strings.Contains(err.Error(), s.Addr()) {
		t.Errorf("unreached: %v", err)
	}
	if n := metric(t, a, "landfall_join_unreached", ""); n != 1 {
		t.Errorf("the metric says %v", n)
	}
}

// Who comes, who leaves and who is gone without a word are three different lines.
func TestMembersAreSaid(t *testing.T) {
	log := listen()
	s := start(t, seeder("s"), log.logger)
	polite := start(t, agent("polite", "a"), join(s))
	killed, err := New(Config{
		Meta: agent("killed", "b"), Listen: "127.0.0.1:0", Join: []string{s.Addr()},
		Book: announce.NewBook(trust, nil), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var joining sync.WaitGroup
	joining.Go(func() { killed.join(ctx) })
	s.await(t, 3)
	log.line(t, "level=INFO", "member joined", "member="+polite.Name(), "role=agent", "region=a", "addr=127.0.0.1")
	log.line(t, "level=INFO", "member joined", "member="+killed.Name())
	polite.stop()
	log.line(t, "level=INFO", "member left", "member="+polite.Name())
	cancel()
	joining.Wait()
	if err := killed.list.Shutdown(); err != nil { // no good-bye
		t.Fatal(err)
	}
	log.line(t, "level=INFO", "member is dead or cut off", "member="+killed.Name())
	log.line(t, "level=INFO", "member does not answer", "member="+killed.Name())
	if strings.Contains(log.String(), s.Name()+" ") && strings.Contains(log.String(), "joined member="+s.Name()) {
		t.Error("it says that it has joined itself")
	}
}

// A good-bye and the news that its member has left are packets of their own: either
// may be there first.
func TestGoodByeAfterTheNews(t *testing.T) {
	log := listen()
	s := start(t, seeder("s"), log.logger)
	gone := func(id string) string {
		meta := agent(id, "a")
		b, err := json.Marshal(meta)
		if err != nil {
			t.Fatal(err)
		}
		n := &memberlist.Node{Name: id + "-" + ulid.Make().String(), Addr: net.IPv4(127, 0, 0, 1), Port: 1, Meta: b}
		events{s.Gossip}.NotifyLeave(n)
		return n.Name
	}
	polite, dead := gone("polite"), gone("dead")
	delegate{s.Gossip}.NotifyMsg(append([]byte{kindBye}, polite...))
	log.line(t, "level=INFO", "member left", "member="+polite)
	log.line(t, "level=INFO", "member is dead or cut off", "member="+dead)
	if n := strings.Count(log.String(), "dead or cut off"); n != 1 {
		t.Errorf("%d are said to be dead: %s", n, log)
	}
}

// A document of another key is counted, said once in a while, and the reason is kept.
func TestRefusedDocuments(t *testing.T) {
	log := listen()
	a := start(t, agent("a", "a"), log.logger)
	other := signing.Ed25519(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize)))
	now := time.Now()
	wire, err := announce.Sign(t.Context(), other, &announce.End{
		ExecutionID: ulid.Make().String(), Key: "k", SourceBucket: "global-builds", Reason: announce.Completed, Issued: now, Expires: now.Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Untrusted(time.Hour); err != nil {
		t.Error(err)
	}
	const times = 100
	for range times {
		a.document(wire)
		a.document([]byte("noise"))
	}
	for reason, want := range map[string]float64{refusedUntrusted: times, refusedInvalid: times, refusedFull: 0} {
		if n := metric(t, a, "landfall_documents_refused_total", reason); n != want {
			t.Errorf("%s: %v counted", reason, n)
		}
	}
	if n := strings.Count(log.String(), "document refused"); n != 2 {
		t.Errorf("said %d times, once for each reason is right:\n%s", n, log)
	}
	if err := a.Untrusted(time.Hour); err == nil || !strings.Contains(err.Error(), other.Public().ID()) {
		t.Errorf("the key is not named: %v", err)
	}
}

// A flood of memberlist's own lines is a few lines of ours, whoever is in them.
func TestMemberlistLinesAreBounded(t *testing.T) {
	log := listen()
	w := newMemberLog(slog.New(slog.NewTextHandler(log, nil)))
	for i := range 10_000 {
		for _, line := range []string{
			"2026/01/02 03:04:05 [ERR] memberlist: msg type (%d) not supported from=10.0.0.1:%d\n",
			"2026/01/02 03:04:05 [WARN] memberlist: Got ping for unexpected node 'x%d' from=10.0.0.1:%d\n",
			"2026/01/02 03:04:05 [ERR] memberlist: Decrypt packet failed: no installed keys could decrypt the message from=10.0.%d.1:%d\n",
		} {
			fmt.Fprintf(w, line, i%256, i)
		}
	}
	if n := strings.Count(log.String(), "\n"); n > maxStrangers+10 {
		t.Errorf("%d lines", n)
	}
	io.WriteString(w, "2026/01/02 03:04:05 [ERR] memberlist: Failed to send ack: something else\n")
	log.line(t, "Failed to send ack")
}

func TestTrustOf(t *testing.T) {
	for _, k := range []struct {
		key    string
		trusts []string
		want   Trust
	}{
		{"a", []string{"b", "a"}, Trusted},
		{"a", []string{"b"}, Untrusted},
		{"", []string{"b"}, UnknownTrust},
		{"a", nil, UnknownTrust},
	} {
		if got := TrustOf(k.key, k.trusts); got != k.want {
			t.Errorf("%q among %q: %d", k.key, k.trusts, got)
		}
	}
}

// The longest names go first, then what an agent trusts is left out of its meta.
func TestMetaFits(t *testing.T) {
	long := strings.Repeat("<", maxName)
	meta := Meta{ID: long, Role: Agent, Region: long, Bucket: strings.Repeat("b", 63), Fleet: 65535, FleetPeers: 65535}
	for range maxTrusts {
		meta.Trusts = append(meta.Trusts, "0123456789ab")
	}
	plain := meta
	plain.ID, plain.Region = strings.Repeat("n", maxName), strings.Repeat("r", maxName)
	if b := (delegate{&Gossip{cfg: Config{Meta: plain}}}).NodeMeta(512); !bytes.Contains(b, []byte("0123456789ab")) {
		t.Errorf("%d keys of plain names are left out: %q", maxTrusts, b)
	}
	plain.Trusts = append(plain.Trusts, "0123456789ab")
	if b := (delegate{&Gossip{cfg: Config{Meta: plain}}}).NodeMeta(512); bytes.Contains(b, []byte("0123456789ab")) || len(b) == 0 {
		t.Errorf("more keys than go in: %q", b)
	}
}
