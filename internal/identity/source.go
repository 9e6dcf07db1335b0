package identity

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/fresh"
	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// pollInterval is how often the files are looked at.
	pollInterval = 10 * time.Second
	// maxFile bounds a file of certificates or keys in bytes.
	maxFile = 256 << 10
	// maxRoots bounds the authorities that are trusted: the old and the new one of a
	// rotation, some times over.
	maxRoots = 16
	// warnInterval is the time between two warnings that the certificate ends soon.
	warnInterval = time.Hour
)

// Files are where an identity is kept, all of them PEM but the last.
type Files struct {
	Cert   string // the leaf, then what is between it and the root
	Key    string // PKCS #8 or SEC 1; of several the one that fits the leaf counts
	Roots  string // the authorities that are trusted
	Denied string // a deny list; a file that is not there denies nothing, "" neither
	// Authority is that of the authority, where it is on this machine, and Told what seeders
	// have handed on: TakeDenied writes it. They are as Denied is, and all of them hold.
	Authority, Told string
}

// denied are the deny lists.
func (f Files) denied() [3]string { return [3]string{f.Denied, f.Authority, f.Told} }

func (f Files) all() []string {
	return []string{f.Cert, f.Key, f.Roots, f.Denied, f.Authority, f.Told}
}

// FilesIn names the files of a directory as `seeder ca issue` writes them.
func FilesIn(dir string) Files {
	return Files{
		Cert:   filepath.Join(dir, "cert.pem"),
		Key:    filepath.Join(dir, "key.pem"),
		Roots:  filepath.Join(dir, "ca.pem"),
		Denied: filepath.Join(dir, "denied"),
	}
}

// Source is this process's identity, and whom it believes. Its methods are safe for
// concurrent use, and go by the files as they were last read.
type Source struct {
	files Files
	clock Clock

	current atomic.Pointer[state]
	refused refusals

	mu      sync.Mutex // reading the files; never held by who asks
	looked  [6]stat
	changed []func()
}

// state is what the files hold; nobody changes it.
type state struct {
	id          ID
	cluster     string
	chain       []*x509.Certificate
	fingerprint Fingerprint
	key         crypto.Signer
	certificate *tls.Certificate
	trusted     []*x509.Certificate
	roots       *x509.CertPool // of trusted
	denied      denyList
	lists       [3]denyList // by file, nil where there is none
	// What is handed on of denied, and its digest.
	deniedText, deniedDigest string
}

type stat struct {
	modified time.Time
	size     int64
}

// Open reads the files. A certificate that has expired is no error, since it may be
// renewed; Expired says so. One that no root vouches for, that is denied or whose key is
// another's is.
func Open(files Files, clock Clock) (*Source, error) {
	s := &Source{files: files, clock: clock}
	if err := s.Reload(); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return s, nil
}

// Reload reads the files again. On error what was read before stays in force.
func (s *Source) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reload()
}

// reload is Reload. The caller holds mu.
func (s *Source) reload() error {
	s.looked = s.stats()
	next, err := read(s.files)
	if err != nil {
		return err
	}
	return s.take(next)
}

// take has what was read in force. The caller holds mu.
func (s *Source) take(next *state) error {
	before := s.current.Load()
	if before != nil {
		for i, list := range before.lists {
			if len(list) > 0 && next.lists[i] == nil {
				return fmt.Errorf("%s: %w", s.files.denied()[i], errNoDeniedFile)
			}
		}
		if next.id != before.id {
			return fmt.Errorf("%s is of %s now, and this process is %s; start it again to change who it is", s.files.Cert, next.id, before.id)
		}
	}
	if _, err := next.verify(next.chain, s.clock.Now(), true); err != nil {
		return fmt.Errorf("%s: %w", s.files.Cert, err)
	}
	s.current.Store(next)
	if before != nil {
		for _, f := range s.changed {
			f()
		}
	}
	return nil
}

func (s *Source) stats() (all [6]stat) {
	for i, f := range s.files.all() {
		if info, err := os.Stat(f); err == nil {
			all[i] = stat{info.ModTime(), info.Size()}
		}
	}
	return all
}

// OnChange has f called after the files were read again with success. f must be short.
// It is to be called before Run.
func (s *Source) OnChange(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = append(s.changed, f)
}

// Run reads the files again when they have changed, and warns when the certificate ends
// soon, until ctx ends.
func (s *Source) Run(ctx context.Context, logger *slog.Logger) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	var warned time.Time
	for {
		if now := s.clock.Now(); warned.IsZero() || now.Sub(warned) >= warnInterval {
			if s.warn(logger) {
				warned = now
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		s.poll(logger)
	}
}

// poll reads the files if they are other ones than before, and nobody is writing them.
func (s *Source) poll(logger *slog.Logger) {
	changed, err := s.refresh()
	if err != nil {
		logger.Warn("identity not read again, the one read before stays in force", "error", err)
	} else if changed {
		logger.Info("identity read again", "id", s.ID().String(), "expires", stamp(s.Expires()))
	}
}

func (s *Source) refresh() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.stats()
	if s.looked == now {
		return false, nil
	}
	next, err := fresh.Settled(func() (*state, error) { return read(s.files) }, s.files.all()...)
	if errors.Is(err, fresh.ErrUnsettled) {
		return false, nil
	}
	s.looked = now
	if err == nil {
		err = s.take(next)
	}
	return err == nil, err
}

// warn says that the certificate ends soon, or has ended. It reports whether it did.
func (s *Source) warn(logger *slog.Logger) bool {
	leaf := s.current.Load().chain[0]
	left := leaf.NotAfter.Sub(s.clock.Now())
	switch {
	case left <= 0:
		logger.Error("the certificate has expired, other members refuse this one until it is renewed", "id", s.ID().String(), "expired", stamp(leaf.NotAfter))
	case left < leaf.NotAfter.Sub(leaf.NotBefore)/4:
		logger.Warn("the certificate ends soon and was not renewed", "id", s.ID().String(), "expires", stamp(leaf.NotAfter))
	default:
		return false
	}
	return true
}

// ID is who this process is.
func (s *Source) ID() ID { return s.current.Load().id }

// Files are where the identity is kept.
func (s *Source) Files() Files { return s.files }

// Now is the time by which certificates are judged.
func (s *Source) Now() time.Time { return s.clock.Now() }

// Fingerprint is that of the own certificate.
func (s *Source) Fingerprint() Fingerprint { return s.current.Load().fingerprint }

// Chain is the own certificate and what is between it and the root. The caller must not
// change it.
func (s *Source) Chain() []*x509.Certificate { return s.current.Load().chain }

// Expires is when the own certificate ends.
func (s *Source) Expires() time.Time { return s.current.Load().chain[0].NotAfter }

// Trusted are the authorities that are believed, and the text of the list of denied
// certificates. The caller must not change them.
func (s *Source) Trusted() (roots []*x509.Certificate, denied string) {
	st := s.current.Load()
	return st.trusted, st.deniedText
}

// Expired says readably that the own certificate has ended, or is not valid yet; nil
// while it holds.
func (s *Source) Expired() error {
	st := s.current.Load()
	_, err := st.verify(st.chain, s.clock.Now(), false)
	return err
}

func read(files Files) (*state, error) {
	st := &state{}
	var err error
	if st.chain, err = ReadCerts(files.Cert, maxChain); err != nil {
		return nil, err
	}
	leaf := st.chain[0]
	if st.id, err = Of(leaf); err != nil {
		return nil, fmt.Errorf("%s: %w", files.Cert, err)
	}
	st.cluster, st.fingerprint = st.id.Cluster, FingerprintOf(leaf)
	if st.trusted, err = ReadRoots(files.Roots); err != nil {
		return nil, err
	}
	st.roots = poolOf(st.trusted)
	if st.key, err = readKey(files.Key, leaf); err != nil {
		return nil, err
	}
	st.certificate = &tls.Certificate{PrivateKey: st.key, Leaf: leaf}
	for _, c := range st.chain {
		st.certificate.Certificate = append(st.certificate.Certificate, c.Raw)
	}
	st.denied = make(denyList)
	for i, file := range files.denied() {
		if st.lists[i], err = readDenied(file); err != nil {
			return nil, err
		}
		maps.Copy(st.denied, st.lists[i])
	}
	if len(st.denied) > maxDenied {
		return nil, fmt.Errorf("%d certificates are denied, at most %d", len(st.denied), maxDenied)
	}
	if len(st.denied) > 0 {
		st.deniedText = st.denied.text()
		sum := sha256.Sum256([]byte(st.deniedText))
		st.deniedDigest = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return st, nil
}

// ReadRoots reads a file of authorities that are trusted.
func ReadRoots(file string) ([]*x509.Certificate, error) { return ReadCerts(file, maxRoots) }

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

// ReadCerts reads a file of certificates in PEM, one at least and at most so many.
func ReadCerts(file string, most int) ([]*x509.Certificate, error) {
	text, err := readFile(file, maxFile)
	if err != nil {
		return nil, fmt.Errorf("reading certificates: %w", err)
	}
	certs, err := ParseCerts(text, most)
	if err != nil {
		return nil, fmt.Errorf("reading certificates from %s: %w", file, err)
	}
	return certs, nil
}

// readFile reads what is no secret, at most so many bytes of it.
func readFile(file string, most int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s: more than %d bytes", file, most)
	}
	return text, err
}

// ParseCerts reads certificates in PEM, one at least and at most so many.
func ParseCerts(text []byte, most int) ([]*x509.Certificate, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("%d bytes, at most %d", len(text), maxFile)
	}
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if certs = append(certs, c); len(certs) > most {
			return nil, fmt.Errorf("more than %d certificates", most)
		}
	}
	if len(certs) == 0 {
		return nil, errors.New("it holds no certificate in PEM")
	}
	return certs, nil
}

// FormatCerts is the PEM of certificates.
func FormatCerts(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// readKey finds the key of a certificate in a file that may hold the next one too: while
// both files are being replaced, one of them fits.
func readKey(file string, leaf *x509.Certificate) (crypto.Signer, error) {
	text, err := private.Read(file, maxFile)
	if err != nil {
		return nil, fmt.Errorf("reading the key of a certificate: %w", err)
	}
	keys, err := ParseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("reading the key of a certificate from %s: %w", file, err)
	}
	for _, k := range keys {
		if public, ok := k.Public().(interface{ Equal(crypto.PublicKey) bool }); ok && public.Equal(leaf.PublicKey) {
			return k, nil
		}
	}
	return nil, fmt.Errorf("%s is the key of another certificate", file)
}

// ParseKeys reads private keys in PEM, one at least.
func ParseKeys(text []byte) ([]crypto.Signer, error) {
	var keys []crypto.Signer
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, errors.New("a key cannot be read") // the reason may hold some of it
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a key of type %T cannot sign", key)
		}
		keys = append(keys, signer)
	}
	if len(keys) == 0 {
		return nil, errors.New("it holds no private key in PEM (PKCS #8 or SEC 1)")
	}
	return keys, nil
}

// FormatKeys is the PEM of private keys, as PKCS #8.
func FormatKeys(keys ...crypto.Signer) ([]byte, error) {
	var out []byte
	for _, k := range keys {
		b, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return nil, fmt.Errorf("writing a private key: %w", err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})...)
	}
	return out, nil
}
