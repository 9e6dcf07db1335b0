package gossip

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"
	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/gossip/gossiptest"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/signing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, gossiptest.Probes()...) }

var (
	key   = signing.Ed25519(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)))
	trust = signing.TrustIn(key.Public())
)

// node is one member under test and what it was told.
type node struct {
	*Gossip
	documents chan announce.Added
	progress  chan Progress
	links     chan Links
	members   chan struct{}
	stop      func()
}

func start(t *testing.T, meta Meta, change func(*Config)) *node {
	t.Helper()
	n := &node{
		documents: make(chan announce.Added, 100),
		progress:  make(chan Progress, 100),
		links:     make(chan Links, 100),
		members:   make(chan struct{}, 100),
	}
	cfg := Config{
		Meta:       meta,
		Listen:     "127.0.0.1:0",
		Book:       announce.NewBook(trust, nil),
		OnDocument: func(a announce.Added) { n.documents <- a },
		OnProgress: func(p Progress) { n.progress <- p },
		OnLinks:    func(l Links) { n.links <- l },
		OnMembers:  func() { n.members <- struct{}{} },
		Logger:     slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Gossip = g
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ending %s: %v", meta.ID, err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

func join(to *node) func(*Config) {
	return func(c *Config) { c.Join = []string{to.Addr()} }
}

func seeder(id string) Meta { return Meta{ID: id, Role: Seeder, PeerPort: 1, HTTPPort: 2} }

func agent(id, region string) Meta {
	return Meta{ID: id, Role: Agent, Region: region, Bucket: region + "-builds", PeerPort: 1, HTTPPort: 2}
}

// await waits until the node sees as many members.
func (n *node) await(t *testing.T, members int) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for len(n.Members()) != members {
		select {
		case <-n.members:
		case <-deadline:
			t.Fatalf("%s sees %v, want %d members", n.Name(), n.Members(), members)
		}
	}
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(30 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func announcement(t *testing.T) []byte {
	t.Helper()
	return revision(t, ulid.Make().String(), 3)
}

// revision announces so many of the three segments of a build; with all of them it is the
// seal.
func revision(t *testing.T, execution string, segments int) []byte {
	t.Helper()
	return sign(t, execution, segments, 0)
}

// sign is revision whose infohashes begin with first.
func sign(t *testing.T, execution string, segments int, first byte) []byte {
	t.Helper()
	now, shape := time.Now(), manifest.ShapeOf(3*manifest.MinPartLength)
	a := &announce.Announcement{
		ExecutionID: execution, Key: strings.Repeat("k", announce.MaxKeyLength), SourceBucket: "global-builds",
		Destinations: []string{"a-builds"}, Size: shape.Size, Scheme: manifest.Ramp,
		PieceLength: shape.PieceLength, PartLength: shape.PartLength, Issued: now, Expires: now.Add(announce.Lifetime),
	}
	for i := range segments {
		a.InfoHashes = a.InfoHashes.Append(manifest.InfoHash{1 + first + byte(i)})
	}
	if segments == 3 {
		a.SHA256 = strings.Repeat("0f", sha256.Size)
	}
	wire, err := announce.Sign(t.Context(), key, a)
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

func TestDocumentsReachEveryMember(t *testing.T) {
	s := start(t, seeder("s"), nil)
	a := start(t, agent("a", "a"), join(s))
	b := start(t, agent("b", "b"), join(a)) // knows only a
	s.await(t, 3)
	// Longer than a gossip packet, which is why it goes by TCP.
	if err := s.Broadcast(announcement(t), nil); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{a, b} {
		if d := receive(t, n.documents); d.Announcement == nil {
			t.Errorf("%s got %+v", n.Name(), d)
		}
	}
}

// Each revision of an announcement reaches those who have an earlier one, and who comes
// later has the last.
func TestRevisionsReachEveryMember(t *testing.T) {
	s := start(t, seeder("s"), nil)
	a := start(t, agent("a", "a"), join(s))
	b := start(t, agent("b", "b"), join(a))
	s.await(t, 3)
	execution := ulid.Make().String()
	for segments := 1; segments <= 3; segments++ {
		if err := s.Broadcast(revision(t, execution, segments), nil); err != nil {
			t.Fatal(err)
		}
		for _, n := range []*node{a, b} {
			if d := receive(t, n.documents); d.Announcement == nil || d.Announcement.InfoHashes.Len() != segments {
				t.Errorf("%s got %+v, want %d segments", n.Name(), d, segments)
			}
		}
	}
	late := start(t, agent("late", "a"), join(b))
	if d := receive(t, late.documents); d.Announcement == nil || !d.Announcement.Sealed() {
		t.Errorf("the latecomer got %+v", d)
	}
}

// Revisions go as packets, and who lacks the one before asks for the whole.
func TestWhoMissesARevisionAsks(t *testing.T) {
	t.Run("without TLS", func(t *testing.T) {
		s := start(t, seeder("s"), nil)
		missesARevision(t, s, start(t, agent("a", "a"), join(s)))
	})
	t.Run("with TLS", func(t *testing.T) {
		prod := identitytest.New(t, "prod", nil)
		s := start(t, seeder("s1"), withTLS(t, prod, identity.Require))
		missesARevision(t, s, start(t, agent("a1", "region-a"), withTLS(t, prod, identity.Require, join(s))))
	})
}

func missesARevision(t *testing.T, s, a *node) {
	t.Helper()
	s.await(t, 2)
	a.await(t, 2)
	for {
		execution := ulid.Make().String()
		if _, err := s.cfg.Book.Add(revision(t, execution, 1)); err != nil { // which a does not hear of
			t.Fatal(err)
		}
		tried := make(chan struct{})
		if err := s.Broadcast(revision(t, execution, 2), func() { close(tried) }); err != nil {
			t.Fatal(err)
		}
		receive(t, tried)
		d := receive(t, a.documents)
		if d.Announcement != nil && d.Announcement.InfoHashes.Len() == 1 { // unless both have just exchanged states
			receive(t, a.documents)
			continue
		}
		if d.Announcement == nil || d.Announcement.InfoHashes.Len() != 2 || d.Before != nil {
			t.Errorf("got %+v", d)
		}
		return
	}
}

// Nobody is sent more than once in a while what he asks for, nor who is no member.
func TestAsksAreBounded(t *testing.T) {
	s := start(t, seeder("s"), nil)
	execution := ulid.Make().String()
	if _, err := s.cfg.Book.Add(revision(t, execution, 1)); err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{"", execution, execution + s.Name(), execution + strings.Repeat("x", 1<<16)} {
		if err := s.asked([]byte(body)); err == nil {
			t.Errorf("asked by %.80q", body)
		}
	}
	if err := s.revision([]byte("short")); err == nil {
		t.Error("no error")
	}
	var asks asks
	now := time.Now()
	if !asks.due("a", now) || asks.due("a", now.Add(askInterval-1)) || !asks.due("a", now.Add(askInterval)) {
		t.Error("not once in askInterval")
	}
	for i := range 3 * maxAsks {
		asks.due(fmt.Sprint(i), now)
	}
	if len(asks.last) > maxAsks {
		t.Errorf("%d are remembered", len(asks.last))
	}
}

// A document that contradicts an announcement which holds is refused, and told of.
func TestContradictionIsToldOf(t *testing.T) {
	told := make(chan error, 1)
	a := start(t, agent("a", "a"), func(c *Config) {
		c.OnContradiction = func(_ *announce.Announcement, err error) { told <- err }
	})
	execution := ulid.Make().String()
	if _, err := a.cfg.Book.Add(revision(t, execution, 1)); err != nil {
		t.Fatal(err)
	}
	other := sign(t, execution, 2, 7)
	if _, err := a.document(other); !errors.Is(err, announce.ErrContradiction) {
		t.Errorf("%v", err)
	}
	if err := receive(t, told); !errors.Is(err, announce.ErrContradiction) {
		t.Errorf("told of %v", err)
	}
}

func TestLatecomerIsBroughtUpToDate(t *testing.T) {
	s := start(t, seeder("s"), nil)
	if err := s.Broadcast(announcement(t), nil); err != nil {
		t.Fatal(err)
	}
	late := start(t, agent("late", "a"), join(s))
	if d := receive(t, late.documents); d.Announcement == nil {
		t.Errorf("latecomer got %+v", d)
	}
}

func TestProgressGoesToSeeders(t *testing.T) {
	s := start(t, seeder("s"), nil)
	a := start(t, agent("a", "a"), join(s))
	a.await(t, 2)
	want := BuildProgress{ExecutionID: ulid.Make().String(), State: "downloading", Verified: 7}
	for _, p := range Pack("a", "a", "a-builds", []BuildProgress{want}) {
		a.Report(p)
	}
	if got := receive(t, s.progress); len(got.Builds) != 1 || got.Builds[0] != want {
		t.Errorf("got %+v", got)
	}
}

func TestLinksGoToSeeders(t *testing.T) {
	s := start(t, seeder("s"), nil)
	a := start(t, agent("a", "a"), join(s))
	a.await(t, 2)
	var from []Link
	for i := range 100 {
		from = append(from, Link{ID: strings.Repeat("n", maxName-2) + strconv.Itoa(i%100), Bytes: 1 << 40, Rate: 1 << 30})
	}
	id := ulid.Make().String()
	sent := PackLinks("a", id, from)
	for _, l := range sent {
		if wire, err := l.encode(); err != nil || len(wire) > MaxProgress {
			t.Fatalf("%d bytes, %v", len(wire), err)
		}
		a.ReportLinks(l)
	}
	var got []Link
	for range sent {
		l := receive(t, s.links)
		if l.Node != "a" || l.ExecutionID != id {
			t.Errorf("got %+v", l)
		}
		got = append(got, l.From...)
	}
	if len(got) != len(from) {
		t.Errorf("%d links of %d came", len(got), len(from))
	}
}

func TestRestartUnderTheSameIdentity(t *testing.T) {
	s := start(t, seeder("s"), nil)
	first := start(t, agent("a", "a"), join(s))
	s.await(t, 2)
	first.stop()
	s.await(t, 1)
	start(t, agent("a", "a"), join(s))
	s.await(t, 2)
	if m := s.Members()[0]; m.ID != "a" || m.Region != "a" || m.PeerAddr().Port() != 1 {
		t.Errorf("came back as %+v", m)
	}
}

func TestOtherKeysAreKeptOut(t *testing.T) {
	keyed := func(b byte, to ...*node) func(*Config) {
		return func(c *Config) {
			c.Keys = [][]byte{bytes.Repeat([]byte{b}, keyLength)}
			for _, n := range to {
				c.Join = append(c.Join, n.Addr())
			}
		}
	}
	s := start(t, seeder("s"), keyed(1))
	stranger := start(t, agent("x", "x"), keyed(2, s))
	start(t, agent("a", "a"), keyed(1, s))
	s.await(t, 2) // the one with the key came in, after the stranger's first try
	if n := len(stranger.Members()); n != 1 {
		t.Errorf("the stranger sees %d members", n)
	}
}

func TestBeyondLoopbackNeedsAKey(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0"} {
		_, err := New(Config{Meta: seeder("s"), Listen: addr, Book: announce.NewBook(trust, nil), Logger: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), "--gossip-key") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestPackFitsPackets(t *testing.T) {
	var builds []BuildProgress
	for range 100 {
		builds = append(builds, BuildProgress{
			ExecutionID: ulid.Make().String(), State: "downloading", Verified: 1 << 40, Landed: 1 << 40,
			DownRate: 1 << 30, UpRate: 1 << 30, Peers: 99, Error: strings.Repeat("e", 1000),
		})
	}
	total := 0
	for _, p := range Pack("agent-1", "region-a", "region-a-builds", builds) {
		wire, err := p.encode()
		if err != nil || len(wire) > MaxProgress {
			t.Fatalf("%d bytes, %v", len(wire), err)
		}
		got, err := decodeProgress(wire[1:])
		if err != nil {
			t.Fatal(err)
		}
		total += len(got.Builds)
	}
	if total != len(builds) {
		t.Errorf("%d of %d builds packed", total, len(builds))
	}
}

// What cannot be is left out; the rest of the packet counts.
func TestOneBadBuildSpoilsNoOther(t *testing.T) {
	good := BuildProgress{ExecutionID: ulid.Make().String(), State: "landing", Verified: 7}
	for name, bad := range map[string]BuildProgress{
		"negative time":  {ExecutionID: ulid.Make().String(), Took: [4]int64{0, 0, -1, 0}},
		"too much":       {ExecutionID: ulid.Make().String(), Landed: maxAmount + 1},
		"no executionId": {State: "landed"},
	} {
		wire, err := Progress{"a", "r", "r-builds", []BuildProgress{bad, good}}.encode()
		if err != nil {
			t.Fatal(err)
		}
		if p, err := decodeProgress(wire[1:]); err != nil || len(p.Builds) != 1 || p.Builds[0] != good {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestLongErrorKeepsItsEnds(t *testing.T) {
	doing, why := "landing build.zip in region-a-builds: ", "api error AccessDenied"
	for name, text := range map[string]string{
		"short": doing + why,
		"long":  doing + strings.Repeat("StatusCode: 403, é, ", 30) + why,
	} {
		got := shortened(text)
		if len(got) > maxProgressError || !utf8.ValidString(got) || !strings.HasPrefix(got, doing) || !strings.HasSuffix(got, why) {
			t.Errorf("%s: %d bytes, %q", name, len(got), got)
		}
	}
}

func TestKeyFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gossip.key")
	if err := WriteKey(file); err != nil {
		t.Fatal(err)
	}
	keys, err := ReadKeys(file)
	if err != nil || len(keys) != 1 || len(keys[0]) != keyLength {
		t.Errorf("%d keys, %v", len(keys), err)
	}
	if err := WriteKey(file); err == nil {
		t.Error("a key was overwritten")
	}
	if err := os.Chmod(file, 0o604); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKeys(file); err == nil || !strings.Contains(err.Error(), "chmod 600 "+file) {
		t.Errorf("a key that everybody may read: %v", err)
	}
	if _, err := ReadKeys(file + ".none"); err == nil || !strings.Contains(err.Error(), "seeder keygen") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}

func FuzzProgress(f *testing.F) {
	p := Progress{"a", "r", "r-builds", []BuildProgress{{ExecutionID: ulid.Make().String(), State: "landed"}}}
	wire, err := p.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire[1:])
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := decodeProgress(body)
		if err != nil {
			return
		}
		for _, b := range p.Builds {
			if b.Verified < 0 || b.Landed < 0 {
				t.Errorf("negative: %+v", b)
			}
		}
	})
}

func FuzzLinks(f *testing.F) {
	wire, err := Links{"a", ulid.Make().String(), []Link{{"seeder", 7, 3}}}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire[1:])
	f.Fuzz(func(t *testing.T, body []byte) {
		l, err := decodeLinks(body)
		if err != nil {
			return
		}
		for _, from := range l.From {
			if from.Bytes < 0 || from.Rate < 0 || len(from.ID) > maxName {
				t.Errorf("out of range: %+v", from)
			}
		}
	})
}
