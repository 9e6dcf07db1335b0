package gossip

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

const (
	// keyLength makes memberlist use AES-256.
	keyLength = 32
	// maxKeyFile bounds a key file in bytes: many more keys than a rotation needs.
	maxKeyFile = 4 << 10
)

// ReadKeys reads gossip keys from a file: base64 of 32 bytes, one a line. The
// first is used to send, all are tried to receive, so that a key can be
// replaced member by member.
func ReadKeys(file string) ([][]byte, error) {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("gossip key: %w (make one with `seeder keygen --gossip-key %s`)", err, file)
	case err != nil:
		return nil, fmt.Errorf("gossip key: %w", err)
	case info.Size() > maxKeyFile:
		return nil, fmt.Errorf("gossip key %s: %d bytes are too many for a key file", file, info.Size())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("gossip key: %w", err)
	}
	var keys [][]byte
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(key) != keyLength {
			return nil, fmt.Errorf("gossip key %s: a line is not base64 of %d bytes", file, keyLength)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("gossip key %s holds no key", file)
	}
	return keys, nil
}

// WriteKey makes a new key and writes it to file, which must not exist.
func WriteKey(file string) error {
	key := make([]byte, keyLength)
	rand.Read(key)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing the gossip key: %w", err)
	}
	_, err = f.WriteString(base64.StdEncoding.EncodeToString(key) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing the gossip key: %w", err)
	}
	return nil
}
