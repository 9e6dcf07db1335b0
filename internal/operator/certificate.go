package operator

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

// An operator may show a certificate in the place of a token. In the list it stands by the
// one URI that such a certificate names (SPIFFE X.509-SVID, section 2), which stays the same when
// it is renewed, or by the SHA-256 of the certificate where it names none. Its subject is
// no name: what an authority writes there is as often a remark, it has many spellings, and
// several authorities may use the same.

const (
	// maxShown bounds the certificates that a client shows: its own and what is between
	// that and the authority.
	maxShown = 5
	// maxAuthorities bounds the authorities whose certificates are accepted.
	maxAuthorities = 64
	// maxURI bounds the URI of a certificate in bytes: a line has maxLine.
	maxURI = 256
)

// Why nobody is known by a certificate.
var (
	// ErrCertificate is for one that is not to be believed.
	ErrCertificate = errors.New("the client certificate is not accepted")
	// ErrNotListed is for one that is to be believed, of nobody who is an operator.
	ErrNotListed = errors.New("the client certificate is no operator's")
)

// Authorities are those whose certificates operators may show; nil where none is asked for.
func (a *Access) Authorities() *x509.CertPool {
	if a == nil || a.clientCA == nil {
		return nil
	}
	return a.clientCA.Load()
}

// WhoShows is the operator of a certificate, which comes first in what was shown; that its
// key is the client's was seen by TLS. The error wraps ErrMissing, ErrNotListed, or
// ErrCertificate, beside the operator that it was where its time in the list is over.
func (a *Access) WhoShows(shown []*x509.Certificate, now time.Time) (Operator, error) {
	authorities := a.Authorities()
	switch {
	case authorities == nil || len(shown) == 0:
		return Operator{}, ErrMissing
	case len(shown) > maxShown:
		return Operator{}, fmt.Errorf("%w: %d certificates were shown, at most %d", ErrCertificate, len(shown), maxShown)
	}
	leaf := shown[0]
	switch {
	case now.After(leaf.NotAfter):
		return Operator{}, fmt.Errorf("%w: that of %s has expired, on %s", ErrCertificate, NameOf(leaf), stamp(leaf.NotAfter))
	case now.Before(leaf.NotBefore):
		return Operator{}, fmt.Errorf("%w: that of %s begins at %s, and here it is %s; compare the clocks", ErrCertificate, NameOf(leaf), stamp(leaf.NotBefore), stamp(now))
	case leaf.IsCA:
		return Operator{}, fmt.Errorf("%w: that of %s is an authority's", ErrCertificate, NameOf(leaf))
	}
	between := x509.NewCertPool()
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: authorities, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return Operator{}, fmt.Errorf("%w: that of %s: %w (--http-client-ca says whose are)", ErrCertificate, NameOf(leaf), err)
	}
	list := a.list.Load()
	o, ok := list.byFingerprint[sha256.Sum256(leaf.Raw)]
	if uri, named := uriOf(leaf); !ok && named {
		o, ok = list.byURI[uri]
	}
	switch {
	case !ok:
		return Operator{}, fmt.Errorf("%w: that of %s; `seeder operator add NAME --certificate` makes it one's", ErrNotListed, NameOf(leaf))
	case o.Expired(now):
		return o, fmt.Errorf("%w: %s was an operator until %s", ErrCertificate, o.Name, stamp(o.Expires))
	}
	return o, nil
}

// uriOf is the URI that a certificate names, where that is exactly one.
func uriOf(c *x509.Certificate) (string, bool) {
	if len(c.URIs) != 1 {
		return "", false
	}
	return c.URIs[0].String(), true
}

// NameOf is what a certificate is called in what is said of it.
func NameOf(c *x509.Certificate) string {
	if uri, ok := uriOf(c); ok {
		return fmt.Sprintf("%.256s", uri)
	}
	sum := sha256.Sum256(c.Raw)
	return fmt.Sprintf("%.100q (SHA-256 %x…)", c.Subject, sum[:6])
}

// Certificate says by which certificates an operator is known.
type Certificate struct {
	uri         string
	fingerprint [sha256.Size]byte // where there is no URI
}

// String is how it stands in a list.
func (c Certificate) String() string {
	if c.uri != "" {
		return uriPrefix + c.uri
	}
	return fingerprintPrefix + hex.EncodeToString(c.fingerprint[:])
}

// ParseCertificate reads what an operator is known by: a URI (spiffe://…), the SHA-256 of
// a certificate in hexadecimal digits, with colons or without, or a file of a certificate
// in PEM, of which the one URI that it names is taken, or else its SHA-256.
func ParseCertificate(s string) (Certificate, error) {
	if strings.Contains(s, "://") {
		return Certificate{uri: s}, checkURI(s)
	}
	if b, err := hex.DecodeString(strings.ReplaceAll(s, ":", "")); err == nil && len(b) == sha256.Size {
		return Certificate{fingerprint: [sha256.Size]byte(b)}, nil
	}
	certs, err := identity.ReadCerts(s, maxShown)
	if err != nil {
		return Certificate{}, fmt.Errorf("%.256q is no URI (spiffe://…), no SHA-256 of a certificate and no file of one: %w", s, err)
	}
	if uri, ok := uriOf(certs[0]); ok {
		return Certificate{uri: uri}, checkURI(uri)
	}
	return Certificate{fingerprint: sha256.Sum256(certs[0].Raw)}, nil
}

// checkURI accepts names of the form that SPIFFE has.
func checkURI(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || len(s) > maxURI || u.Scheme != "spiffe" || u.Host == "" || u.Host != strings.ToLower(u.Host) || u.Port() != "" ||
		len(u.Path) < 2 || strings.HasSuffix(u.Path, "/") || u.RawQuery != "" || u.Fragment != "" || u.User != nil || u.String() != s:
		return fmt.Errorf("%.256q is no name such as spiffe://prod/operator/ci, of at most %d bytes", s, maxURI)
	}
	return nil
}

func readAuthorities(file string) (*x509.CertPool, error) {
	certs, err := identity.ReadCerts(file, maxAuthorities)
	if err != nil {
		return nil, fmt.Errorf("authorities of client certificates: %w", err)
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
