package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/landfall-dist/landfall/internal/fresh"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// maxAuthorities bounds the certificates of a CA file.
	maxAuthorities = 256
	// maxShown bounds a client's certificate and what is between it and its authority.
	maxShown = 5
	// maxKeyFile bounds a file of a key in bytes.
	maxKeyFile = 256 << 10
)

// TLS says by which files a daemon is spoken to over https. They are read again when they
// have changed, at the next connection; while one cannot be read that of before is used.
type TLS struct {
	// CA has the certificates, in PEM, that the daemon's is checked against; empty for the
	// system's.
	CA string
	// Cert and Key are an operator's certificate, with what is between it and its
	// authority, and its key, in PEM; empty to show none.
	Cert, Key string
	// Member is "seeder" or "agent". With CA, a certificate of any member of that kind is
	// accepted then (spiffe://CLUSTER/seeder/NAME), as daemons with `--http-cert identity`
	// show it: it has no host's name. Empty accepts certificates of the URL's host alone.
	Member string
}

// Client is an http.Client for the Client of one daemon, at its URL. The error says which
// file cannot be used.
func (t TLS) Client(daemon string) (*http.Client, error) {
	u, err := url.Parse(daemon)
	if err != nil {
		return nil, fmt.Errorf("URL of a daemon: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CA != "" {
		authorities, err := fresh.Open(func() (*x509.CertPool, error) { return readAuthorities(t.CA) }, t.CA)
		if err != nil {
			return nil, fmt.Errorf("authorities of a daemon's certificate: %w", err)
		}
		config.InsecureSkipVerify = true // VerifyConnection does it, by the authorities as they are then
		config.VerifyConnection = func(cs tls.ConnectionState) error {
			authorities.Refresh() //nolint:errcheck // those of before hold
			return t.verify(u.Hostname(), cs.PeerCertificates, authorities.Load())
		}
	}
	if t.Cert != "" {
		own, err := fresh.Open(t.readOwn, t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		// Whatever authorities the daemon names: it says what is wrong with another's.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			own.Refresh() //nolint:errcheck // that of before is used
			return own.Load(), nil
		}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = config
	return &http.Client{Transport: transport}, nil
}

// verify accepts a certificate of the host that was asked for, or a member's. A connection
// does not know the host where that is an address.
func (t TLS) verify(host string, shown []*x509.Certificate, authorities *x509.CertPool) error {
	between := x509.NewCertPool()
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	err := errors.New("the URL names no host")
	if host != "" {
		_, err = shown[0].Verify(x509.VerifyOptions{Roots: authorities, Intermediates: between, DNSName: host})
	}
	if _, none := identity.Of(shown[0]); err != nil && none == nil && t.Member != "" {
		var p identity.Peer
		if p, err = identity.VerifyBy(authorities, shown, time.Now()); err == nil && string(p.ID.Kind) != t.Member {
			err = fmt.Errorf("the certificate is of %s, which is no %s", p.ID, t.Member)
		}
	}
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: shown, Err: err}
	}
	return nil
}

func readAuthorities(file string) (*x509.CertPool, error) {
	certs, err := identity.ReadCerts(file, maxAuthorities)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}

func (t TLS) readOwn() (*tls.Certificate, error) {
	certs, err := identity.ReadCerts(t.Cert, maxShown)
	if err != nil {
		return nil, err
	}
	key, err := private.Read(t.Key, maxKeyFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(identity.FormatCerts(certs...), key)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", t.Cert, t.Key, err)
	}
	return &pair, nil
}
