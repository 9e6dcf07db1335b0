package call

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/awsproof"
	"github.com/landfall-dist/landfall/internal/identity/awsproof/ststest"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// giver is a seeder of a world that gives first certificates.
type giver struct {
	*Enrolment
	addr string

	mu      sync.Mutex
	changes []api.Change
	log     bytes.Buffer
}

func (g *giver) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.log.Write(b)
}

// said is the log, and the record of changes as JSON.
func (g *giver) said(t *testing.T) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, err := json.Marshal(g.changes)
	if err != nil {
		t.Fatal(err)
	}
	return g.log.String() + string(b)
}

func (w *world) giver(t *testing.T, name string) *giver {
	t.Helper()
	g := &giver{}
	g.Enrolment = NewEnrolment(w.dir, w.open(t, name), slog.New(slog.NewTextHandler(g, nil)))
	g.Record = func(c api.Change, _ bool) bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.changes = append(g.changes, c)
		return true
	}
	g.addr = serve(t, g.Source, Handlers{Hello: func() Hello { return Hello{} }, Renew: w.dir.RenewFor, Enrolment: g.Enrolment})
	return g
}

func (w *world) token(t *testing.T, region, name string) identity.JoinToken {
	t.Helper()
	token, _, err := w.dir.NewJoinToken(identity.Agent, region, name, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// joiner is a new agent of region-a.
func (w *world) joiner(t *testing.T, token identity.JoinToken, addrs ...string) *Joiner {
	t.Helper()
	return &Joiner{
		Files: identity.FilesIn(filepath.Join(t.TempDir(), "identity")), Seeders: addrs, Logger: slog.New(slog.DiscardHandler),
		Anchor: identity.Anchor{Pin: token.Root, Clock: w.clock},
		Ask:    EnrolRequest{Kind: identity.Agent, Region: "region-a", Otherwise: "made-up", Token: token.Text()},
	}
}

// within is a context that ends before the test's patience does.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestJoin: a new agent gets its first certificate by a token, and is a member as others.
func TestJoin(t *testing.T) {
	w := newWorld(t)
	if _, err := w.dir.Deny("id spiffe://prod/agent/region-a/thief", ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.dir.Renew(w.paths["s1"]); err != nil { // takes the list along
		t.Fatal(err)
	}
	g := w.giver(t, "s1")
	token := w.token(t, "region-a", "")
	// The first address is of nobody, the second of an agent.
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	agent := serve(t, w.open(t, "b1"), Handlers{Hello: func() Hello { return Hello{} }})
	j := w.joiner(t, token, closed.Addr().String(), agent, g.addr)
	if err := j.Join(within(t)); err != nil {
		t.Fatal(err)
	}
	s := identitytest.Open(t, j.Files, w.clock)
	if s.ID().String() != "spiffe://prod/agent/region-a/made-up" {
		t.Errorf("it is %s", s.ID())
	}
	if _, denied := s.Trusted(); denied != "id spiffe://prod/agent/region-a/thief\n" {
		t.Errorf("denied: %q", denied)
	}
	if _, _, err := NewClient(s).Hello(t.Context(), g.addr); err != nil {
		t.Errorf("it is no member: %v", err)
	}
	if err := w.renewer(s, nil, g.addr).Renew(t.Context()); err != nil {
		t.Errorf("it is not renewed: %v", err)
	}
	for _, file := range []string{j.Files.Key, j.Files.Cert} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
	}
	said := g.said(t)
	if !strings.Contains(said, "first certificate given") || !strings.Contains(said, `"by":"join token `+token.ID+`"`) || strings.Contains(said, strings.Split(token.Text(), ".")[2]) {
		t.Errorf("said: %s", said)
	}

	// Another that has the token is refused, and told what to do.
	thief := w.joiner(t, token, g.addr)
	if err := thief.Join(within(t)); !errors.Is(err, ErrNoCertificate) || !strings.Contains(err.Error(), "seeder ca deny spiffe://prod/agent/region-a/made-up") {
		t.Errorf("used twice: %v", err)
	}
	if said := g.said(t); !strings.Contains(said, "first certificate not given") || !strings.Contains(said, `"status":403`) {
		t.Errorf("said: %s", said)
	}
	other := w.joiner(t, w.token(t, "region-a", ""), g.addr)
	other.Ask.Region = "region-b"
	if err := other.Join(within(t)); !errors.Is(err, ErrNoCertificate) || !strings.Contains(err.Error(), "it is for agent region-a") {
		t.Errorf("another region: %v", err)
	}
	if err := w.joiner(t, w.token(t, "region-a", ""), agent).Join(within(t)); !errors.Is(err, ErrNoCertificate) || !strings.Contains(err.Error(), "no seeder with --ca DIR") {
		t.Errorf("an agent is asked: %v", err)
	}
	if err := w.joiner(t, token).Join(within(t)); err == nil || !strings.Contains(err.Error(), "--join") {
		t.Errorf("nobody is asked: %v", err)
	}
}

// TestJoinAgain: whose answer was lost, or who has ended in between, asks again with the
// same key.
func TestJoinAgain(t *testing.T) {
	w := newWorld(t)
	g := w.giver(t, "s1")
	j := w.joiner(t, w.token(t, "region-a", ""), g.addr)
	if err := j.Join(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(j.Files.Cert); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(j.Files.Key)
	if err != nil {
		t.Fatal(err)
	}
	if j.Anchor.Roots, err = identity.ReadRoots(j.Files.Roots); err != nil {
		t.Fatal(err)
	}
	if err := j.Join(within(t)); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(j.Files.Key); err != nil || !bytes.Equal(before, after) {
		t.Errorf("another key, %v", err)
	}
	identitytest.Open(t, j.Files, w.clock)
}

// TestJoinKnowsTheSeeder: who is in the middle gets nothing, the token least.
func TestJoinKnowsTheSeeder(t *testing.T) {
	w := newWorld(t)
	token := w.token(t, "region-a", "")
	// He has an authority of his own, and shows that of the cluster as well.
	middle := identitytest.New(t, "prod", w.clock)
	source := middle.Source(t, middle.Seeder("s1"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var heard bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(raw, source.WithEnrolment(source.Server(identity.CallProto), w.dir.Certificate()))
			_ = conn.SetDeadline(time.Now().Add(timeout))
			_, _ = io.Copy(&heard, conn) // until he is refused
			conn.Close()
		}
	})
	err = w.joiner(t, token, l.Addr().String()).Join(within(t))
	l.Close()
	wg.Wait()
	if !errors.Is(err, ErrNoCertificate) || !errors.Is(err, identity.ErrOtherAuthority) || heard.Len() > 0 {
		t.Errorf("%v, and %d bytes were heard", err, heard.Len())
	}
	// An agent of the cluster is no seeder, whatever it offers.
	agent := w.open(t, "b1")
	g := NewEnrolment(w.dir, agent, slog.New(slog.DiscardHandler))
	if err := w.joiner(t, token, serve(t, agent, Handlers{Enrolment: g})).Join(within(t)); !errors.Is(err, identity.ErrOtherAuthority) {
		t.Errorf("an agent gives certificates: %v", err)
	}
}

// TestJoinLooksAtTheAnswer: a seeder gives what was asked for and nothing else.
func TestJoinLooksAtTheAnswer(t *testing.T) {
	w := newWorld(t)
	token := w.token(t, "region-a", "")
	j := w.joiner(t, token, "127.0.0.1:1")
	key, err := j.key()
	if err != nil {
		t.Fatal(err)
	}
	issue := func(id identity.ID, public any) string {
		chain, err := w.dir.Issue(id, public)
		if err != nil {
			t.Fatal(err)
		}
		return string(identity.FormatCerts(chain...))
	}
	id := identity.ID{Cluster: "prod", Kind: identity.Agent, Region: "region-a", Name: "a9"}
	b, s := id, id
	b.Region, s.Kind, s.Region = "region-b", identity.Seeder, ""
	roots := string(identity.FormatCerts(w.dir.Certificate()))
	other, err := ca.New("prod", w.clock)
	if err != nil {
		t.Fatal(err)
	}
	by := identity.Peer{ID: identity.ID{Cluster: "prod", Kind: identity.Seeder, Name: "s1"}}
	for _, c := range []struct {
		name   string
		answer EnrolAnswer
		want   string
	}{
		{"another key's", EnrolAnswer{Certificates: issue(id, identitytest.Key(t).Public()), Roots: roots}, "and the own"},
		{"another region's", EnrolAnswer{Certificates: issue(b, key.Public()), Roots: roots}, "it is of spiffe://prod/agent/region-b/a9"},
		{"a seeder's", EnrolAnswer{Certificates: issue(s, key.Public()), Roots: roots}, "it is of spiffe://prod/seeder/a9"},
		{"no authorities", EnrolAnswer{Certificates: issue(id, key.Public())}, "authorities"},
		{"other authorities", EnrolAnswer{Certificates: issue(id, key.Public()), Roots: string(identity.FormatCerts(other.Certificate()))}, "that of the join token"},
		{"too many authorities", EnrolAnswer{Certificates: issue(id, key.Public()), Roots: strings.Repeat(roots, maxJoinRoots+1)}, "more than 16"},
		{"too many certificates", EnrolAnswer{Certificates: strings.Repeat(roots, maxJoinChain+1), Roots: roots}, "more than 5"},
		{"no certificate", EnrolAnswer{Roots: roots}, "no certificate"},
	} {
		text, err := json.Marshal(c.answer)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.keep(by, text, key); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, expected %q in it", c.name, err, c.want)
		}
	}
	if err := j.keep(by, []byte("rubbish"), key); err == nil {
		t.Error("rubbish is kept")
	}
	if _, err := os.Stat(j.Files.Cert); err == nil {
		t.Error("one of them was kept")
	}
}

// stranger connects without a certificate.
func (w *world) stranger(t *testing.T, addr string, protos ...string) (*tls.Conn, error) {
	t.Helper()
	return tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: protos, MinVersion: tls.VersionTLS13})
}

// TestStrangersGetToEnrolmentAlone: without a certificate there is nothing else, by no
// protocol, path or method.
func TestStrangersGetToEnrolmentAlone(t *testing.T) {
	w := newWorld(t)
	g := w.giver(t, "s1")
	for _, protos := range [][]string{{identity.CallProto}, {identity.GossipProto}, {identity.PeerProto}, nil} {
		conn, err := w.stranger(t, g.addr, protos...)
		if err == nil { // of TLS 1.3 the client knows with the first answer
			_ = conn.SetDeadline(time.Now().Add(timeout))
			_, _ = io.WriteString(conn, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
			if b, _ := io.ReadAll(conn); len(b) > 0 {
				t.Errorf("%q: answered %q", protos, b)
			}
			conn.Close()
		}
	}
	for _, call := range []string{"GET /hello", "POST /message", "POST /renew", "GET /enrol", "GET /", "POST /enrol/../renew", "POST //renew"} {
		conn, err := w.stranger(t, g.addr, identity.EnrolProto, identity.CallProto)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(timeout))
		fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", call)
		b, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 4") && !strings.HasPrefix(string(b), "HTTP/1.1 30") {
			t.Errorf("%s: %.100q, %v", call, b, err)
		}
		conn.Close()
	}
	// With a certificate one gets to everything but that.
	conn, err := tls.Dial("tcp", g.addr, w.open(t, "b1").Client(identity.CallProto, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /enrol HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	if b, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 404") {
		t.Errorf("%.100q, %v", b, err)
	}
}

// TestStrangersAreBounded in what they send, how often, and how many at a time.
func TestStrangersAreBounded(t *testing.T) {
	w := newWorld(t)
	g := w.giver(t, "s1")
	post := func(body []byte) (int, string) {
		t.Helper()
		conn, err := w.stranger(t, g.addr, identity.EnrolProto)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST /enrol HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", len(body))
		_, _ = conn.Write(body) // which may be more than is read
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		b, _ := io.ReadAll(answer.Body)
		return answer.StatusCode, string(b)
	}
	if code, text := post(bytes.Repeat([]byte("x"), maxEnrolRequest+1)); code != http.StatusBadRequest {
		t.Errorf("too much: %d %s", code, text)
	}
	wrong, err := json.Marshal(EnrolRequest{Kind: identity.Agent, Region: "region-a", Name: "a1", Token: identity.NewJoinToken(identity.FingerprintOf(w.dir.Certificate())).Text()})
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for range addressBurst + 10 {
		switch code, text := post(wrong); code {
		case http.StatusForbidden:
			refused++
		case http.StatusTooManyRequests:
			if !strings.Contains(text, "try again") {
				t.Errorf("not told what to do: %s", text)
			}
		default:
			t.Fatalf("%d %s", code, text)
		}
	}
	// The time that this takes lets some more in.
	if refused < addressBurst-1 || refused == addressBurst+10 {
		t.Errorf("%d of %d were looked at", refused, addressBurst+10)
	}
	if n := strings.Count(g.said(t), "first certificate not given"); n != 1 {
		t.Errorf("said %d times in a moment", n)
	}
	// Not named as somebody who is not.
	bad, err := json.Marshal(EnrolRequest{Kind: "x\ny", Region: "region-a", Name: strings.Repeat("n", 1000)})
	if err != nil {
		t.Fatal(err)
	}
	post(bad)

	var open []*tls.Conn
	closed := make(chan struct{}, maxOfAddress+1)
	for range maxOfAddress + 1 {
		conn, err := w.stranger(t, g.addr, identity.EnrolProto)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
		go func() {
			_, _ = io.Copy(io.Discard, conn) // until it is closed
			closed <- struct{}{}
		}()
	}
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("nobody was turned away")
	}
	for _, c := range open {
		c.Close()
	}
	for range maxOfAddress {
		<-closed
	}
}

func TestEnrolLimits(t *testing.T) {
	now := time.Unix(0, 0)
	l := &NewEnrolment(nil, nil, nil).limits
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	allowed := func(a netip.Addr, n int) (count int) {
		for range n {
			if l.allow(a, now) {
				count++
			}
		}
		return count
	}
	if n := allowed(addr(0), 1000); n != addressBurst {
		t.Errorf("%d of one address", n)
	}
	// A network of IPv6 is one address.
	six := 0
	for i := range 100 {
		six += allowed(netip.AddrFrom16([16]byte{0x20, 1, 15: byte(i)}), 1)
	}
	if six != addressBurst {
		t.Errorf("%d of one network", six)
	}
	all := 0
	for i := range 2 * maxAddresses {
		all += allowed(addr(i+1), 1)
	}
	if all != enrolBurst-2*addressBurst || l.networks.Len() > maxAddresses {
		t.Errorf("%d of all, %d addresses are remembered", all, l.networks.Len())
	}
	now = now.Add(time.Hour)
	if n := allowed(addr(0), 1000); n != addressBurst {
		t.Errorf("%d of one address later", n)
	}
}

// TestJoinWaits for a seeder that is not there yet, and says so.
func TestJoinWaits(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	j := w.joiner(t, w.token(t, "region-a", ""), l.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	j.Logger = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
		if strings.Contains(string(b), "waiting for a seeder") {
			cancel()
		}
		return len(b), nil
	}), nil))
	if err := j.Join(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("it does not wait: %v", err)
	}
	// A key that is there is looked at before anybody is asked.
	if err := os.WriteFile(j.Files.Key, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := j.Join(within(t)); err == nil || !strings.Contains(err.Error(), j.Files.Key) {
		t.Errorf("rubbish is a key: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

const role = "arn:aws:sts::123456789012:assumed-role/landfall-agent-a/i-0abc"

// TestJoinByAWS: whom AWS names, and the seeder's settings, gets a certificate of its region.
func TestJoinByAWS(t *testing.T) {
	w := newWorld(t)
	g := w.giver(t, "s1")
	sts := ststest.New(t, map[string]ststest.Caller{"AKIA": {Secret: "s3cret", ARN: role}, "OTHER": {Secret: "s3cret", ARN: strings.Replace(role, "-a/", "-b/", 1)}})
	joiner := func(id, secret, endpoint string) *Joiner {
		j := w.joiner(t, w.token(t, "region-a", ""), g.addr)
		j.Anchor, j.Ask.Token = identity.Anchor{Roots: []*x509.Certificate{w.dir.Certificate()}, Clock: w.clock}, ""
		j.Prove = func(ctx context.Context, cluster string, key [32]byte) (awsproof.Proof, error) {
			return awsproof.New(ctx, aws.Config{Credentials: credentials.NewStaticCredentialsProvider(id, secret, "")}, endpoint, cluster, key)
		}
		return j
	}
	if err := joiner("AKIA", "s3cret", sts.URL).Join(within(t)); !errors.Is(err, ErrNoCertificate) || !strings.Contains(err.Error(), "--enrol-aws") {
		t.Errorf("a seeder that takes none: %v", err)
	}
	rule, err := awsproof.ParseRule("arn:aws:sts::123456789012:assumed-role/landfall-agent-a/*=region-a")
	if err != nil {
		t.Fatal(err)
	}
	g.AWS = NewAWSEnrolment([]awsproof.Rule{rule}, sts.URL, "prod")
	j := joiner("AKIA", "s3cret", sts.URL)
	if err := j.Join(within(t)); err != nil {
		t.Fatal(err)
	}
	if id := identitytest.Open(t, identity.Files{Cert: j.Files.Cert, Key: j.Files.Key, Roots: rootsFile(t, w), Denied: j.Files.Denied}, w.clock).ID(); id.String() != "spiffe://prod/agent/region-a/made-up" {
		t.Errorf("it is %s", id)
	}
	if said := g.said(t); !strings.Contains(said, `"by":"`+role+`"`) || strings.Contains(said, "s3cret") || strings.Contains(said, "Signature=") {
		t.Errorf("said: %s", said)
	}
	regionB, seeder, elsewhere := joiner("AKIA", "s3cret", sts.URL), joiner("AKIA", "s3cret", sts.URL), joiner("AKIA", "s3cret", "http://127.0.0.1:1")
	regionB.Ask.Region = "region-b"
	seeder.Ask.Kind, seeder.Ask.Region = identity.Seeder, ""
	for name, c := range map[string]struct {
		j    *Joiner
		want string
	}{
		"another region":          {regionB, "AWS says that this is " + role + ", which no --enrol-aws names for region-b"},
		"another role":            {joiner("OTHER", "s3cret", sts.URL), "landfall-agent-b/i-0abc, which no --enrol-aws names for region-a"},
		"a seeder":                {seeder, "joins with a token"},
		"a guessed secret":        {joiner("AKIA", "guessed", sts.URL), "STS answers 403"},
		"a proof for another STS": {elsewhere, "STS answers 403"},
		"nobody whom AWS knows":   {joiner("NONE", "s3cret", sts.URL), "STS answers 403"},
	} {
		if err := c.j.Join(within(t)); !errors.Is(err, ErrNoCertificate) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, expected %q in it", name, err, c.want)
		}
		if _, err := os.Stat(c.j.Files.Cert); err == nil {
			t.Errorf("%s: it has a certificate", name)
		}
	}

	// A proof that somebody has seen is of no use with another key, nor in another cluster.
	thief := joiner("AKIA", "s3cret", sts.URL)
	seen, err := thief.Prove(t.Context(), "prod", [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	thief.Prove = func(context.Context, string, [32]byte) (awsproof.Proof, error) { return seen, nil }
	if err := thief.Join(within(t)); !errors.Is(err, ErrNoCertificate) {
		t.Errorf("a proof for another key: %v", err)
	}
	other := joiner("AKIA", "s3cret", sts.URL)
	prove := other.Prove
	other.Prove = func(ctx context.Context, _ string, key [32]byte) (awsproof.Proof, error) {
		return prove(ctx, "test", key)
	}
	if err := other.Join(within(t)); !errors.Is(err, ErrNoCertificate) {
		t.Errorf("a proof for another cluster: %v", err)
	}

	// STS that cannot be reached is waited for.
	sts.Close()
	waiting := joiner("AKIA", "s3cret", sts.URL)
	ctx, cancel := context.WithCancel(t.Context())
	waiting.Logger = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
		if strings.Contains(string(b), "waiting for a seeder") {
			cancel()
		}
		return len(b), nil
	}), nil))
	if err := waiting.Join(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("it does not wait: %v", err)
	}
}

func rootsFile(t *testing.T, w *world) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, identity.FormatCerts(w.dir.Certificate()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
