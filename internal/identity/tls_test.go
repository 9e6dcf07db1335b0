package identity_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// shake lets two configurations meet, and returns what each side made of it; the
// client's error is that of its first read.
func shake(t *testing.T, server, client *tls.Config) (atServer, atClient tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c := tls.Server(a, server)
		if serverErr = c.Handshake(); serverErr == nil {
			atServer = c.ConnectionState()
			_, serverErr = c.Write([]byte("x"))
		}
		a.Close()
	}()
	c := tls.Client(b, client)
	_, clientErr = io.ReadFull(c, make([]byte, 1))
	atClient = c.ConnectionState()
	b.Close()
	<-done
	return atServer, atClient, serverErr, clientErr
}

func TestTLS(t *testing.T) {
	prod, other := identitytest.New(t, "prod", nil), identitytest.New(t, "prod", nil)
	seeder, agent := prod.Source(t, prod.Seeder("s1")), prod.Source(t, prod.Agent("region-a", "a1"))
	host := prod.Source(t, prod.Host("region-a", "h1"))
	stranger := other.Source(t, other.Seeder("s1"))
	with := func(c *tls.Config, change func(*tls.Config)) *tls.Config { change(c); return c }
	for _, c := range []struct {
		name           string
		server, client *tls.Config
		serverSays     string
		clientSays     string
	}{
		{"agent calls seeder", seeder.Server(identity.PeerProto, identity.CallProto), agent.Client(identity.CallProto, identity.Exactly(seeder.ID())), "", ""},
		{"anybody of the cluster", seeder.Server(identity.PeerProto), host.Client(identity.PeerProto, nil), "", ""},
		{"another than expected", seeder.Server(identity.PeerProto), agent.Client(identity.PeerProto, identity.Exactly(host.ID())), "", "expected spiffe://region-a.prod/host/h1"},
		{"client of another authority", seeder.Server(identity.PeerProto), stranger.Client(identity.PeerProto, func(identity.ID) error { return nil }), "", "no authority"},
		{"server of another authority", stranger.Server(identity.PeerProto), agent.Client(identity.PeerProto, nil), "", "no authority"},
		{"another authority's client that asks nothing", seeder.Server(identity.PeerProto), with(stranger.Client(identity.PeerProto, nil), func(c *tls.Config) { c.VerifyConnection = nil }), "no authority", "remote error"},
		{"no certificate", seeder.Server(identity.PeerProto), with(agent.Client(identity.PeerProto, nil), func(c *tls.Config) {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
		}), "certificate", "remote error"},
		{"no protocol", seeder.Server(identity.PeerProto), with(agent.Client(identity.PeerProto, nil), func(c *tls.Config) { c.NextProtos, c.VerifyConnection = nil, nil }), "no protocol", "remote error"},
		{"another protocol", seeder.Server(identity.PeerProto), agent.Client(identity.CallProto, nil), "unsupported application protocols", "no application protocol"},
		{"server without protocols", with(seeder.Server(identity.PeerProto), func(c *tls.Config) { c.NextProtos, c.VerifyConnection = nil, nil }), agent.Client(identity.PeerProto, nil), "", "does not speak landfall-peer/1"},
		{"TLS 1.2", seeder.Server(identity.PeerProto), with(agent.Client(identity.PeerProto, nil), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }), "version", "version"},
	} {
		t.Run(c.name, func(t *testing.T) {
			atServer, atClient, serverErr, clientErr := shake(t, c.server, c.client)
			if c.clientSays == "" {
				if serverErr != nil || clientErr != nil {
					t.Fatalf("server: %v; client: %v", serverErr, clientErr)
				}
				if p, err := seeder.PeerOf(atServer); err != nil || p.ID.Cluster != "prod" || p.ID.Kind == identity.Seeder {
					t.Errorf("at the server: %v, %v", p.ID, err)
				}
				if p, err := agent.PeerOf(atClient); err != nil || p.ID != seeder.ID() || p.Fingerprint != seeder.Fingerprint() {
					t.Errorf("at the client: %v, %v", p.ID, err)
				}
				return
			}
			if clientErr == nil || !strings.Contains(clientErr.Error(), c.clientSays) {
				t.Errorf("client: %v, expected %q in it", clientErr, c.clientSays)
			}
			if c.serverSays != "" && (serverErr == nil || !strings.Contains(serverErr.Error(), c.serverSays)) {
				t.Errorf("server: %v, expected %q in it", serverErr, c.serverSays)
			}
		})
	}
	if _, err := seeder.PeerOf(tls.ConnectionState{}); err == nil {
		t.Error("who shows nothing is a peer")
	}
}

// TestExpiredCalls has a certificate that has expired refused but for its renewal.
func TestExpiredCalls(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func() time.Time { return now }
	prod := identitytest.New(t, "prod", clock)
	agent := prod.Source(t, prod.Agent("region-a", "a1"))
	now = now.Add(40 * 24 * time.Hour)
	seeder := prod.Source(t, prod.Seeder("s1"))
	if err := agent.Expired(); !errors.Is(err, identity.ErrExpired) || !strings.Contains(err.Error(), "spiffe://prod/agent/region-a/a1") {
		t.Errorf("own certificate: %v", err)
	}
	atServer, _, serverErr, clientErr := shake(t, seeder.Server(identity.PeerProto, identity.CallProto), agent.Client(identity.CallProto, nil))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("a call: %v, %v", serverErr, clientErr)
	}
	if _, err := seeder.PeerOf(atServer); !errors.Is(err, identity.ErrExpired) {
		t.Errorf("a peer has expired: %v", err)
	}
	if p, err := seeder.PeerForRenewal(atServer); err != nil || p.ID != agent.ID() {
		t.Errorf("for renewal: %v, %v", p.ID, err)
	}
	if _, _, err, _ := shake(t, seeder.Server(identity.PeerProto, identity.CallProto), agent.Client(identity.PeerProto, nil)); !errors.Is(err, identity.ErrExpired) {
		t.Errorf("a peer connection: %v", err)
	}
	if _, _, _, err := shake(t, agent.Server(identity.CallProto), seeder.Client(identity.CallProto, nil)); !errors.Is(err, identity.ErrExpired) {
		t.Errorf("a server that has expired: %v", err)
	}
}

func TestSign(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	a, b := prod.Source(t, prod.Agent("region-a", "a1")), prod.Source(t, prod.Agent("region-a", "a2"))
	p, err := b.Verify(a.Chain())
	if err != nil {
		t.Fatal(err)
	}
	signature, err := a.Sign("meta", []byte("hello"))
	if err != nil || len(signature) > identity.MaxSignature {
		t.Fatalf("%d bytes, %v", len(signature), err)
	}
	if err := p.Check("meta", []byte("hello"), signature); err != nil {
		t.Error(err)
	}
	other, err := b.Sign("meta", []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"another purpose":   p.Check("arrival", []byte("hello"), signature),
		"another message":   p.Check("meta", []byte("hell"), signature),
		"purpose moved":     p.Check("metah", []byte("ello"), signature),
		"another's":         p.Check("meta", []byte("hello"), other),
		"none":              p.Check("meta", []byte("hello"), nil),
		"too long":          p.Check("meta", []byte("hello"), append(signature, make([]byte, 100)...)),
		"nobody":            identity.Peer{}.Check("meta", []byte("hello"), signature),
		"purpose with NUL":  p.Check("me\x00ta", []byte("hello"), signature),
		"no purpose at all": p.Check("", []byte("hello"), signature),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := a.Sign("", nil); err == nil {
		t.Error("signed without a purpose")
	}
}

func TestReload(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	files := prod.Files(t, prod.Agent("region-a", "a1"))
	s := identitytest.Open(t, files, nil)
	changes := 0
	s.OnChange(func() { changes++ })
	before := s.Fingerprint()
	peer, err := s.Verify(prod.Source(t, prod.Seeder("s1")).Chain())
	if err != nil {
		t.Fatal(err)
	}

	// The next key and certificate, in the order in which they are replaced: the old
	// and the new key together fit either certificate.
	key := identitytest.Key(t)
	chain, err := prod.Root.Issue(s.ID(), key.Public())
	if err != nil {
		t.Fatal(err)
	}
	next, err := identity.FormatKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, files.Key, append(bytes.Clone(next), old...))
	if err := s.Reload(); err != nil || s.Fingerprint() != before {
		t.Fatalf("with both keys and the old certificate: %v", err)
	}
	write(t, files.Cert, identity.FormatCerts(chain...))
	if err := s.Reload(); err != nil || s.Fingerprint() != identity.FingerprintOf(chain[0]) || changes != 2 {
		t.Fatalf("with both keys and the new certificate: %v, %d changes", err, changes)
	}
	write(t, files.Key, next)
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	atServer, _, _, clientErr := shake(t, prod.Source(t, prod.Seeder("s1")).Server(identity.CallProto), s.Client(identity.CallProto, nil))
	if clientErr != nil || identity.FingerprintOf(atServer.PeerCertificates[0]) != s.Fingerprint() {
		t.Errorf("the new certificate is not shown: %v", clientErr)
	}

	write(t, files.Denied, []byte("# stolen\nid spiffe://prod/seeder/s1\n"))
	if err := s.Recheck(peer); err != nil {
		t.Errorf("denied before it was read: %v", err)
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := s.Recheck(peer); !errors.Is(err, identity.ErrDenied) {
		t.Errorf("not denied: %v", err)
	}

	// What cannot be used leaves what was read before.
	someone := prod.Files(t, prod.Agent("region-a", "a2"))
	foreign := identitytest.New(t, "prod", nil).Files(t, prod.Agent("region-a", "a1"))
	for name, spoil := range map[string]func(){
		"list of denied gone":    func() { os.Remove(files.Denied) },
		"list of denied garbage": func() { write(t, files.Denied, []byte("serial x\n")) },
		"denied itself":          func() { write(t, files.Denied, []byte("id spiffe://prod/agent/region-a/a1\n")) },
		"certificate garbage":    func() { write(t, files.Cert, []byte("x")) },
		"key of another":         func() { copyFile(t, someone.Key, files.Key) },
		"another identity":       func() { copyFile(t, someone.Key, files.Key); copyFile(t, someone.Cert, files.Cert) },
		"another authority":      func() { copyFile(t, foreign.Roots, files.Roots) },
	} {
		kept := keep(t, files)
		fingerprint := s.Fingerprint()
		spoil()
		if err := s.Reload(); err == nil {
			t.Errorf("%s: read", name)
		} else if s.Fingerprint() != fingerprint || s.Recheck(peer) == nil {
			t.Errorf("%s: not as before", name)
		}
		kept()
	}
	if err := s.Reload(); err != nil {
		t.Error(err)
	}
}

// TestRunReadsAgain has the files looked at, and the end of a certificate said.
func TestRunReadsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ahead atomic.Int64 // of the certificates' clock
		prod := identitytest.New(t, "prod", nil)
		files := prod.Files(t, prod.Agent("region-a", "a1"))
		s := identitytest.Open(t, files, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
		var log lockedLog
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx, slog.New(slog.NewTextHandler(&log, nil))) }()
		synctest.Wait()
		if log.String() != "" {
			t.Errorf("said of a new certificate: %s", log.String())
		}
		write(t, files.Denied, []byte("id spiffe://prod/seeder/s1\n"))
		time.Sleep(11 * time.Second) // of the test's own clock
		synctest.Wait()
		if !strings.Contains(log.String(), "identity read again") {
			t.Errorf("not read again: %s", log.String())
		}
		write(t, files.Denied, []byte("rubbish\n"))
		before := time.Now().Add(8500 * time.Millisecond) // half a second before it is looked at
		if err := os.Chtimes(files.Denied, before, before); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if strings.Contains(log.String(), "identity not read again") {
			t.Errorf("read while it is written: %s", log.String())
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if !strings.Contains(log.String(), "identity not read again") {
			t.Errorf("rubbish not said: %s", log.String())
		}
		ahead.Store(int64(25 * 24 * time.Hour))
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if !strings.Contains(log.String(), "the certificate ends soon") {
			t.Errorf("end not said: %s", log.String())
		}
		ahead.Store(int64(31 * 24 * time.Hour))
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if !strings.Contains(log.String(), "the certificate has expired") {
			t.Errorf("end not said: %s", log.String())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// lockedLog is what was logged, for who reads it meanwhile.
type lockedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func write(t *testing.T, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, text)
}

// keep returns how to put the files back.
func keep(t *testing.T, files identity.Files) func() {
	t.Helper()
	all := map[string][]byte{}
	for _, f := range []string{files.Cert, files.Key, files.Roots, files.Denied} {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all[f] = text
	}
	return func() {
		for f, text := range all {
			write(t, f, text)
		}
	}
}
