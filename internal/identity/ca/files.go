package ca

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// maxFile bounds a file of an authority in bytes.
	maxFile = 256 << 10
	// certFile, keyFile, deniedFile and regionsDir are what an authority's directory
	// holds; a region's has the first two.
	certFile, keyFile, deniedFile, regionsDir = "ca.pem", "ca.key", "denied", "regions"
)

// ErrNoKey is for a directory that has an authority's certificate and not its key: it
// may be shown and trusted, and issues nothing.
var ErrNoKey = errors.New("the authority's key is not there")

// Dir is an authority's directory.
type Dir struct {
	path string
	*Authority

	mu sync.Mutex // the deny list's file
}

// Init makes an authority and its directory, with an intermediate for the hosts of each
// region. What is there already is an error, and stays.
func Init(path, cluster string, regions []string, clock identity.Clock) (*Dir, error) {
	root, err := New(cluster, clock)
	if err != nil {
		return nil, err
	}
	if err := private.MkdirAll(path); err != nil {
		return nil, fmt.Errorf("making the authority's directory: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(path, certFile)); err == nil {
		return nil, fmt.Errorf("%s holds an authority already", path)
	}
	if err := write(path, root); err != nil {
		return nil, err
	}
	d := &Dir{path: path, Authority: root}
	for _, r := range regions {
		if err := d.AddRegion(r); err != nil {
			return nil, err
		}
	}
	if err := private.WritePublic(filepath.Join(path, deniedFile), []byte("# One a line: serial HEX, fingerprint BASE64, id spiffe://…\n")); err != nil {
		return nil, fmt.Errorf("writing the list of denied certificates: %w", err)
	}
	return d, nil
}

// Open opens what Init has made. Without its key it is ErrNoKey.
func Open(path string, clock identity.Clock) (*Dir, error) {
	a, err := read(path, clock)
	if err != nil {
		return nil, fmt.Errorf("opening the authority in %s: %w", path, err)
	}
	id, ok := strings.CutPrefix(a.cert.Subject.CommonName, commonName)
	if !ok {
		return nil, fmt.Errorf("opening the authority in %s: its certificate is of %.80q, which `seeder ca init` has not made", path, a.cert.Subject.CommonName)
	}
	a.cluster = id
	return &Dir{path: path, Authority: a}, nil
}

// WithoutKey is a directory whose deny list alone is used.
func WithoutKey(path string) *Dir { return &Dir{path: path} }

// AddRegion makes the intermediate of a region's hosts, or the next one.
func (d *Dir) AddRegion(region string) error {
	a, err := d.Region(region)
	if err != nil {
		return fmt.Errorf("region %s: %w", region, err)
	}
	dir := d.RegionDir(region)
	if err := private.MkdirAll(dir); err != nil {
		return fmt.Errorf("region %s: %w", region, err)
	}
	return write(dir, a)
}

// For is who issues an identity: the intermediate of a host's region, else the root.
func (d *Dir) For(id identity.ID) (*Authority, error) {
	if id.Kind != identity.Host {
		return d.Authority, nil
	}
	if err := id.Check(); err != nil {
		return nil, err
	}
	a, err := OpenRegion(d.RegionDir(id.Region), d.cluster, id.Region, d.clock)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("region %s has no authority for its hosts (make one with `seeder ca renew --regions %s`)", id.Region, id.Region)
	}
	return a, err
}

// OpenRegion opens the directory of the authority of a region's hosts, which may be a copy
// at the region's agents. Without its key it is ErrNoKey.
func OpenRegion(path, cluster, region string, clock identity.Clock) (*Authority, error) {
	id := identity.ID{Cluster: cluster, Kind: identity.Host, Region: region, Name: "x"}
	if err := id.Check(); err != nil {
		return nil, err
	}
	a, err := read(path, clock)
	if err != nil {
		return nil, fmt.Errorf("opening the authority of the hosts of %s in %s: %w", region, path, err)
	}
	if domains := a.cert.PermittedURIDomains; len(domains) != 1 || domains[0] != id.TrustDomain() {
		return nil, fmt.Errorf("opening the authority of the hosts of %s in %s: its certificate is for %v, expected %s alone", region, path, domains, id.TrustDomain())
	}
	a.cluster, a.domain = cluster, id.TrustDomain()
	return a, nil
}

// RegionDir is where the authority of a region's hosts is.
func (d *Dir) RegionDir(region string) string { return filepath.Join(d.path, regionsDir, region) }

// Denied is the deny list's file.
func (d *Dir) Denied() string { return filepath.Join(d.path, deniedFile) }

// Deny adds a line to the deny list; false where it is there already.
func (d *Dir) Deny(line, reason string) (bool, error) {
	entry, err := identity.ParseDenied(line)
	if err != nil {
		return false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	text, err := os.ReadFile(d.Denied())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("reading the list of denied certificates: %w", err)
	}
	for l := range strings.Lines(string(text)) {
		if l, _, _ = strings.Cut(l, "#"); strings.TrimSpace(l) == entry {
			return false, nil
		}
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	if reason = strings.Join(strings.Fields(reason), " "); reason != "" {
		entry += " # " + reason
	}
	if err := private.Replace(d.Denied(), append(text, entry+"\n"...)); err != nil {
		return false, fmt.Errorf("writing the list of denied certificates: %w", err)
	}
	return true, nil
}

// Write makes a key and a certificate of an identity, and the directory that --identity
// takes, with what is trusted and denied. A certificate that is there stays, and is an
// error.
func (d *Dir) Write(id identity.ID, dir string) ([]*x509.Certificate, error) {
	files, err := newFiles(dir)
	if err != nil {
		return nil, err
	}
	return d.install(id, files)
}

// newFiles names the files of a directory that it makes, and in which there is no
// certificate yet.
func newFiles(dir string) (identity.Files, error) {
	files := identity.FilesIn(dir)
	for _, f := range []string{files.Cert, files.Key} {
		if _, err := os.Lstat(f); err == nil {
			return files, fmt.Errorf("%s is there already; `seeder ca renew %s` replaces it", f, dir)
		}
	}
	if err := private.MkdirAll(dir); err != nil {
		return files, fmt.Errorf("making the directory of an identity: %w", err)
	}
	return files, nil
}

// Renew replaces the certificate and the key in a directory that Write or WriteOperator has
// made, and brings what is trusted and denied there up to date. It returns the name too.
func (d *Dir) Renew(dir string) ([]*x509.Certificate, string, error) {
	files := identity.FilesIn(dir)
	text, err := os.ReadFile(files.Cert)
	if err != nil {
		return nil, "", fmt.Errorf("renewing: %w", err)
	}
	certs, err := identity.ParseCerts(text, 16)
	if err != nil {
		return nil, "", fmt.Errorf("renewing %s: %w", files.Cert, err)
	}
	if name, ok := d.operatorOf(certs[0]); ok {
		chain, err := d.installOperator(name, files)
		return chain, certs[0].URIs[0].String(), err
	}
	id, err := identity.Of(certs[0])
	if err != nil {
		return nil, "", fmt.Errorf("renewing %s: %w", files.Cert, err)
	}
	chain, err := d.install(id, files)
	return chain, id.String(), err
}

func (d *Dir) install(id identity.ID, files identity.Files) ([]*x509.Certificate, error) {
	a, err := d.For(id)
	if err != nil {
		return nil, err
	}
	return d.installBy(files, func(public crypto.PublicKey) ([]*x509.Certificate, error) { return a.Issue(id, public) })
}

// installBy makes a key, has a certificate made for it, and writes both with what is
// trusted and denied.
func (d *Dir) installBy(files identity.Files, issue func(crypto.PublicKey) ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	chain, err := issue(key.Public())
	if err != nil {
		return nil, err
	}
	denied, err := os.ReadFile(d.Denied())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the list of denied certificates: %w", err)
	}
	roots, err := d.roots(files.Roots)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(private.Replace(files.Roots, roots), private.Replace(files.Denied, denied)); err != nil {
		return nil, fmt.Errorf("writing an identity: %w", err)
	}
	return chain, Install(files, key, chain)
}

// roots are what is trusted in a directory, and this authority.
func (d *Dir) roots(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return identity.FormatCerts(d.cert), nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what is trusted: %w", err)
	}
	certs, err := identity.ParseCerts(text, 16)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if slices.ContainsFunc(certs, d.cert.Equal) {
		return text, nil
	}
	return append(identity.FormatCerts(d.cert), text...), nil
}

// Install replaces a certificate and its key. Whoever reads them meanwhile, also after a
// crash in between, finds a key that fits the certificate.
func Install(files identity.Files, key crypto.Signer, chain []*x509.Certificate) error {
	text, err := identity.FormatKeys(key)
	if err != nil {
		return err
	}
	old, err := private.Read(files.Key, maxFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the key that is replaced: %w", err)
	}
	if len(old)+len(text) > maxFile {
		return fmt.Errorf("%s holds too many keys", files.Key)
	}
	for _, step := range []struct {
		file string
		text []byte
	}{{files.Key, append(text[:len(text):len(text)], old...)}, {files.Cert, identity.FormatCerts(chain...)}, {files.Key, text}} {
		if err := private.Replace(step.file, step.text); err != nil {
			return fmt.Errorf("writing an identity: %w", err)
		}
	}
	return nil
}

func write(dir string, a *Authority) error {
	text, err := identity.FormatKeys(a.key)
	if err != nil {
		return err
	}
	// The key first: without it the certificate could not be replaced by init.
	err = private.Replace(filepath.Join(dir, keyFile), text)
	if err == nil {
		err = private.Replace(filepath.Join(dir, certFile), identity.FormatCerts(a.cert))
	}
	if err != nil {
		return fmt.Errorf("writing an authority: %w", err)
	}
	return nil
}

func read(dir string, clock identity.Clock) (*Authority, error) {
	text, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil {
		return nil, err
	}
	certs, err := identity.ParseCerts(text, 1)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	file := filepath.Join(dir, keyFile)
	text, err = private.Read(file, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	if err != nil {
		return nil, err
	}
	keys, err := identity.ParseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if public, ok := keys[0].Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(certs[0].PublicKey) {
		return nil, fmt.Errorf("%s is the key of another certificate", file)
	}
	return &Authority{key: keys[0], cert: certs[0], clock: clock}, nil
}

// RenewFor makes the next certificate of a member, or of a region's host, that has shown one: for its name, whatever
// the request (PKCS #10, DER) says, and the key that has signed the request. It returns
// PEM.
func (a *Authority) RenewFor(p identity.Peer, request []byte) ([]byte, error) {
	if p.ID.Kind == identity.Host && a.domain == "" {
		return nil, fmt.Errorf("%s is a host: its region's authority issues it", p.ID)
	}
	r, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = r.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("request of %s for a certificate: %w", p.ID, err)
	}
	chain, err := a.Issue(p.ID, r.PublicKey)
	if err != nil {
		return nil, err
	}
	return identity.FormatCerts(chain...), nil
}
