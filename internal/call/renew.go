package call

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
)

const (
	// renewAfter is the age at which a certificate is renewed, or a third of its life where
	// that is less: of a member's 30 days there are 29 left for what may be in the way, of
	// a host's day 16 hours.
	renewAfter = 24 * time.Hour
	// lookInterval is how often it is looked at whether that is due, and tried again.
	lookInterval = time.Minute
	// startInterval is the same while no seeder's address is known yet.
	startInterval = time.Second
	// sayAgain is the time between two lines about a renewal that fails.
	sayAgain = time.Hour
)

// Renewer keeps this process's certificate fresh: a seeder that has the authority's key
// issues its own, other members ask the seeders, and hosts their region's agents.
type Renewer struct {
	Source *identity.Source
	// Client asks whoever is at an address.
	Client interface {
		Renew(ctx context.Context, addr string, request []byte) ([]byte, error)
	}
	// Authority issues; nil where its key is not here.
	Authority *ca.Dir
	// Seeders are the addresses where seeders may be, as host:port, members or not; for a
	// host those where its agents have streams.
	Seeders func() []string
	Logger  *slog.Logger
	// Tried is called after each try, with its error; nil where nobody asks.
	Tried func(error)

	said time.Time
}

// Run renews when it is due, until ctx ends.
func (r *Renewer) Run(ctx context.Context) error {
	for {
		wait := lookInterval/2 + mathrand.N(lookInterval)
		switch {
		case !r.Due():
		case r.Authority == nil && len(r.Seeders()) == 0:
			wait = startInterval
		default:
			r.try(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// Due reports whether the certificate is older than a day or a third of its life, or has
// ended.
func (r *Renewer) Due() bool {
	leaf := r.Source.Chain()[0]
	now, life := r.Source.Now(), leaf.NotAfter.Sub(leaf.NotBefore)-identity.Backdate
	return now.After(leaf.NotAfter) || now.Sub(leaf.NotBefore) >= identity.Backdate+min(renewAfter, life/3)
}

func (r *Renewer) try(ctx context.Context) {
	err := r.Renew(ctx)
	now := r.Source.Now()
	if r.Tried != nil && ctx.Err() == nil {
		r.Tried(err)
	}
	switch {
	case ctx.Err() != nil:
	case err == nil:
		r.said = time.Time{}
		r.Logger.Info("certificate renewed", "id", r.Source.ID().String(), "expires", r.Source.Expires().UTC().Format(time.RFC3339))
	case now.Sub(r.said) >= sayAgain:
		r.said = now
		r.Logger.Warn("certificate not renewed, it is tried again", "id", r.Source.ID().String(), "expires", r.Source.Expires().UTC().Format(time.RFC3339), "error", err)
	}
}

// Renew makes a new key, has a certificate made for it, and puts both in the place of
// what is in the files.
func (r *Renewer) Renew(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	var chain []*x509.Certificate
	if r.Authority != nil {
		chain, err = r.Authority.Issue(r.Source.ID(), key.Public())
	} else {
		chain, err = r.ask(ctx, key)
	}
	if err != nil {
		return err
	}
	if _, err := r.Source.Verify(chain); err != nil {
		return fmt.Errorf("the certificate that was made: %w", err)
	}
	if err := ca.Install(r.Source.Files(), key, chain); err != nil {
		return err
	}
	return r.Source.Reload()
}

// ask asks one seeder after the other.
func (r *Renewer) ask(ctx context.Context, key crypto.Signer) ([]*x509.Certificate, error) {
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	var errs []error
	for _, addr := range r.Seeders() {
		text, err := r.Client.Renew(ctx, addr, request)
		if err == nil {
			var chain []*x509.Certificate
			if chain, err = identity.ParseCerts(text, 5); err == nil {
				if id, ofErr := identity.Of(chain[0]); ofErr != nil || id != r.Source.ID() {
					err = fmt.Errorf("%s has made a certificate of %s", addr, id)
				} else {
					return chain, nil
				}
			}
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errors.New("nobody is known who may renew it: --join names a seeder, --agents a host's agents")
	}
	return nil, errors.Join(errs...)
}
