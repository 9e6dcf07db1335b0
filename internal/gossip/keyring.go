package gossip

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/fresh"
	"github.com/landfall-dist/landfall/internal/private"
)

// One gossip key after another, without a stop: every member's file gets the next key
// behind the one in use, then every file has it first, then none has the old one.

const (
	// keysInterval is how often the file of keys is looked at.
	keysInterval = 5 * time.Second
	// maxKeys bounds the keys of a file: each packet may be tried with all of them.
	maxKeys = 8
)

// KeyID names a gossip key without showing any of it.
func KeyID(key []byte) string {
	sum := sha256.Sum256(append([]byte("landfall gossip key\x00"), key...))
	return hex.EncodeToString(sum[:4])
}

// AddKey puts a new key behind those of a file, and returns its id.
func AddKey(file string) (string, error) {
	keys, err := ReadKeys(file)
	if err != nil {
		return "", err
	}
	if len(keys) >= maxKeys {
		return "", fmt.Errorf("gossip key %s holds %d keys, at most %d; remove some first", file, len(keys), maxKeys)
	}
	key := make([]byte, keyLength)
	rand.Read(key)
	return KeyID(key), writeKeys(file, append(keys, key))
}

// UseKey makes the key of an id the one that is sent with; "" for the last of the file.
// It returns the id.
func UseKey(file, id string) (string, error) {
	keys, i, err := findKey(file, id, func(keys [][]byte) int { return len(keys) - 1 })
	if err != nil {
		return "", err
	}
	key := keys[i]
	return KeyID(key), writeKeys(file, slices.Insert(slices.Delete(keys, i, i+1), 0, key))
}

// RemoveKey takes the key of an id out of a file; "" for the last. The one in use stays.
// It returns the id.
func RemoveKey(file, id string) (string, error) {
	keys, i, err := findKey(file, id, func(keys [][]byte) int { return len(keys) - 1 })
	if err != nil {
		return "", err
	}
	if i == 0 {
		return "", fmt.Errorf("gossip key %s: %s is in use; use another first", file, KeyID(keys[0]))
	}
	gone := KeyID(keys[i])
	return gone, writeKeys(file, slices.Delete(keys, i, i+1))
}

func findKey(file, id string, usual func([][]byte) int) ([][]byte, int, error) {
	keys, err := ReadKeys(file)
	if err != nil {
		return nil, 0, err
	}
	if id == "" {
		return keys, usual(keys), nil
	}
	i := slices.IndexFunc(keys, func(k []byte) bool { return KeyID(k) == id })
	if i < 0 {
		return nil, 0, fmt.Errorf("gossip key %s holds no key %.20q", file, id)
	}
	return keys, i, nil
}

func writeKeys(file string, keys [][]byte) error {
	var text strings.Builder
	for _, k := range keys {
		text.WriteString(base64.StdEncoding.EncodeToString(k) + "\n")
	}
	if err := private.Replace(file, []byte(text.String())); err != nil {
		return fmt.Errorf("writing the gossip keys: %w", err)
	}
	return nil
}

// watchKeys takes over what changes in the file of keys.
func (g *Gossip) watchKeys(ctx context.Context) {
	if g.cfg.KeyFile == "" || g.keyring == nil {
		return
	}
	ticker := time.NewTicker(keysInterval)
	defer ticker.Stop()
	for {
		keys, err := fresh.Settled(func() ([][]byte, error) { return ReadKeys(g.cfg.KeyFile) }, g.cfg.KeyFile)
		if err == nil {
			err = g.takeKeys(keys)
		}
		if err != nil && !errors.Is(err, fresh.ErrUnsettled) {
			g.warn("gossip keys not read again, those read before stay in force", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// takeKeys makes the keyring what the file says.
func (g *Gossip) takeKeys(keys [][]byte) (err error) {
	before := g.keyring.GetKeys()
	if slices.EqualFunc(before, keys, slices.Equal) {
		return nil
	}
	for _, k := range keys {
		err = errors.Join(err, g.keyring.AddKey(k))
	}
	if err = errors.Join(err, g.keyring.UseKey(keys[0])); err != nil {
		return err
	}
	for _, k := range before {
		if !slices.ContainsFunc(keys, func(kept []byte) bool { return slices.Equal(kept, k) }) {
			err = errors.Join(err, g.keyring.RemoveKey(k))
		}
	}
	if err == nil {
		g.cfg.Logger.Info("gossip keys changed", "inUse", KeyID(keys[0]), "keys", len(keys))
	}
	return err
}
