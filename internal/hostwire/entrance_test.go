package hostwire

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/admission"
	"github.com/landfall-dist/landfall/internal/admission/admissiontest"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// Whoever connects takes no place of others: those who have shown nothing give way to each
// other, the oldest of the address that has most first, and who has shown who it is to none.
func TestEntrance(t *testing.T) {
	many := admissiontest.Elsewhere(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const most = 8
	refused := 0
	e := newEntrance(l, most, true, func(netip.AddrPort, error) { refused++ })
	come := func(from *net.Dialer) *guest {
		t.Helper()
		c, err := from.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		g, err := e.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { g.Close() })
		return g.(*guest)
	}
	honest := come(new(net.Dialer))
	var guests []*guest
	for range 3 * most {
		guests = append(guests, come(many))
	}
	if e.strangers.Len() != most || !e.strangers.Has(honest) || refused != 2*most+1 {
		t.Errorf("%d have shown nothing, the one of another address is there: %t; %d had to go", e.strangers.Len(), e.strangers.Has(honest), refused)
	}
	id := identity.ID{Cluster: "prod", Kind: identity.Host, Region: "region-a", Name: "host-1"}
	honest.showed(id)
	for range 3 * most {
		guests = append(guests, come(many))
	}
	if !e.hosts.Has(honest) || e.strangers.Len() != most {
		t.Errorf("who has shown a certificate is there: %t; %d have shown nothing", e.hosts.Has(honest), e.strangers.Len())
	}
	if !e.isHome(netip.MustParseAddr("127.0.0.1")) || e.isHome(netip.MustParseAddr("127.0.0.2")) {
		t.Error("hosts are not known to be where they are")
	}
	for range connsOfOne { // of one host, from anywhere
		g := come(many)
		g.showed(id)
		guests = append(guests, g)
	}
	if e.hosts.Has(honest) || e.hosts.Len() != connsOfOne {
		t.Errorf("%d connections of one host, the first among them: %t", e.hosts.Len(), e.hosts.Has(honest))
	}
	guests[0].showed(id) // it had to go meanwhile
	for _, g := range append(guests, honest) {
		g.Close()
	}
	if n := e.strangers.Len() + e.hosts.Len() + len(e.homes); n != 0 {
		t.Errorf("%d remain", n)
	}
}

// A host that opens one stream after the other has a few, and takes none of another's.
func TestConnectionsOfAHostAreBounded(t *testing.T) {
	cluster := identitytest.New(t, "prod", nil)
	s := serve(t, ServeConfig{Identity: cluster.Source(t, cluster.Agent("region-a", "agent-1")), Handle: echo, MaxStreams: 100})
	as := func(name string) (*Stream, chan error) {
		h := hello()
		h.Host = name
		stream := dialTo(t, s, DialConfig{TLS: ClientTLS(cluster.Source(t, cluster.Host("region-a", name))), Hello: h})
		ended := make(chan error, 1)
		go func() {
			for {
				if _, err := stream.Receive(); err != nil {
					ended <- err
					return
				}
			}
		}()
		return stream, ended
	}
	_, other := as("host-2")
	_, first := as("host-1")
	for range connsOfOne {
		as("host-1")
	}
	select {
	case <-first:
	case <-time.After(time.Minute):
		t.Error("a host has as many connections as it likes")
	}
	select {
	case err := <-other:
		t.Errorf("another host's stream ended: %v", err)
	default:
	}
}

// Who has shown no certificate that holds too often is turned away before TLS is spoken.
func TestFailedHandshakesHaveARate(t *testing.T) {
	d := admissiontest.Elsewhere(t)
	cluster := identitytest.New(t, "prod", nil)
	s := serve(t, ServeConfig{Identity: cluster.Source(t, cluster.Agent("region-a", "agent-1")), Handle: echo})
	config := identitytest.New(t, "prod", nil).Source(t, cluster.Host("region-a", "host-1")).Client(proto, nil)
	config.VerifyConnection = nil // it takes everybody
	addr := strings.TrimPrefix(s.url, "https://")
	greeted, begun := 0, time.Now()
	for range 3 * admission.FailureBurst {
		c, err := tls.DialWithDialer(d, "tcp", addr, config)
		if err != nil {
			continue
		}
		greeted++
		_, _ = c.Read(make([]byte, 1)) // the refusal
		c.Close()
	}
	// A failure is counted a moment after it was told.
	if most := admission.FailureBurst + int(admission.FailuresPerSecond*(time.Since(begun).Seconds()+3)); greeted > most {
		t.Errorf("%d were answered, expected %d at most", greeted, most)
	}
	dialTo(t, s, DialConfig{TLS: ClientTLS(cluster.Source(t, cluster.Host("region-a", "host-1")))})
}

// A host that asks for one certificate after the other gets a few, and the others get theirs.
func TestRenewalsOfAHostAreBounded(t *testing.T) {
	cluster := identitytest.New(t, "prod", nil)
	region, err := cluster.Root.Region("region-a")
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, ServeConfig{Identity: cluster.Source(t, cluster.Agent("region-a", "agent-1")), Handle: echo, Renew: region.RenewFor})
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, identitytest.Key(t))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(r *Renewals) error {
		_, err := r.Renew(t.Context(), strings.TrimPrefix(s.url, "https://"), request)
		return err
	}
	one := NewRenewals(cluster.Source(t, cluster.Host("region-a", "host-1")))
	begun, made := time.Now(), 0
	for range 5 * maxRenewalBurstOfOne {
		err := ask(one)
		if err == nil {
			made++
		} else if !strings.Contains(err.Error(), "one a minute is enough") {
			t.Fatal(err)
		}
	}
	if most := maxRenewalBurstOfOne + int(time.Since(begun).Minutes()*maxRenewalsOfOne); made > most || made < maxRenewalBurstOfOne {
		t.Errorf("%d certificates for one host, at most %d may be", made, most)
	}
	if err := ask(NewRenewals(cluster.Source(t, cluster.Host("region-a", "host-2")))); err != nil {
		t.Errorf("another host: %v", err)
	}
}
