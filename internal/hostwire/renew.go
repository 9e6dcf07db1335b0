package hostwire

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/landfall-dist/landfall/internal/identity"
)

// Renewals asks a region's agents for a host's next certificate, as call.Renewer wants it.
type Renewals struct{ client http.Client }

// NewRenewals asks with a host's certificate, which may have ended lately.
func NewRenewals(own *identity.Source) *Renewals {
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	return &Renewals{http.Client{
		Timeout: helloTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
		// A connection for each time: that is once in eight hours.
		Transport: &http.Transport{
			TLSClientConfig: ClientTLS(own), Protocols: &protocols,
			DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
		},
	}}
}

// Renew has the agent at an address, as host:port, make a certificate for a request (PKCS
// #10, DER), and returns it in PEM.
func (r *Renewals) Renew(ctx context.Context, addr string, request []byte) ([]byte, error) {
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+renewPath, bytes.NewReader(request))
	if err != nil {
		return nil, fmt.Errorf("asking %s for a certificate: %w", addr, err)
	}
	answer, err := r.client.Do(post)
	if err != nil {
		return nil, fmt.Errorf("asking %s for a certificate: %w", addr, err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(io.LimitReader(answer.Body, maxCerts))
	if err != nil {
		return nil, fmt.Errorf("asking %s for a certificate: %w", addr, err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s gives no certificate: %s", addr, strings.TrimSpace(Line(string(b))))
	}
	return b, nil
}
