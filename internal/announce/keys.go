package announce

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/landfall-dist/landfall/internal/private"
)

const (
	privateBlock = "LANDFALL SIGNING KEY"
	// maxKeyFile bounds a key file in bytes; a real one has about 150.
	maxKeyFile = 4 << 10
)

// FormatPublicKey returns the base64 form that --trust takes.
func FormatPublicKey(key ed25519.PublicKey) string {
	return base64.StdEncoding.EncodeToString(key)
}

// keyIDLength is enough to tell keys apart, and is not meant for more.
const keyIDLength = 12

// KeyID names a public key in few characters: the beginning of what FormatPublicKey
// returns, so that a person finds it in the key's file.
func KeyID(key ed25519.PublicKey) string { return FormatPublicKey(key)[:keyIDLength] }

// ParsePublicKey decodes what FormatPublicKey made.
func ParsePublicKey(s string) (ed25519.PublicKey, error) {
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s))
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("public key %.60q: not base64 of %d bytes, as `seeder keygen` prints it", s, ed25519.PublicKeySize)
	}
	return ed25519.PublicKey(b), nil
}

// ReadTrust reads trusted public keys. Each of specs is a key as printed by
// `seeder keygen`, or the name of a file of such keys, one a line.
func ReadTrust(specs []string) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for _, spec := range specs {
		if key, err := ParsePublicKey(spec); err == nil {
			keys = append(keys, key)
			continue
		}
		text, err := readSmall(spec)
		if err != nil {
			return nil, fmt.Errorf("trusted key %.80q: neither a public key nor a readable file: %w", spec, err)
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			key, err := ParsePublicKey(line)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", spec, err)
			}
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// ReadSigningKey reads a private key that WriteSigningKey wrote. A file that everybody
// may read is refused.
func ReadSigningKey(file string) (ed25519.PrivateKey, error) {
	text, err := private.Read(file, maxKeyFile)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("signing key: %w (make one with `seeder keygen %s`)", err, file)
		}
		return nil, fmt.Errorf("signing key: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != privateBlock || len(block.Bytes) != ed25519.SeedSize {
		return nil, fmt.Errorf("signing key %s: not a key that `seeder keygen` wrote", file)
	}
	return ed25519.NewKeyFromSeed(block.Bytes), nil
}

// WriteSigningKey makes a new key pair, writes the private key to file, which
// must not exist, and the public key to file + ".pub".
func WriteSigningKey(file string) (ed25519.PublicKey, error) {
	public, secret, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("making a key pair: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: secret.Seed()})
	if err := private.Write(file, text); err != nil {
		return nil, fmt.Errorf("writing the signing key: %w", err)
	}
	if err := private.WritePublic(file+".pub", []byte(FormatPublicKey(public)+"\n")); err != nil {
		return nil, fmt.Errorf("writing the public key: %w", err)
	}
	return public, nil
}

func readSmall(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s: %d bytes are too many for a key file", file, info.Size())
	}
	return os.ReadFile(file)
}
