package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

// TestReasons: each refusal of verification has its reason, which survives what is said
// around it, and counts once somebody is turned away for it.
func TestReasons(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	root, stranger := newForge(t, now), newForge(t, now)
	denied := root.leaf(nil, "spiffe://prod/agent/region-a/gone")
	s := own(t, root, func() time.Time { return now }, "id spiffe://prod/agent/region-a/gone")
	byURI := root.under(region("prod"))
	const seeder = "spiffe://prod/seeder/s1"
	for reason, chains := range map[identity.Reason][][]*x509.Certificate{
		identity.Denied:    {denied},
		identity.Expired:   {root.leaf(func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }, seeder)},
		identity.NotYet:    {root.leaf(func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }, seeder)},
		identity.Authority: {stranger.leaf(nil, seeder)},
		identity.Misplaced: {root.leaf(nil, "spiffe://test/seeder/s1"), byURI.leaf(nil, "spiffe://region-a.prod/host/h1")},
		identity.Missing:   {nil},
		identity.Invalid:   {root.leaf(nil), append(root.leaf(nil, seeder), root.cert, root.cert, root.cert, root.cert)},
	} {
		for _, chain := range chains {
			_, err := s.Verify(chain)
			s.Count(fmt.Errorf("turned away: %w", identity.Refuse(identity.Invalid, err)))
		}
		if n := s.Refused(reason); n != int64(len(chains)) {
			t.Errorf("%s: %d, expected %d", reason, n, len(chains))
		}
	}
	expect := s.Client(identity.PeerProto, identity.Exactly(identity.ID{Cluster: "prod", Kind: identity.Seeder, Name: "s2"}))
	err := expect.VerifyConnection(tls.ConnectionState{NegotiatedProtocol: identity.PeerProto, PeerCertificates: root.leaf(nil, seeder)})
	s.Count(err)
	if n := s.Refused(identity.Misplaced); err == nil || n != 3 {
		t.Errorf("another than was expected: %v, %d", err, n)
	}
	s.Count(nil)
	s.Count(errors.New("connection reset"))
	var nobody *identity.Source
	nobody.Count(err)
	total := nobody.Refused(identity.Denied)
	for _, r := range identity.Reasons {
		total += s.Refused(r)
	}
	if total != 10 {
		t.Errorf("%d in all", total)
	}
	if identity.Refuse(identity.Denied, nil) != nil {
		t.Error("an error of nothing")
	}
}
