package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Why a certificate is refused, where the caller decides by it.
var (
	// ErrExpired may be renewed for RenewFor.
	ErrExpired = errors.New("the certificate has expired")
	// ErrNotYet is mostly a clock that is wrong.
	ErrNotYet = errors.New("the certificate is not valid yet")
	// ErrDenied is what the deny list names.
	ErrDenied = errors.New("the certificate is denied")
	// ErrUnknown is what no root vouches for.
	ErrUnknown = errors.New("the certificate is of no authority that is trusted here")
)

// maxChain bounds the certificates that somebody shows: a leaf, its region's issuer,
// those between it and the root, one to spare.
const maxChain = 5

// Peer is who somebody else is, as verification has left it.
type Peer struct {
	ID          ID
	Fingerprint Fingerprint
	Certificate *x509.Certificate
	// Chain is what was shown, the leaf first.
	Chain []*x509.Certificate
}

// Verify says whose chain this is, the leaf first: by the roots and the deny list as
// they are now, at the clock's time. The error says whose certificate and why.
func (s *Source) Verify(chain []*x509.Certificate) (Peer, error) {
	p, err := s.current.Load().verify(chain, s.clock.Now(), false)
	return p, reasoned(err)
}

// reasoned gives what verification says its reason.
func reasoned(err error) error {
	if err == nil {
		return nil
	}
	return Refuse(reasonOf(err), err)
}

// VerifyForRenewal accepts beside those of Verify who has expired for less than
// RenewFor. Such a peer may renew its own certificate and do nothing else.
func (s *Source) VerifyForRenewal(chain []*x509.Certificate) (Peer, error) {
	p, err := s.current.Load().verify(chain, s.clock.Now(), true)
	return p, reasoned(err)
}

// Recheck reports why a peer that was verified is not accepted any more.
func (s *Source) Recheck(p Peer) error {
	_, err := s.Verify(p.Chain)
	return err
}

func (st *state) verify(chain []*x509.Certificate, now time.Time, renewal bool) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, Refuse(Missing, errors.New("no certificate was shown"))
	}
	if len(chain) > maxChain {
		return Peer{}, fmt.Errorf("%d certificates were shown, at most %d", len(chain), maxChain)
	}
	leaf := chain[0]
	id, err := Of(leaf)
	if err != nil {
		return Peer{}, err
	}
	if err := st.verifyLeaf(id, chain, now, renewal); err != nil {
		return Peer{}, fmt.Errorf("certificate of %s: %w", id, err)
	}
	return Peer{ID: id, Fingerprint: FingerprintOf(leaf), Certificate: leaf, Chain: chain}, nil
}

func (st *state) verifyLeaf(id ID, chain []*x509.Certificate, now time.Time, renewal bool) error {
	leaf := chain[0]
	switch {
	case id.Cluster != st.cluster:
		return Refuse(Misplaced, fmt.Errorf("it is of cluster %s, this is %s", id.Cluster, st.cluster))
	case leaf.IsCA:
		return errors.New("it is an authority's, which nobody runs by")
	case leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("its key may not sign")
	}
	if err := CheckKey(leaf.PublicKey); err != nil {
		return err
	}
	if err := st.denied.check(id, leaf); err != nil {
		return err
	}
	at := now
	switch {
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("%w: it begins at %s and here it is %s; compare the clocks", ErrNotYet, stamp(leaf.NotBefore), stamp(now))
	case now.After(leaf.NotAfter):
		if !renewal {
			return fmt.Errorf("%w: it ended at %s and here it is %s", ErrExpired, stamp(leaf.NotAfter), stamp(now))
		}
		if now.After(leaf.NotAfter.Add(RenewFor)) {
			return fmt.Errorf("%w: it ended at %s, and may be renewed for %d days; issue another with `seeder ca issue`, or remove it and join with a token of `seeder ca token`", ErrExpired, stamp(leaf.NotAfter), RenewFor/(24*time.Hour))
		}
		at = leaf.NotAfter
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: st.roots, Intermediates: intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	// Each chain is an authority by itself: one that holds is enough.
	var errs []error
	for _, c := range chains {
		err := st.checkAuthorities(id, c[1:], now, at)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errs[0]
}

// checkAuthorities holds the issuers of a leaf, the root among them, to what each may
// issue. The root must hold now; at is when the others must: for a renewal that is when the
// leaf ended, which its issuer may not have outlived.
func (st *state) checkAuthorities(id ID, authorities []*x509.Certificate, now, at time.Time) error {
	for i, a := range authorities {
		if err := st.denied.check(ID{}, a); err != nil {
			return fmt.Errorf("issued by %q: %w", a.Subject.CommonName, err)
		}
		if i == len(authorities)-1 {
			at = now
		}
		if at.After(a.NotAfter) {
			return fmt.Errorf("issued by %q: %w: it ended at %s", a.Subject.CommonName, ErrExpired, stamp(a.NotAfter))
		}
		domain, constrained, err := domainOf(a)
		if err != nil {
			return fmt.Errorf("issued by %q: %w", a.Subject.CommonName, err)
		}
		switch {
		case !constrained:
		case domain == st.cluster && id.Kind != Host && strings.Contains(domain, ".") && i < len(authorities)-1:
			// Held to region-a.prod it may be that of the hosts of region-a in prod as well.
			return fmt.Errorf("issued by %q, which issues for %s: with a dot in its name that may be a region's hosts of another cluster; "+
				"trust this authority by itself, or name the cluster without a dot", a.Subject.CommonName, domain)
		case domain == st.cluster && id.Kind != Host:
		case domain == st.cluster:
			return Refuse(Misplaced, fmt.Errorf("issued by %q, which issues for %s alone", a.Subject.CommonName, domain))
		case id.Kind != Host:
			return Refuse(Misplaced, fmt.Errorf("issued by %q, which issues hosts of %s and no %s", a.Subject.CommonName, domain, id.Kind))
		case id.TrustDomain() != domain:
			return Refuse(Misplaced, fmt.Errorf("issued by %q, which issues hosts of %s alone", a.Subject.CommonName, domain))
		}
	}
	return nil
}

// domainOf is the one trust domain that an authority is held to, by its name constraint
// or by its own URI (SPIFFE X.509-SVID, 3.2: that of a signing certificate has no path).
func domainOf(a *x509.Certificate) (domain string, constrained bool, err error) {
	permitted := a.PermittedURIDomains
	for _, u := range a.URIs {
		permitted = append(permitted[:len(permitted):len(permitted)], u.Host)
	}
	for _, d := range permitted {
		if constrained && d != domain {
			return "", false, fmt.Errorf("it is held to several trust domains (%.80q, %.80q), expected one", domain, d)
		}
		domain, constrained = d, true
	}
	if constrained && (domain == "" || domain[0] == '.') {
		return "", false, fmt.Errorf("it is held to %.80q, expected one trust domain", domain)
	}
	return domain, constrained, nil
}

// CheckKey accepts the kinds of keys whose signatures fit a member's meta.
func CheckKey(public any) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return nil
		}
		return fmt.Errorf("its key is ECDSA %s, expected P-256 or Ed25519", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("its key is %T, expected ECDSA P-256 or Ed25519", public)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
