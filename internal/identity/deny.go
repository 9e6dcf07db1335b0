package identity

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/big"
	"slices"
	"strings"

	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// maxDenied bounds the entries of a deny list: a certificate stays on it until it
	// could not be renewed any more.
	maxDenied = 10_000
	// maxDeniedFile bounds its file in bytes.
	maxDeniedFile = 2 << 20
)

// deniedForms is what a line may be.
const deniedForms = "serial HEX, fingerprint BASE64 or id spiffe://…"

// denyList is what is refused, whoever vouches for it.
type denyList map[string]bool

// ParseDenied checks one line of a deny list: "serial HEX", "fingerprint BASE64" or
// "id spiffe://…" (every certificate of an identity). It returns the line in the one
// form in which it is kept.
func ParseDenied(line string) (string, error) {
	kind, value, _ := strings.Cut(strings.TrimSpace(line), " ")
	value = strings.TrimSpace(value)
	switch kind {
	case "serial":
		text := strings.ToLower(strings.ReplaceAll(value, ":", ""))
		n, ok := new(big.Int).SetString(text, 16)
		if !ok || len(text) > 64 || strings.HasPrefix(text, "-") || strings.HasPrefix(text, "+") {
			return "", fmt.Errorf("serial %.80q is no hexadecimal number", value)
		}
		return "serial " + n.Text(16), nil
	case "fingerprint":
		f, err := ParseFingerprint(value)
		if b, hexErr := hex.DecodeString(strings.ReplaceAll(value, ":", "")); err != nil && hexErr == nil && len(b) == len(f) {
			f, err = Fingerprint(b), nil // as openssl prints it
		}
		if err != nil {
			return "", err
		}
		return "fingerprint " + f.String(), nil
	case "id":
		id, err := Parse(value)
		if err != nil {
			return "", err
		}
		return "id " + id.String(), nil
	}
	return "", fmt.Errorf("%.80q: expected %s", line, deniedForms)
}

func parseDenied(text string) (denyList, error) {
	list := make(denyList)
	number := 0
	for line := range strings.Lines(text) {
		number++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		entry, err := ParseDenied(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if list[entry] = true; len(list) > maxDenied {
			return nil, fmt.Errorf("more than %d entries", maxDenied)
		}
	}
	return list, nil
}

// text is the list as it is kept and handed on, "" for nobody.
func (d denyList) text() string {
	var b strings.Builder
	for _, entry := range slices.Sorted(maps.Keys(d)) {
		b.WriteString(entry + "\n")
	}
	return b.String()
}

// check reports whether a certificate is denied, or all of an identity's. The zero ID is
// an authority's.
func (d denyList) check(id ID, cert *x509.Certificate) error {
	if len(d) == 0 {
		return nil
	}
	switch {
	case cert.SerialNumber != nil && d["serial "+cert.SerialNumber.Text(16)]:
		return fmt.Errorf("%w by its serial number", ErrDenied)
	case d["fingerprint "+FingerprintOf(cert).String()]:
		return fmt.Errorf("%w by its fingerprint", ErrDenied)
	case id != ID{} && d["id "+id.String()]:
		return fmt.Errorf("%w, as every one of that name is", ErrDenied)
	}
	return nil
}

// readDenied reads a deny list; nil where there is no file.
func readDenied(file string) (denyList, error) {
	if file == "" {
		return nil, nil
	}
	text, err := readFile(file, maxDeniedFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("list of denied certificates: %w", err)
	}
	list, err := parseDenied(string(text))
	if err != nil {
		return nil, fmt.Errorf("list of denied certificates %s: %w", file, err)
	}
	return list, nil
}

// MaxDenied bounds a deny list in bytes.
const MaxDenied = maxDeniedFile

// Denied is all that is denied here, for who is to deny it as well, and a digest of that;
// both are empty for nothing.
func (s *Source) Denied() (text, digest string) {
	st := s.current.Load()
	return st.deniedText, st.deniedDigest
}

// TakeDenied adds a list of what is denied elsewhere to what seeders have told before,
// keeps it in the file that Files.Told names, and returns how many are new. What was told
// once stays: an older list takes nothing back. On error nothing is added.
//
// Whether who has told it may is for the caller to know.
func (s *Source) TakeDenied(text string) (added int, err error) {
	if s.files.Told == "" || text == "" {
		return 0, nil
	}
	if len(text) > maxDeniedFile {
		return 0, fmt.Errorf("list of denied certificates: %d bytes, at most %d", len(text), maxDeniedFile)
	}
	list, err := parseDenied(text)
	if err != nil {
		return 0, fmt.Errorf("list of denied certificates: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	told, err := readDenied(s.files.Told) // which may be newer than what holds
	if err != nil {
		return 0, err
	}
	if told == nil {
		told = make(denyList)
	}
	st := s.current.Load()
	for entry := range list {
		if !st.denied[entry] {
			told[entry] = true
			added++
		}
	}
	if added == 0 {
		return 0, nil
	}
	next := told.text()
	if len(st.denied)+added > maxDenied || len(next) > maxDeniedFile {
		return 0, fmt.Errorf("%d certificates are denied here and %d more elsewhere, at most %d: the lists need to be cleared of what has expired", len(st.denied), added, maxDenied)
	}
	if err := private.Replace(s.files.Told, []byte("# What seeders have said is denied. It only grows.\n"+next)); err != nil {
		return 0, fmt.Errorf("keeping the list of denied certificates: %w", err)
	}
	return added, s.reload()
}

// errNoDeniedFile is what reading the list reports where the file has gone.
var errNoDeniedFile = errors.New("the list of denied certificates is gone, the one read before stays in force")
