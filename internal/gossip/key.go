package gossip

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// keyLength makes memberlist use AES-256.
	keyLength = 32
	// maxKeyFile bounds a key file in bytes: many more keys than a rotation needs.
	maxKeyFile = 4 << 10
)

// ReadKeys reads gossip keys from a file: base64 of 32 bytes, one a line. The
// first is used to send, all are tried to receive, so that a key can be
// replaced member by member. A file that everybody may read is refused.
func ReadKeys(file string) ([][]byte, error) {
	text, err := private.Read(file, maxKeyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("gossip key: %w (make one with `seeder keygen --gossip-key %s`)", err, file)
	case err != nil:
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
	if len(keys) > maxKeys {
		return nil, fmt.Errorf("gossip key %s holds %d keys, at most %d", file, len(keys), maxKeys)
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
	if err := private.Write(file, []byte(base64.StdEncoding.EncodeToString(key)+"\n")); err != nil {
		return fmt.Errorf("writing the gossip key: %w", err)
	}
	return nil
}
