package signing

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/private"
)

const (
	privateBlock = "LANDFALL SIGNING KEY"
	// maxKeyFile bounds a file with one key in bytes; a real one has about 150.
	maxKeyFile = 4 << 10
	// signTimeout bounds one signature that is made elsewhere: builds wait for it.
	signTimeout = 10 * time.Second
	// maxSaid bounds what a signing command prints, in bytes.
	maxSaid = 4 << 10
)

// Signer signs documents. It is safe for concurrent use.
type Signer interface {
	// Public is the key that checks what Sign makes.
	Public() PublicKey
	// Sign returns the SignatureSize bytes that the key has for a message.
	Sign(ctx context.Context, message []byte) ([]byte, error)
}

// Ed25519 is the Signer of a key in memory.
type Ed25519 ed25519.PrivateKey

// Public is the key's.
func (k Ed25519) Public() PublicKey {
	return Ed25519Key(ed25519.PrivateKey(k).Public().(ed25519.PublicKey))
}

// Sign cannot fail.
func (k Ed25519) Sign(_ context.Context, message []byte) ([]byte, error) {
	return ed25519.Sign(ed25519.PrivateKey(k), message), nil
}

// ReadKey reads a private key that WriteKey wrote. A file that everybody may read is
// refused.
func ReadKey(file string) (Ed25519, error) {
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
	return Ed25519(ed25519.NewKeyFromSeed(block.Bytes)), nil
}

// WriteKey makes a new key pair, writes the private key to file, which must not exist, and
// the public key to file + ".pub".
func WriteKey(file string) (PublicKey, error) {
	public, secret, err := ed25519.GenerateKey(nil)
	if err != nil {
		return PublicKey{}, fmt.Errorf("making a key pair: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: secret.Seed()})
	if err := private.Write(file, text); err != nil {
		return PublicKey{}, fmt.Errorf("writing the signing key: %w", err)
	}
	key := Ed25519Key(public)
	if err := private.WritePublic(file+".pub", []byte(key.String()+"\n")); err != nil {
		return PublicKey{}, fmt.Errorf("writing the public key: %w", err)
	}
	return key, nil
}

// Command is the Signer of a program that keeps the key, as one before a hardware module
// does. It is run by the shell for each signature, gets the message on its standard input
// and prints the signature in base64.
type Command struct {
	Line string
	Key  PublicKey
}

// Public is the key that was given beside the command.
func (c Command) Public() PublicKey { return c.Key }

// Sign runs the command. What it prints must be the key's signature.
func (c Command) Sign(ctx context.Context, message []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", c.Line)
	cmd.WaitDelay = time.Second
	said, complaint := &upTo{most: maxSaid}, &upTo{most: maxSaid}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(message), said, complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("signing command: %w: %.200s", err, strings.TrimSpace(complaint.String()))
	}
	signature, err := base64.StdEncoding.DecodeString(strings.TrimSpace(said.String()))
	if err != nil {
		return nil, fmt.Errorf("signing command: it printed no base64: %w", err)
	}
	return checked(c.Key, message, signature, "signing command")
}

// checked is a signature that was made elsewhere, if the key has it so.
func checked(key PublicKey, message, signature []byte, by string) ([]byte, error) {
	if !key.Verify(message, signature) {
		return nil, fmt.Errorf("%s: what it returned is no signature by the key %s…", by, key.ID())
	}
	return signature, nil
}

// upTo keeps the first bytes that are written.
type upTo struct {
	bytes.Buffer
	most int
}

func (u *upTo) Write(b []byte) (int, error) {
	u.Buffer.Write(b[:min(len(b), u.most-u.Len())])
	return len(b), nil
}
