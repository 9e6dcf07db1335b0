package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// joinTokenPrefix tells what a token is, also to who looks for lost secrets.
	joinTokenPrefix = "lfjoin1"
	// joinTokenID is the length of what a token is called by, in bytes.
	joinTokenID = 8
	// MaxJoinToken bounds a token in bytes.
	MaxJoinToken = len(joinTokenPrefix) + 1 + 2*joinTokenID + 2*(1+43)
)

// JoinToken gets a new member its first certificate, once. Printed or logged it does not
// show its secret.
type JoinToken struct {
	// ID is what the token is called by; it is no secret.
	ID string
	// Root is the fingerprint of the authority: by it the new member knows the seeder.
	Root   Fingerprint
	secret [sha256.Size]byte
}

// NewJoinToken makes a token of an authority by chance.
func NewJoinToken(root Fingerprint) JoinToken {
	t := JoinToken{Root: root}
	id := make([]byte, joinTokenID)
	rand.Read(id)
	rand.Read(t.secret[:])
	t.ID = hex.EncodeToString(id)
	return t
}

// ParseJoinToken reads what Text has made. No error shows any of it.
func ParseJoinToken(text string) (JoinToken, error) {
	var t JoinToken
	parts := strings.Split(text, ".")
	if len(text) > MaxJoinToken || len(parts) != 4 || parts[0] != joinTokenPrefix {
		return t, fmt.Errorf("it is no join token, which begins with %s. and has %d characters", joinTokenPrefix, MaxJoinToken)
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(secret) != len(t.secret) || CheckJoinTokenID(parts[1]) != nil {
		return t, errors.New("the join token is damaged")
	}
	if t.Root, err = ParseFingerprint(parts[3]); err != nil {
		return t, errors.New("the join token is damaged")
	}
	t.ID, t.secret = parts[1], [sha256.Size]byte(secret)
	return t, nil
}

// CheckJoinTokenID reports whether a token can be called so.
func CheckJoinTokenID(id string) error {
	if b, err := hex.DecodeString(id); err != nil || len(b) != joinTokenID || strings.ToLower(id) != id {
		return fmt.Errorf("%.40q is no join token's id: %d characters of 0-9 and a-f", id, 2*joinTokenID)
	}
	return nil
}

// ReadJoinToken reads a token from a file that only its owner, and a group, may read.
func ReadJoinToken(file string) (JoinToken, error) {
	text, err := private.Read(file, int64(MaxJoinToken)+2) // and a line's end
	if errors.Is(err, fs.ErrNotExist) {
		return JoinToken{}, fmt.Errorf("join token: %w (make one with `seeder ca token`)", err)
	}
	if err != nil {
		return JoinToken{}, fmt.Errorf("join token: %w", err)
	}
	t, err := ParseJoinToken(strings.TrimSpace(string(text)))
	if err != nil {
		return t, fmt.Errorf("join token %s: %w", file, err)
	}
	return t, nil
}

// Text is the token with its secret.
func (t JoinToken) Text() string {
	return strings.Join([]string{joinTokenPrefix, t.ID, base64.RawURLEncoding.EncodeToString(t.secret[:]), t.Root.String()}, ".")
}

// Hash is what is kept of the secret, which is all chance: a plain hash gives nothing away.
func (t JoinToken) Hash() [sha256.Size]byte { return sha256.Sum256(t.secret[:]) }

// String keeps the secret out of what is printed.
func (t JoinToken) String() string { return "(join token " + t.ID + ")" }

// GoString keeps the secret out of what is printed with %#v.
func (t JoinToken) GoString() string { return t.String() }

// LogValue keeps the secret out of logs.
func (t JoinToken) LogValue() slog.Value { return slog.StringValue(t.String()) }
