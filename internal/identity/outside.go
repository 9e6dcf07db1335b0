package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"
)

// Certificate is the own certificate with its key and what is between it and the root, for
// connections that are not between members. The caller must not change it.
func (s *Source) Certificate() *tls.Certificate { return s.current.Load().certificate }

// VerifyBy says whose chain this is, the leaf first, for who is no member and has no deny
// list: by these roots, whatever cluster they vouch for.
func VerifyBy(roots *x509.CertPool, chain []*x509.Certificate, now time.Time) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, fmt.Errorf("no certificate was shown")
	}
	id, err := Of(chain[0])
	if err != nil {
		return Peer{}, err
	}
	st := &state{cluster: id.Cluster, roots: roots}
	return st.verify(chain, now, false)
}
