package command

import (
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/audit"
	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/web"
	"github.com/landfall-dist/landfall/seeder/client"
)

// ownCertificate is what --http-cert is given where the HTTP side shows the member's own.
const ownCertificate = "identity"

// HTTPFlags are those of a daemon that say who may do what over HTTP, beside
// --operator-token, and with which certificate it answers.
func HTTPFlags() []cli.Flag {
	return []cli.Flag{
		File("operators", "`FILE` with named operators, each with a role and a hash of its token, or its certificate (see `seeder operator`); it is read again when it changes"),
		Bool("close-reading", "ask for an operator's token also where nothing is changed; health checks stay open"),
		File("http-cert", "`FILE` with the certificate of the HTTP side and what its chain needs, as PEM: then it speaks https alone; or the word identity, for that of --identity"),
		File("http-key", "`FILE` with that certificate's key; both are read again when they change"),
		File("http-client-ca", "`FILE` with the authorities, as PEM, by whose certificates operators of --operators may show who they are, in the place of a token; it is read again when it changes"),
	}
}

// OpenSecurity reads who may do what, and the certificate. That of the identity, and the
// record of changes, come with Secure.
func OpenSecurity(c *cli.Context) (s web.Security, err error) {
	cert, key := c.String("http-cert"), c.String("http-key")
	if s.CloseReading = c.Bool("close-reading"); s.CloseReading && c.String("operators") == "" && c.String("operator-token") == "" {
		return s, Usagef("--close-reading needs --operators FILE or --operator-token FILE, or nobody could read")
	}
	if c.String("http-client-ca") != "" && (c.String("operators") == "" || cert == "") {
		return s, Usagef("--http-client-ca needs --operators FILE, which says whose certificates are operators', and --http-cert: they are shown over https alone")
	}
	if cert != ownCertificate && (cert == "") != (key == "") || cert == ownCertificate && key != "" {
		return s, Usagef("--http-cert and --http-key go together, but for --http-cert %s, which has a key", ownCertificate)
	}
	s.Access, err = operator.Open(operator.Files{Token: c.String("operator-token"), List: c.String("operators"), ClientCA: c.String("http-client-ca")})
	if err == nil && cert != "" && cert != ownCertificate {
		s.Certificate, err = web.OpenCertificate(cert, key)
	}
	return s, err
}

// Secure has the member's HTTP side keep the record of changes, and speak TLS where there
// is a certificate for it.
func (m *Member) Secure(c *cli.Context, s *web.Security) (err error) {
	if c.String("http-cert") == ownCertificate {
		if m.Identity == nil {
			return Usagef("--http-cert %s needs an --identity, and --tls prefer or require", ownCertificate)
		}
		s.Certificate = web.CertificateOf(m.Identity.Certificate)
	}
	m.HTTP = s.Listener(m.HTTP)
	s.Audit, err = audit.Open(m.DataDir, m.Logger)
	m.audit = s.Audit
	return err
}

// CAFlag is that of commands that ask a daemon over https.
func CAFlag() cli.Flag {
	return File("http-ca", "`FILE` with the certificates that an https URL's is checked against (default: the system's); where the daemon shows its --identity it is the cluster's authority, ca.pem")
}

// ClientFlags are those of commands that ask a daemon over https for what not everybody may.
func ClientFlags() []cli.Flag {
	return []cli.Flag{
		CAFlag(),
		File("client-cert", "`FILE` with an operator's certificate, which is shown in the place of a token (--http-client-ca)"),
		File("client-key", "`FILE` with that certificate's key"),
	}
}

// Client asks a daemon, by the ClientFlags and with the token of the OperatorTokenFlag.
// member is what the daemon is, seeder or agent.
func Client(c *cli.Context, member, url string) (*client.Client, error) {
	return NewClient(member, url, c.String)
}

// NewClient is Client with flags that are had otherwise.
func NewClient(member, url string, flag func(name string) string) (*client.Client, error) {
	to := &client.Client{URL: strings.TrimSuffix(url, "/")}
	if file := flag("operator-token"); file != "" {
		token, err := operator.ReadToken(file)
		if err != nil {
			return nil, err
		}
		to.Token = string(token)
	}
	files := client.TLS{CA: flag("http-ca"), Cert: flag("client-cert"), Key: flag("client-key"), Member: member}
	if (files.Cert == "") != (files.Key == "") {
		return nil, Usagef("--client-cert and --client-key go together")
	}
	if files.CA == "" && files.Cert == "" {
		return to, nil
	}
	var err error
	to.HTTP, err = files.Client(to.URL)
	return to, err
}
