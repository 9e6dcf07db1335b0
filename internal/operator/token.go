// Package operator holds the token of those who may change what a seeder does: who
// publishes, cancels and sends again. How a request carries it is for package web.
package operator

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// minToken and maxToken bound a token in bytes: shorter ones can be guessed,
	// and longer ones fit no header.
	minToken, maxToken = 16, 4096
	// madeBytes is how much chance is in a token that WriteToken makes.
	madeBytes = 32
)

// Token is a secret. Printed or logged it does not show; string(t) is the secret
// itself. Empty means that no token is asked for.
type Token string

// String keeps the token out of what is printed.
func (t Token) String() string { return "(operator token)" }

// LogValue keeps the token out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// Is reports whether given is the token, in a time that says nothing about it. No
// text is the empty token.
func (t Token) Is(given string) bool {
	// Of the digests, since the comparison of texts tells their length.
	want, got := sha256.Sum256([]byte(t)), sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1 && t != ""
}

// ReadToken reads a token from a file that only its owner, and a group, may read. No
// error shows any of it.
func ReadToken(file string) (Token, error) {
	text, err := private.Read(file, maxToken+2) // and a line's end
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("operator token: %w (make one with `seeder keygen --operator-token %s`)", err, file)
	case err != nil:
		return "", fmt.Errorf("operator token: %w", err)
	}
	t := strings.TrimSpace(string(text))
	switch {
	case len(t) < minToken || len(t) > maxToken:
		return "", fmt.Errorf("operator token %s: %d characters, expected %d to %d", file, len(t), minToken, maxToken)
	case strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' }):
		// A header's value, RFC 6750.
		return "", fmt.Errorf("operator token %s: expected one line of ASCII characters without spaces", file)
	}
	return Token(t), nil
}

// WriteToken makes a new token and writes it to file, which must not exist.
func WriteToken(file string) error {
	b := make([]byte, madeBytes)
	rand.Read(b)
	if err := private.Write(file, []byte(base64.RawURLEncoding.EncodeToString(b)+"\n")); err != nil {
		return fmt.Errorf("writing the operator token: %w", err)
	}
	return nil
}
