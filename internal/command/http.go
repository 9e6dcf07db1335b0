package command

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/audit"
	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/web"
	"github.com/landfall-dist/landfall/seeder/client"
)

// HTTPFlags are those of a daemon that say who may do what over HTTP, beside
// --operator-token, and with which certificate it answers.
func HTTPFlags() []cli.Flag {
	return []cli.Flag{
		File("operators", "`FILE` with named operators, each with a role and a hash of its token (see `seeder operator`); it is read again when it changes"),
		Bool("close-reading", "ask for an operator's token also where nothing is changed; health checks stay open"),
		File("http-cert", "`FILE` with the certificate of the HTTP side and what its chain needs, as PEM: then it speaks https alone"),
		File("http-key", "`FILE` with that certificate's key; both are read again when they change"),
	}
}

// OpenSecurity reads who may do what, and the certificate. The record of changes is begun
// by Record.
func OpenSecurity(c *cli.Context) (s web.Security, err error) {
	token, err := OperatorToken(c)
	if err != nil {
		return s, err
	}
	if s.Access, err = operator.NewAccess(token, c.String("operators")); err != nil {
		return s, err
	}
	if s.CloseReading = c.Bool("close-reading"); s.CloseReading && s.Access == nil {
		return s, Usagef("--close-reading needs --operators FILE or --operator-token FILE, or nobody could read")
	}
	cert, key := c.String("http-cert"), c.String("http-key")
	if (cert == "") != (key == "") {
		return s, Usagef("--http-cert and --http-key go together")
	}
	if cert != "" {
		s.Certificate, err = web.OpenCertificate(cert, key)
	}
	return s, err
}

// Secure has the member's HTTP side keep the record of changes, and speak TLS where there
// is a certificate for it.
func (m *Member) Secure(s *web.Security) (err error) {
	if s.Certificate != nil {
		m.HTTP = s.Certificate.Listener(m.HTTP)
	}
	s.Audit, err = audit.Open(m.DataDir, m.Logger)
	m.audit = s.Audit
	return err
}

// CAFlag is that of commands that ask a daemon over https.
func CAFlag() cli.Flag {
	return File("http-ca", "`FILE` with the certificates that an https URL's is checked against (default: the system's)")
}

// Client asks a daemon, with the CAFlag's certificates and the token of the
// OperatorTokenFlag.
func Client(c *cli.Context, url string) (*client.Client, error) {
	return NewClient(url, c.String("operator-token"), c.String("http-ca"))
}

// NewClient asks a daemon, with a token and certificates from files, where those are named.
func NewClient(url, tokenFile, caFile string) (*client.Client, error) {
	to := &client.Client{URL: strings.TrimSuffix(url, "/")}
	if tokenFile != "" {
		token, err := operator.ReadToken(tokenFile)
		if err != nil {
			return nil, err
		}
		to.Token = string(token)
	}
	if caFile == "" {
		return to, nil
	}
	text, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("--http-ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("--http-ca: %s has no certificate in PEM", caFile)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	to.HTTP = &http.Client{Transport: transport}
	return to, nil
}
