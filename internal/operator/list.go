package operator

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// maxOperators bounds the operators of a file, maxLine a line of it in bytes.
	maxOperators, maxLine = 1000, 512
	// never stands in the file where a token does not expire.
	never = "never"
	// hashPrefix names how the token was hashed. It is all chance, so that a plain hash
	// gives nothing away. uriPrefix and fingerprintPrefix are of who shows a certificate.
	hashPrefix, uriPrefix, fingerprintPrefix = "sha256:", "uri:", "cert-sha256:"
	// header explains the file to who opens it.
	header = "# Operators of a seeder, one a line: name, role, until when, and the hash of the token, or by which certificate it is known.\n# `seeder operator add`, `list` and `remove` write this file; daemons read it again when it changes.\n"
)

// nameForm is what an operator can be called.
var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// Operator is who may do something.
type Operator struct {
	Name string
	Role Role
	// Expires is when token or certificate are of no use any more; zero for never.
	Expires time.Time

	by   by
	hash [sha256.Size]byte // of the token or of the certificate; zero where uri is set
	uri  string
}

// by is how an operator is known.
type by int

const (
	byToken by = iota
	byFingerprint
	byURI
)

// Certificate is by which certificate an operator is known; "" where it is by a token.
func (o Operator) Certificate() string {
	switch o.by {
	case byURI:
		return o.uri
	case byFingerprint:
		return "SHA-256 " + hex.EncodeToString(o.hash[:])
	}
	return ""
}

// known is how an operator is known, as the file has it.
func (o Operator) known() string {
	switch o.by {
	case byURI, byFingerprint:
		return Certificate{o.uri, o.hash}.String()
	}
	return hashPrefix + base64.RawURLEncoding.EncodeToString(o.hash[:])
}

// sameAs reports whether another is known by the same.
func (o Operator) sameAs(other Operator) bool {
	return o.by == other.by && o.hash == other.hash && o.uri == other.uri
}

// Expired reports whether token or certificate are of no use any more.
func (o Operator) Expired(now time.Time) bool { return !o.Expires.IsZero() && !now.Before(o.Expires) }

func (o Operator) line() string {
	expires := never
	if !o.Expires.IsZero() {
		expires = o.Expires.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("%s %s %s %s\n", o.Name, o.Role, expires, o.known())
}

// ErrNoOperator says that a file has no operator of that name.
var ErrNoOperator = errors.New("no such operator")

// ReadList reads the operators of a file that only its owner, and a group, may write and
// read. No error shows a hash.
func ReadList(file string) ([]Operator, error) {
	text, err := private.Read(file, maxOperators*maxLine)
	if err != nil {
		return nil, fmt.Errorf("operators: %w", err)
	}
	list, err := parseList(string(text))
	if err != nil {
		return nil, fmt.Errorf("operators of %s: %w", file, err)
	}
	return list, nil
}

func parseList(text string) (list []Operator, err error) {
	number := 0
	for line := range strings.Lines(text) {
		number++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		o, err := parseLine(line)
		switch {
		case err != nil:
		case slices.ContainsFunc(list, func(other Operator) bool { return other.Name == o.Name }):
			err = fmt.Errorf("%s is there twice", o.Name)
		case slices.ContainsFunc(list, o.sameAs):
			err = fmt.Errorf("%s has another's token or certificate", o.Name)
		case len(list) == maxOperators:
			err = fmt.Errorf("more than %d operators", maxOperators)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		list = append(list, o)
	}
	return list, nil
}

func parseLine(line string) (o Operator, err error) {
	if len(line) > maxLine {
		return o, fmt.Errorf("%d bytes, at most %d", len(line), maxLine)
	}
	words := strings.Fields(line)
	if len(words) != 4 {
		return o, fmt.Errorf("%d words, expected name, role, expiry, and a hash or a certificate", len(words))
	}
	if o.Name = words[0]; !nameForm.MatchString(o.Name) {
		return o, fmt.Errorf("name is %.80q, expected small letters, digits, '.', '_' and '-'", o.Name)
	}
	if o.Role, err = ParseRole(words[1]); err != nil {
		return o, err
	}
	if words[2] != never {
		if o.Expires, err = time.Parse(time.RFC3339, words[2]); err != nil {
			return o, fmt.Errorf("expiry is %.80q, expected a time such as 2027-01-31T00:00:00Z, or %s", words[2], never)
		}
	}
	if uri, ok := strings.CutPrefix(words[3], uriPrefix); ok {
		o.by, o.uri = byURI, uri
		if err := checkURI(uri); err != nil {
			return o, fmt.Errorf("certificate of %s: %w", o.Name, err)
		}
		return o, nil
	}
	if digits, ok := strings.CutPrefix(words[3], fingerprintPrefix); ok {
		sum, err := hex.DecodeString(digits)
		if o.by = byFingerprint; err != nil || len(sum) != len(o.hash) {
			return o, fmt.Errorf("the certificate of %s is not %s and 64 hexadecimal digits", o.Name, fingerprintPrefix)
		}
		copy(o.hash[:], sum)
		return o, nil
	}
	text, ok := strings.CutPrefix(words[3], hashPrefix)
	hash, err := base64.RawURLEncoding.DecodeString(text)
	if !ok || err != nil || len(hash) != len(o.hash) {
		return o, fmt.Errorf("the hash of %s is not %s and 43 characters", o.Name, hashPrefix)
	}
	copy(o.hash[:], hash)
	return o, nil
}

// Add writes a new operator into a file, which it makes where there is none, and returns
// the token, of which only the hash is kept. A zero time is for never.
func Add(file, name string, role Role, expires time.Time) (Token, error) {
	b := make([]byte, madeBytes)
	rand.Read(b)
	token := Token(base64.RawURLEncoding.EncodeToString(b))
	return token, add(file, Operator{Name: name, Role: role, Expires: expires, hash: sha256.Sum256([]byte(token))})
}

// AddCertificate is Add for an operator that is known by a certificate.
func AddCertificate(file, name string, role Role, expires time.Time, c Certificate) error {
	o := Operator{Name: name, Role: role, Expires: expires, by: byFingerprint, hash: c.fingerprint}
	if c.uri != "" {
		o.by, o.uri = byURI, c.uri
	}
	return add(file, o)
}

func add(file string, o Operator) error {
	if !nameForm.MatchString(o.Name) {
		return fmt.Errorf("%.80q cannot be an operator's name: expected small letters, digits, '.', '_' and '-', at most 64", o.Name)
	}
	return change(file, true, func(list []Operator) ([]Operator, error) {
		for _, other := range list {
			switch {
			case other.Name == o.Name:
				return nil, fmt.Errorf("%s is there already: remove it first, or add another name beside it until its token or certificate is changed everywhere", o.Name)
			case o.by != byToken && o.sameAs(other):
				return nil, fmt.Errorf("%s has that certificate already", other.Name)
			}
		}
		return append(list, o), nil
	})
}

// Remove takes an operator out of a file; ErrNoOperator where there is none of that name.
func Remove(file, name string) error {
	return change(file, false, func(list []Operator) ([]Operator, error) {
		left := slices.DeleteFunc(list, func(o Operator) bool { return o.Name == name })
		if len(left) == len(list) {
			return nil, fmt.Errorf("%w: %.80q", ErrNoOperator, name)
		}
		return left, nil
	})
}

// change writes a file anew; make says that there may be none.
func change(file string, make bool, f func([]Operator) ([]Operator, error)) error {
	list, err := ReadList(file)
	if err != nil && !(make && errors.Is(err, fs.ErrNotExist)) {
		return err
	}
	if list, err = f(list); err != nil {
		return err
	}
	text := header
	for _, o := range list {
		text += o.line()
	}
	if _, err := parseList(text); err != nil {
		return err
	}
	if err := private.Replace(file, []byte(text)); err != nil {
		return fmt.Errorf("writing the operators: %w", err)
	}
	return nil
}

// Listed is an operator as `seeder operator list` shows it.
type Listed struct {
	Name        string     `json:"name"`
	Role        string     `json:"role"`
	Expires     *time.Time `json:"expires,omitempty"` // absent for never
	Expired     bool       `json:"expired,omitempty"`
	Certificate string     `json:"certificate,omitempty"` // absent where it is known by a token
}

// List is what may be shown of operators.
func List(list []Operator, now time.Time) []Listed {
	out := make([]Listed, 0, len(list))
	for _, o := range list {
		l := Listed{Name: o.Name, Role: o.Role.String(), Expired: o.Expired(now), Certificate: o.Certificate()}
		if !o.Expires.IsZero() {
			l.Expires = &o.Expires
		}
		out = append(out, l)
	}
	return out
}
