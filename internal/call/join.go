package call

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/awsproof"
	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// joinInterval is the time from one round of asking all seeders to the next, at most,
	// and firstJoinInterval that after the first.
	firstJoinInterval, joinInterval = time.Second, 10 * time.Second
	// sayWaiting is the time between two lines about waiting for a first certificate.
	sayWaiting = 30 * time.Second
	// maxKeyFile bounds the file of a key in bytes.
	maxKeyFile = 64 << 10
)

// ErrNoCertificate is why a member gets no first certificate, where asking again would
// change nothing.
var ErrNoCertificate = errors.New("no seeder gives a certificate")

// Joiner gets a new member its first certificate, and keeps it in files.
type Joiner struct {
	// Files are where key, certificate, authorities and the list of denied certificates are
	// kept. A key that is there already is used, so that who asks again does so with the
	// same; so are authorities.
	Files identity.Files
	// Anchor is the authority by which a seeder is known.
	Anchor identity.Anchor
	// Ask is who asks, and the token.
	Ask EnrolRequest
	// Prove proves who asks to AWS, for a cluster and the SHA-256 of a public key; nil for
	// who has a token.
	Prove func(ctx context.Context, cluster string, key [sha256.Size]byte) (awsproof.Proof, error)
	// Seeders are the addresses where seeders may be, as host:port.
	Seeders []string
	Logger  *slog.Logger
}

// Join asks the seeders until one gives a certificate, all that can be reached refuse, or
// ctx ends. Seeders that cannot be reached are waited for.
func (j *Joiner) Join(ctx context.Context) error {
	if len(j.Seeders) == 0 {
		return errors.New("no seeder is known to ask for a certificate; --join names one")
	}
	key, err := j.key()
	if err != nil {
		return err
	}
	if j.Ask.Request, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		return fmt.Errorf("making a request for a certificate: %w", err)
	}
	var said time.Time
	for wait := firstJoinInterval; ; wait = min(2*wait, joinInterval) {
		err := j.round(ctx, key)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrNoCertificate):
			return err
		case time.Since(said) >= sayWaiting:
			said = time.Now()
			j.Logger.Warn("waiting for a seeder that gives this member its first certificate", "seeders", strings.Join(j.Seeders, ","), "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait/2 + mathrand.N(wait)):
		}
	}
}

// key is the one in the file, or a new one that is kept there before it is used.
func (j *Joiner) key() (crypto.Signer, error) {
	text, err := private.Read(j.Files.Key, maxKeyFile)
	if err == nil {
		keys, err := identity.ParseKeys(text)
		if err == nil {
			err = identity.CheckKey(keys[0].Public())
		}
		if err != nil {
			return nil, fmt.Errorf("the key of a certificate that is to be made, in %s: %w", j.Files.Key, err)
		}
		return keys[0], nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the key of a certificate that is to be made: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if text, err = identity.FormatKeys(key); err != nil {
		return nil, err
	}
	for _, dir := range []string{filepath.Dir(j.Files.Key), filepath.Dir(j.Files.Cert)} {
		if err := private.MkdirAll(dir); err != nil {
			return nil, fmt.Errorf("making the directory of an identity: %w", err)
		}
	}
	if err := private.Replace(j.Files.Key, text); err != nil {
		return nil, fmt.Errorf("keeping a key: %w", err)
	}
	return key, nil
}

// round asks each seeder once.
func (j *Joiner) round(ctx context.Context, key crypto.Signer) error {
	var errs []error
	final := true
	for _, addr := range j.Seeders {
		err := j.ask(ctx, addr, key)
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
		final = final && (errors.Is(err, errRefused) || errors.Is(err, identity.ErrOtherAuthority))
	}
	err := errors.Join(errs...)
	if final {
		return fmt.Errorf("%w: %w", ErrNoCertificate, err)
	}
	return err
}

// ask asks one seeder, which shows who it is before it hears anything.
func (j *Joiner) ask(ctx context.Context, addr string, key crypto.Signer) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, err := (&tls.Dialer{Config: j.Anchor.Client()}).DialContext(ctx, "tcp", addr)
	if _, noProtocol := identity.Alerted(err); noProtocol {
		return fmt.Errorf("%w: it is no seeder with --ca DIR, which alone gives certificates", errRefused)
	}
	if err != nil {
		return err
	}
	conn := raw.(*tls.Conn)
	defer conn.Close()
	by, err := j.Anchor.Seeder(conn.ConnectionState().PeerCertificates)
	if err != nil {
		return err
	}
	ask := j.Ask
	if j.Prove != nil {
		public, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return err
		}
		proof, err := j.Prove(ctx, by.ID.Cluster, sha256.Sum256(public))
		if err != nil {
			return err
		}
		ask.AWS = &proof
	}
	text, err := post(ctx, conn, addr, ask)
	if err != nil {
		return err
	}
	return j.keep(by, text, key)
}

// post sends the request on a connection.
func post(ctx context.Context, conn net.Conn, addr string, ask EnrolRequest) ([]byte, error) {
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+"/enrol", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{
		DialTLSContext:    func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 8 << 10,
	}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
		return readAll(answer.Body, maxEnrolAnswer)
	case http.StatusForbidden, http.StatusBadRequest:
		err = errRefused
	default:
		err = errors.New("the other side can give none now")
	}
	reason, _ := io.ReadAll(io.LimitReader(answer.Body, maxReason))
	return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(strings.ToValidUTF8(string(reason), "")))
}

// keep looks at what a seeder has answered, and writes the files, the certificate last.
func (j *Joiner) keep(by identity.Peer, text []byte, key crypto.Signer) error {
	var a EnrolAnswer
	if err := json.Unmarshal(text, &a); err != nil {
		return fmt.Errorf("answer of %s: %w", by.ID, err)
	}
	chain, err := identity.ParseCerts([]byte(a.Certificates), maxJoinChain)
	if err != nil {
		return fmt.Errorf("certificate from %s: %w", by.ID, err)
	}
	roots := j.Anchor.Roots
	if len(roots) == 0 {
		if roots, err = identity.ParseCerts([]byte(a.Roots), maxJoinRoots); err != nil {
			return fmt.Errorf("authorities from %s: %w", by.ID, err)
		}
	}
	pinned := func(c *x509.Certificate) bool { return identity.FingerprintOf(c) == j.Anchor.Pin }
	if j.Anchor.Pin != (identity.Fingerprint{}) && !slices.ContainsFunc(roots, pinned) {
		return fmt.Errorf("authorities from %s: that of the join token is not among them", by.ID)
	}
	p, err := identity.Anchor{Roots: roots, Clock: j.Anchor.Clock}.Verify(chain)
	if err != nil {
		return fmt.Errorf("certificate from %s: %w", by.ID, err)
	}
	want := identity.ID{Cluster: by.ID.Cluster, Kind: j.Ask.Kind, Region: j.Ask.Region, Name: j.Ask.Name}
	if want.Name == "" {
		want.Name = p.ID.Name
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if p.ID != want || !ok || !public.Equal(p.Certificate.PublicKey) {
		return fmt.Errorf("certificate from %s: it is of %s and its key, expected %s and the own", by.ID, p.ID, want)
	}
	if len(j.Anchor.Roots) == 0 {
		err = private.Replace(j.Files.Roots, identity.FormatCerts(roots...))
	}
	if err == nil && j.Files.Denied != "" {
		err = private.Replace(j.Files.Denied, []byte(a.Denied))
	}
	if err == nil {
		err = private.Replace(j.Files.Cert, identity.FormatCerts(chain...))
	}
	if err != nil {
		return fmt.Errorf("keeping the first certificate: %w", err)
	}
	j.Logger.Info("first certificate received", "id", p.ID.String(), "seeder", by.ID.String(), "fingerprint", p.Fingerprint.String(), "expires", p.Certificate.NotAfter.UTC().Format(time.RFC3339))
	return nil
}

// maxJoinChain and maxJoinRoots bound the certificates of an answer.
const maxJoinChain, maxJoinRoots = 5, 16
