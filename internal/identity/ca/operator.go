package ca

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

// operatorLife is how long an operator's certificate holds: nothing renews it by itself.
const operatorLife = 90 * 24 * time.Hour

// operatorPath is before an operator's name. It is none of identity's kinds: such a
// certificate is nobody's among members, whoever has it.
const operatorPath = "/operator/"

// IssueOperator makes a certificate of who commands over HTTP (`--http-client-ca`) for a
// public key: spiffe://CLUSTER/operator/NAME.
func (a *Authority) IssueOperator(name string, public crypto.PublicKey) ([]*x509.Certificate, error) {
	if err := (identity.ID{Cluster: a.cluster, Kind: identity.Seeder, Name: name}).Check(); err != nil {
		return nil, fmt.Errorf("issuing a certificate of an operator: %w", err)
	}
	template, err := a.template(name, operatorLife)
	if err != nil {
		return nil, err
	}
	template.URIs = []*url.URL{{Scheme: "spiffe", Host: a.cluster, Path: operatorPath + name}}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	leaf, err := sign(template, a.cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("issuing a certificate of an operator: %w", err)
	}
	return []*x509.Certificate{leaf}, nil
}

// operatorOf is the name of the operator that a certificate of this cluster is of.
func (a *Authority) operatorOf(c *x509.Certificate) (string, bool) {
	if len(c.URIs) != 1 || c.URIs[0].Scheme != "spiffe" || c.URIs[0].Host != a.cluster {
		return "", false
	}
	return strings.CutPrefix(c.URIs[0].Path, operatorPath)
}

// WriteOperator is Write for an operator.
func (d *Dir) WriteOperator(name, dir string) ([]*x509.Certificate, error) {
	files, err := newFiles(dir)
	if err != nil {
		return nil, err
	}
	return d.installOperator(name, files)
}

func (d *Dir) installOperator(name string, files identity.Files) ([]*x509.Certificate, error) {
	return d.installBy(files, func(public crypto.PublicKey) ([]*x509.Certificate, error) { return d.IssueOperator(name, public) })
}
