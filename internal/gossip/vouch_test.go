package gossip

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

var serves = call.Serves{"region-a": {"region-a-builds"}, "region-b": {"region-b-builds", "more-builds"}, "region-c": {"region-c-builds"}}

// withTLS gives a member the identity of its meta.
func withTLS(t *testing.T, cluster *identitytest.Cluster, mode identity.Mode, change ...func(*Config)) func(*Config) {
	return func(c *Config) {
		id := identity.ID{Cluster: "prod", Kind: identity.Kind(c.Role), Region: c.Region, Name: c.ID}
		c.Identity, c.TLS = cluster.Source(t, id), mode
		c.Keys = [][]byte{bytes.Repeat([]byte{1}, keyLength)}
		if c.Role == Seeder {
			c.Serves = serves
		}
		for _, f := range change {
			f(c)
		}
	}
}

// untilTrue waits for what the members make of each other.
func (n *node) untilTrue(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for !is() {
		select {
		case <-n.members:
		case <-time.After(50 * time.Millisecond): // what is not told of, such as a file
		case <-deadline:
			t.Fatalf("%s: %s; it sees %+v", n.Name(), what, n.Members())
		}
	}
}

func (n *node) member(id string) (m Member) {
	for _, m = range n.Members() {
		if m.ID == id {
			return m
		}
	}
	return Member{}
}

// TestMembersWithCertificates has members with certificates find each other, those too
// that never connect to each other themselves, and documents and progress reach who they
// are for.
func TestMembersWithCertificates(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	kept := filepath.Join(t.TempDir(), "serves.json")
	s := seeder("s1")
	s.Key, s.Table, s.ArrivalsTable = "thekey", strings.Repeat("t", maxTable), strings.Repeat("r", maxTable)
	first := start(t, s, withTLS(t, prod, identity.Require))
	a := agent("a1", "region-a")
	a.Trusts = []string{"thekey", strings.Repeat("x", 250)}
	one := start(t, a, withTLS(t, prod, identity.Require, join(first), func(c *Config) { c.ServesFile = kept }))
	two := start(t, agent("b1", "region-b"), withTLS(t, prod, identity.Require, join(first)))
	three := start(t, agent("c1", "region-c"), withTLS(t, prod, identity.Require, join(one)))
	for _, n := range []*node{first, one, two, three} {
		n.await(t, 4)
	}
	if err := first.Broadcast(announcement(t), nil); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{one, two, three} {
		receive(t, n.documents)
	}
	// What does not fit the meta is told all the same.
	two.untilTrue(t, "the table is not known", func() bool { return len(two.member("s1").Table) == maxTable && two.member("s1").Key == "thekey" })
	two.untilTrue(t, "the table of arrivals is not known", func() bool { return len(two.member("s1").ArrivalsTable) == maxTable })
	first.untilTrue(t, "the trusted keys are not known", func() bool { return len(first.member("a1").Trusts) == 2 })
	if id, ok := first.IdentityOf(one.Name()); !ok || id != prod.Agent("region-a", "a1") {
		t.Errorf("identity of a member: %v, %t", id, ok)
	}
	if _, ok := first.IdentityOf("a1-" + ulid.Make().String()); ok {
		t.Error("somebody has an identity who is no member")
	}
	progress := Progress{Node: "b1", Region: "region-b", Bucket: "more-builds", Builds: []BuildProgress{{ExecutionID: ulid.Make().String(), State: "queued"}}}
	two.Report(progress)
	if got := receive(t, first.progress); got.Node != "b1" || got.Bucket != "more-builds" {
		t.Errorf("progress: %+v", got)
	}
	two.ReportLinks(Links{Node: "b1", ExecutionID: ulid.Make().String()})
	if got := receive(t, first.links); got.Node != "b1" {
		t.Errorf("links: %+v", got)
	}
	// What regions serve is the seeder's to say, and is kept.
	one.untilTrue(t, "what regions serve is not kept", func() bool {
		b, err := os.ReadFile(kept)
		return err == nil && strings.Contains(string(b), "more-builds")
	})
}

// forged makes a node as an insider with the gossip's key may have it spread.
type forged struct {
	name string
	meta Meta
	addr string
	by   *identity.Source // signs; nil: nobody
	bend func(meta []byte) []byte
}

func (f forged) node(t *testing.T) *memberlist.Node {
	t.Helper()
	b, err := json.Marshal(f.meta)
	if err != nil {
		t.Fatal(err)
	}
	if f.by != nil {
		if b, err = (&vouching{source: f.by}).sign(f.name, f.addr, b); err != nil {
			t.Fatal(err)
		}
	}
	if f.bend != nil {
		b = f.bend(b)
	}
	at := netip.MustParseAddrPort(f.addr)
	return &memberlist.Node{Name: f.name, Addr: net.IP(at.Addr().AsSlice()), Port: at.Port(), Meta: b}
}

func TestForgedMembersAreRefused(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	s := start(t, seeder("s1"), withTLS(t, prod, identity.Require))
	evil, honest, host := prod.Source(t, prod.Agent("region-a", "evil")), prod.Source(t, prod.Agent("region-b", "b1")), prod.Source(t, prod.Host("region-a", "h1"))
	other := identitytest.New(t, "prod", nil).Source(t, prod.Agent("region-a", "evil"))
	for _, known := range []*identity.Source{evil, honest, host} {
		p, err := evil.Verify(known.Chain())
		if err != nil {
			t.Fatal(err)
		}
		s.vouching.met(p)
	}
	began := ulid.Make().String()
	meta := func(id, region, bucket string, of *identity.Source) Meta {
		m := Meta{ID: id, Role: Agent, Region: region, Bucket: bucket, PeerPort: 1, HTTPPort: 2}
		if of != nil {
			m.Cert = of.Fingerprint().String()
		}
		return m
	}
	own := meta("evil", "region-a", "region-a-builds", evil)
	const at = "127.0.0.1:9"
	for _, c := range []struct {
		what string
		forged
		want string
	}{
		{"himself", forged{"evil-" + began, own, at, evil, nil}, ""},
		{"no certificate", forged{"evil-" + began, meta("evil", "region-a", "region-a-builds", nil), at, nil, nil}, "it has no certificate"},
		{"one that nobody knows", forged{"evil-" + began, meta("evil", "region-a", "region-a-builds", other), at, other, nil}, "not known yet"},
		{"no fingerprint", forged{"evil-" + began, Meta{ID: "evil", Role: Agent, Cert: "x"}, at, evil, nil}, "fingerprint"},
		{"not signed", forged{"evil-" + began, own, at, nil, nil}, "not signed"},
		{"another's certificate", forged{"b1-" + began, meta("b1", "region-b", "region-b-builds", honest), at, evil, nil}, "signature does not fit"},
		{"another region", forged{"evil-" + began, meta("evil", "region-b", "region-b-builds", evil), at, evil, nil}, "certificate is of spiffe://prod/agent/region-a/evil"},
		{"another's id", forged{"b1-" + began, meta("b1", "region-a", "region-a-builds", evil), at, evil, nil}, "certificate is of"},
		{"a seeder", forged{"evil-" + began, Meta{ID: "evil", Role: Seeder, Cert: evil.Fingerprint().String()}, at, evil, nil}, "certificate is of"},
		{"a host", forged{"h1-" + began, meta("h1", "region-a", "region-a-builds", host), at, host, nil}, "certificate is of"},
		{"another's name", forged{"b1-" + began, own, at, evil, nil}, "its name is not evil"},
		{"a name without a start", forged{"evil", own, at, evil, nil}, "its name"},
		{"a bucket that the region does not serve", forged{"evil-" + began, meta("evil", "region-a", "region-b-builds", evil), at, evil, nil}, "does not serve bucket"},
		{"bent afterwards", forged{"evil-" + began, own, at, evil, func(b []byte) []byte { return bytes.Replace(b, []byte(`"peer":1`), []byte(`"peer":7`), 1) }}, "signature does not fit"},
		{"another's signature with a field after it", forged{"evil-" + began, own, at, evil, func(b []byte) []byte { return append(bytes.TrimSuffix(b, []byte("}")), `,"peer":7}`...) }}, "not signed"},
		{"the same field twice", forged{"evil-" + began, own, at, evil, func(b []byte) []byte { return append([]byte(`{"peer":9,`), b[1:]...) }}, "signature does not fit"},
		{"rubbish", forged{"evil-" + began, own, at, evil, func([]byte) []byte { return []byte("{") }}, "meta"},
	} {
		t.Run(c.what, func(t *testing.T) {
			err := events{s.Gossip}.NotifyAlive(c.node(t))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, expected %q in it", err, c.want)
			}
		})
	}
	for reason, want := range map[identity.Reason]int64{identity.Missing: 1, identity.Misplaced: 7, identity.Invalid: 6} {
		if n := s.vouching.source.Refused(reason); n != want {
			t.Errorf("%d refused as %s, expected %d", n, reason, want)
		}
	}
	// What he has signed for one address is not taken at another.
	n := forged{"evil-" + began, own, at, evil, nil}.node(t)
	n.Port++
	if err := s.vouching.admits(n); err == nil {
		t.Error("taken at another address")
	}
	// Who is where somebody of another region is does not take his place.
	r := newRoster("self")
	for name, m := range map[string]Meta{
		"b1-" + ulid.MustNew(1, ulid.DefaultEntropy()).String():   meta("b1", "region-b", "region-b-builds", honest),
		"evil-" + ulid.MustNew(2, ulid.DefaultEntropy()).String(): own,
	} {
		r.come(forged{name, m, at, nil, nil}.node(t))
	}
	if got := r.now(); len(got.members) != 2 {
		t.Errorf("superseded: %+v", got.superseded)
	}
}

// TestMaxedMetaFits: the longest names, with what is signed, within memberlist's bound;
// what has no room is told over TLS.
func TestMaxedMetaFits(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	long := strings.Repeat("a", identity.MaxName)
	m := agent(long, long)
	m.Bucket, m.PeerPort, m.HTTPPort = strings.Repeat("b", 63), 65535, 65535
	m.Fleet, m.FleetPeers = 65535, 65535
	m.Trusts, m.Table, m.ArrivalsTable = []string{"abcdefghijkl"}, strings.Repeat("t", maxTable), strings.Repeat("r", maxTable)
	n := start(t, m, withTLS(t, prod, identity.Require))
	meta := delegate{n.Gossip}.NodeMeta(memberlist.MetaMaxSize)
	if len(meta) == 0 || len(meta) > memberlist.MetaMaxSize {
		t.Fatalf("meta of %d bytes", len(meta))
	}
	if h := n.hello(); h.Table != m.Table || h.ArrivalsTable != m.ArrivalsTable || len(h.Trusts) != 1 {
		t.Errorf("hello: %+v", h)
	}
}

// TestProgressIsTheSenders: by its identity, and nobody else's.
func TestProgressIsTheSenders(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	s := start(t, seeder("s1"), withTLS(t, prod, identity.Require))
	peerOf := func(id identity.ID) identity.Peer { return identity.Peer{ID: id} }
	id := ulid.Make().String()
	encode := func(m message) []byte {
		b, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		what    string
		from    identity.ID
		message []byte
		want    string
	}{
		{"own", prod.Agent("region-a", "a1"), encode(Progress{Node: "a1", Region: "region-a", Bucket: "region-a-builds"}), ""},
		{"own links", prod.Agent("region-a", "a1"), encode(Links{Node: "a1", ExecutionID: id}), ""},
		{"another region's", prod.Agent("region-a", "a1"), encode(Progress{Node: "a1", Region: "region-b", Bucket: "region-b-builds"}), "region \"region-b\""},
		{"another region's bucket", prod.Agent("region-a", "a1"), encode(Progress{Node: "a1", Region: "region-a", Bucket: "region-b-builds"}), "does not serve"},
		{"another agent's", prod.Agent("region-a", "a1"), encode(Progress{Node: "a2", Region: "region-a", Bucket: "region-a-builds"}), "progress of \"a2\""},
		{"another agent's links", prod.Agent("region-a", "a1"), encode(Links{Node: "a2", ExecutionID: id}), "links of \"a2\""},
		{"a seeder's", prod.Seeder("s2"), encode(Links{Node: "s2", ExecutionID: id}), "sends no progress"},
		{"a host's", prod.Host("region-a", "a1"), encode(Progress{Node: "a1", Region: "region-a", Bucket: "region-a-builds"}), "sends no progress"},
		{"a document", prod.Agent("region-a", "a1"), []byte{kindDocument}, "unknown kind"},
		{"nothing", prod.Agent("region-a", "a1"), nil, "empty"},
		{"own question", prod.Agent("region-a", "a1"), encode(ask(id + "a1-" + id)), ""},
		{"a seeder's question", prod.Seeder("s2"), encode(ask(id + "s2-" + id)), ""},
		{"another's question", prod.Agent("region-a", "a1"), encode(ask(id + "a2-" + id)), "asks for"},
		{"a host's question", prod.Host("region-a", "a1"), encode(ask(id + "a1-" + id)), "sends no progress"},
		{"half a question", prod.Agent("region-a", "a1"), encode(ask(id[1:])), "nothing is asked"},
		{"rubbish", prod.Agent("region-a", "a1"), []byte{kindProgress, '{'}, "progress"},
	} {
		err := s.vouching.message(peerOf(c.from), c.message)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, expected %q in it", c.what, err, c.want)
		}
	}
	if got := receive(t, s.progress); got.Node != "a1" {
		t.Errorf("%+v", got)
	}
	receive(t, s.links)
	// A packet has no sender.
	s.handle(encode(Progress{Node: "a1", Region: "region-a", Bucket: "region-a-builds"}), false)
	s.handle(encode(Links{Node: "a1", ExecutionID: id}), false)
	select {
	case p := <-s.progress:
		t.Errorf("counted: %+v", p)
	case l := <-s.links:
		t.Errorf("counted: %+v", l)
	default:
	}
}

// TestRollOut takes a cluster from no TLS to TLS alone, a member at a time, and has
// everybody see everybody at each step.
func TestRollOut(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	dir := t.TempDir()
	plain := func(c *Config) { c.Keys = [][]byte{bytes.Repeat([]byte{1}, keyLength)} }
	metas := []Meta{seeder("s1"), agent("a1", "region-a"), agent("b1", "region-b")}
	nodes := make([]*node, len(metas))
	var addrs []string
	for i := range metas {
		nodes[i] = start(t, metas[i], func(c *Config) {
			plain(c)
			c.Remember = filepath.Join(dir, strconv.Itoa(i))
			if i > 0 {
				join(nodes[0])(c)
			}
		})
		addrs = append(addrs, nodes[i].Addr())
	}
	all := func(stage string) {
		t.Helper()
		for _, n := range nodes {
			n.untilTrue(t, stage, func() bool {
				got := n.Members()
				if len(got) != len(nodes) {
					return false
				}
				for i, other := range nodes {
					if n.member(metas[i].ID).Name != other.Name() {
						return false
					}
				}
				return true
			})
		}
		nodes[1].Report(Progress{Node: "a1", Region: "region-a", Bucket: "region-a-builds", Builds: []BuildProgress{{ExecutionID: ulid.Make().String(), State: "queued"}}})
		receive(t, nodes[0].progress)
		if err := nodes[0].Broadcast(sign(t, ulid.Make().String(), 1, byte(len(stage))), nil); err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes[1:] {
			receive(t, n.documents)
		}
	}
	all("none")
	for _, mode := range []identity.Mode{identity.Prefer, identity.Require} {
		for i := range nodes {
			nodes[i].stop()
			nodes[i] = start(t, metas[i], withTLS(t, prod, mode, func(c *Config) {
				c.Listen, c.Join, c.Remember = addrs[i], addrs, filepath.Join(dir, strconv.Itoa(i))
			}))
			for len(nodes[i].documents) > 0 { // of the start
				<-nodes[i].documents
			}
			all(string(mode) + metas[i].ID)
		}
	}
	for _, m := range nodes[0].Members() {
		if m.Cert == "" {
			t.Errorf("%s has no certificate", m.Name)
		}
	}
	stranger := start(t, agent("c1", "region-c"), func(c *Config) { plain(c); c.Join = addrs })
	stranger.untilTrue(t, "a member without TLS is not refused", func() bool { return stranger.Unreached() != nil })
	if len(stranger.Members()) != 1 || len(nodes[0].Members()) != 3 {
		t.Error("a member without TLS was taken in")
	}
}

// TestDeniedMemberGoes: who is denied is no member any more, and cannot come back.
func TestDeniedMemberGoes(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	var log lockedBuffer
	files := prod.Files(t, prod.Seeder("s1"))
	s := start(t, seeder("s1"), withTLS(t, prod, identity.Require, func(c *Config) {
		c.Identity = identitytest.Open(t, files, nil)
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	}))
	a := start(t, agent("a1", "region-a"), withTLS(t, prod, identity.Require, join(s)))
	b := start(t, agent("b1", "region-b"), withTLS(t, prod, identity.Require, join(s)))
	for _, n := range []*node{s, a, b} {
		n.await(t, 3)
	}
	if err := os.WriteFile(files.Denied, []byte("id "+prod.Agent("region-a", "a1").String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.cfg.Identity.Reload(); err != nil {
		t.Fatal(err)
	}
	s.untilTrue(t, "a denied member stays", func() bool { return s.member("a1").Name == "" })
	if !strings.Contains(log.String(), "member not believed any more") || s.member("b1").Name == "" {
		t.Errorf("log: %s", log.String())
	}
	a.stop()
	again := start(t, agent("a1", "region-a"), withTLS(t, prod, identity.Require, join(s)))
	again.untilTrue(t, "a denied member is not refused", func() bool { return again.Unreached() != nil })
	if s.member("a1").Name != "" {
		t.Error("a denied member came back")
	}
}

// TestDenyListIsHandedOn: what one seeder denies is denied by every member, those too that
// come later, and stays so. What an agent denies is denied by nobody else.
func TestDenyListIsHandedOn(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	opened := func(id identity.ID) *identity.Source {
		files := prod.Files(t, id)
		files.Told = filepath.Join(t.TempDir(), "denied")
		return identitytest.Open(t, files, nil)
	}
	with := func(id identity.ID, first *node) func(*Config) {
		return withTLS(t, prod, identity.Require, func(c *Config) {
			c.Identity = opened(id)
			if first != nil {
				join(first)(c)
			}
		})
	}
	denies := func(n *node, id identity.ID) func() bool {
		chain := prod.Source(t, id).Chain()
		return func() bool {
			_, err := n.cfg.Identity.Verify(chain)
			return errors.Is(err, identity.ErrDenied)
		}
	}
	write := func(n *node, text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(n.cfg.Identity.Files().Denied, []byte(text), 0o600), n.cfg.Identity.Reload()); err != nil {
			t.Fatal(err)
		}
	}
	s1 := start(t, seeder("s1"), with(prod.Seeder("s1"), nil))
	s2 := start(t, seeder("s2"), with(prod.Seeder("s2"), s1))
	a := start(t, agent("a1", "region-a"), with(prod.Agent("region-a", "a1"), s1))
	b := start(t, agent("b1", "region-b"), with(prod.Agent("region-b", "b1"), s1))
	for _, n := range []*node{s1, s2, a, b} {
		n.await(t, 4)
	}
	taken := prod.Agent("region-a", "a1") // over
	write(a, "id "+prod.Agent("region-b", "b1").String()+"\n")
	write(s1, "id "+taken.String()+"\nserial 0AFF\n")
	for _, n := range []*node{s2, b} {
		n.untilTrue(t, "what the seeder denies is not denied", denies(n, taken))
		n.untilTrue(t, "a denied member stays", func() bool { return n.member("a1").Name == "" })
	}
	// Another list, of which something was taken away, takes nothing back.
	next := prod.Agent("region-c", "c9")
	write(s1, "id "+next.String()+"\n")
	for _, n := range []*node{s2, b} {
		n.untilTrue(t, "what the seeder denies then is not denied", denies(n, next))
	}
	late := start(t, agent("c1", "region-c"), with(prod.Agent("region-c", "c1"), s2)) // which knows it of the other
	for what, id := range map[string]identity.ID{"first": taken, "next": next} {
		late.untilTrue(t, what+" is not denied by who comes late", denies(late, id))
		if !denies(b, id)() || !denies(s2, id)() {
			t.Errorf("%s is not denied any more", what)
		}
	}
	for _, n := range []*node{s1, s2, b, late} {
		if denies(n, prod.Agent("region-b", "b1"))() {
			t.Errorf("%s denies what an agent denies", n.Name())
		}
	}
}

// TestRenewedCertificateIsTold: the others know the next certificate, by asking for it.
func TestRenewedCertificateIsTold(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	files := prod.Files(t, prod.Agent("region-a", "a1"))
	s := start(t, seeder("s1"), withTLS(t, prod, identity.Require))
	a := start(t, agent("a1", "region-a"), withTLS(t, prod, identity.Require, join(s), func(c *Config) {
		c.Identity = identitytest.Open(t, files, nil)
	}))
	b := start(t, agent("b1", "region-b"), withTLS(t, prod, identity.Require, join(s)))
	for _, n := range []*node{s, a, b} {
		n.await(t, 3)
	}
	key := identitytest.Key(t)
	chain, err := prod.Root.Issue(prod.Agent("region-a", "a1"), key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ca.Install(files, key, chain), a.cfg.Identity.Reload()); err != nil {
		t.Fatal(err)
	}
	want := identity.FingerprintOf(chain[0]).String()
	for _, n := range []*node{s, b} {
		n.untilTrue(t, "the next certificate is not known", func() bool { return n.member("a1").Cert == want })
	}
}

// lockedBuffer is a log that a test reads while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
