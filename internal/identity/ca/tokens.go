package ca

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/private"
)

// Join tokens lie in the authority's directory, a file each, and one more beside it when
// the token has been used. That one is made before a certificate goes out, by one process
// alone: several seeders may share the directory.

const (
	// JoinTokenLife is how long a token may be used where nothing else is said;
	// minJoinTokenLife and MaxJoinTokenLife bound it.
	JoinTokenLife    = time.Hour
	minJoinTokenLife = time.Minute
	MaxJoinTokenLife = 7 * 24 * time.Hour
	// maxJoinTokens bounds the tokens that have not ended.
	maxJoinTokens = 1000
	// maxJoinTokenFile bounds what is kept of a token, in bytes.
	maxJoinTokenFile = 2 << 10
	// tokensDir holds the tokens, usedSuffix ends the name of what says that one is used.
	tokensDir, usedSuffix = "tokens", ".used"
	// abandoned is how old a file is that somebody who wrote it has not finished.
	abandoned = time.Hour
)

// ErrJoinRefused is why somebody gets no certificate, and may be told so.
var ErrJoinRefused = errors.New("the join token is refused")

// JoinToken is what is known of a token.
type JoinToken struct {
	ID   string        `json:"id"`
	Kind identity.Kind `json:"kind"`
	// Region and Name are those of who may use it; an empty name is any.
	Region string    `json:"region,omitempty"`
	Name   string    `json:"name,omitempty"`
	Made   time.Time `json:"made"`
	Ends   time.Time `json:"ends"`
	// Used is who has used it, nil for nobody.
	Used *JoinTokenUse `json:"used,omitempty"`
}

// JoinTokenUse says who has used a token.
type JoinTokenUse struct {
	ID   string    `json:"id"`
	From string    `json:"from"`
	At   time.Time `json:"at"`
	// Key is the SHA-256 of the public key: who has it may ask again.
	Key []byte `json:"key"`
}

// keptToken is a token's file.
type keptToken struct {
	JoinToken
	Hash []byte `json:"hash"` // of the secret
}

// For says for whom the token is, as in `seeder ca token`.
func (t JoinToken) For() string {
	return strings.Join(slices.DeleteFunc([]string{string(t.Kind), t.Region, t.Name}, func(s string) bool { return s == "" }), " ")
}

// NewJoinToken makes a token for one seeder, or for one agent of a region; an empty name
// lets the member choose it. Of the secret it keeps a hash. Tokens that have ended are
// removed.
func (d *Dir) NewJoinToken(kind identity.Kind, region, name string, life time.Duration) (identity.JoinToken, JoinToken, error) {
	var none identity.JoinToken
	example := identity.ID{Cluster: d.cluster, Kind: kind, Region: region, Name: name}
	if name == "" {
		example.Name = "x"
	}
	if kind != identity.Seeder && kind != identity.Agent {
		return none, JoinToken{}, fmt.Errorf("join tokens are for seeders and agents, not for a %.80q", kind)
	}
	if err := example.Check(); err != nil {
		return none, JoinToken{}, err
	}
	if life < minJoinTokenLife || life > MaxJoinTokenLife {
		return none, JoinToken{}, fmt.Errorf("a join token holds from %s to %s, not %s", minJoinTokenLife, MaxJoinTokenLife, life)
	}
	if err := private.MkdirAll(d.tokens()); err != nil {
		return none, JoinToken{}, fmt.Errorf("making the directory of join tokens: %w", err)
	}
	left, err := d.clearTokens()
	if err != nil {
		return none, JoinToken{}, fmt.Errorf("removing join tokens that have ended: %w", err)
	}
	if left >= maxJoinTokens {
		return none, JoinToken{}, fmt.Errorf("%d join tokens have not ended, at most %d; remove some with `seeder ca token remove ID`", left, maxJoinTokens)
	}
	now := d.clock.Now().UTC().Truncate(time.Second)
	token := identity.NewJoinToken(identity.FingerprintOf(d.cert))
	hash := token.Hash()
	kept := keptToken{JoinToken{ID: token.ID, Kind: kind, Region: region, Name: name, Made: now, Ends: now.Add(life)}, hash[:]}
	text, err := json.Marshal(kept)
	if err == nil {
		err = private.WriteOnce(d.tokenFile(token.ID), append(text, '\n'))
	}
	if err != nil {
		return none, JoinToken{}, fmt.Errorf("writing a join token: %w", err)
	}
	return token, kept.JoinToken, nil
}

// JoinTokens are those that are kept, the oldest first.
func (d *Dir) JoinTokens() ([]JoinToken, error) {
	ids, err := d.tokenIDs()
	if err != nil {
		return nil, fmt.Errorf("listing join tokens: %w", err)
	}
	var all []JoinToken
	for _, id := range ids {
		t, err := d.readToken(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		all = append(all, t.JoinToken)
	}
	slices.SortFunc(all, func(a, b JoinToken) int {
		if c := a.Made.Compare(b.Made); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all, nil
}

// RemoveJoinToken makes a token of no use.
func (d *Dir) RemoveJoinToken(id string) error {
	if err := identity.CheckJoinTokenID(id); err != nil {
		return err
	}
	if err := d.removeTokens(id); err != nil {
		return fmt.Errorf("removing join token %s: %w", id, err)
	}
	return nil
}

// Join makes the first certificate of who shows a token, for the key that has signed the
// request (PKCS #10, DER), and returns it in PEM. An empty name takes the token's, or
// otherwise where that has none. The token is marked as used, on disk, before there is a
// certificate; who asks again with the same key gets one again until the token ends. A
// refusal that may be told to who asks is an ErrJoinRefused.
func (d *Dir) Join(token identity.JoinToken, id identity.ID, otherwise string, request []byte, from string) ([]byte, identity.ID, error) {
	kept, err := d.known(token)
	if err != nil {
		return nil, id, err
	}
	id.Cluster = d.cluster
	if id.Name == "" {
		if id.Name = kept.Name; id.Name == "" {
			id.Name = otherwise
		}
	}
	r, key, err := checkRequest(id, request)
	if err != nil {
		return nil, id, fmt.Errorf("%w: %w", ErrJoinRefused, err)
	}
	now := d.clock.Now()
	switch {
	case kept.Used != nil && (subtle.ConstantTimeCompare(kept.Used.Key, key) == 0 || kept.Used.ID != id.String()):
		return nil, id, errUsed(kept.JoinToken)
	case !now.Before(kept.Ends):
		return nil, id, fmt.Errorf("%w: it ended at %s and here it is %s; make another with `seeder ca token %s`", ErrJoinRefused, stamp(kept.Ends), stamp(now), kept.For())
	case id.Kind != kept.Kind || id.Region != kept.Region || kept.Name != "" && id.Name != kept.Name:
		return nil, id, fmt.Errorf("%w: it is for %s, and was shown by %s; make another with `seeder ca token`", ErrJoinRefused, kept.For(), id)
	}
	if kept.Used == nil {
		use := JoinTokenUse{ID: id.String(), From: from, At: now.UTC().Truncate(time.Second), Key: key}
		if err := d.markUsed(kept, use); err != nil {
			return nil, id, err
		}
	}
	chain, err := d.Issue(id, r.PublicKey)
	if err != nil {
		return nil, id, err
	}
	return identity.FormatCerts(chain...), id, nil
}

// IssueFor makes the first certificate of who has proved who it is otherwise, for the key
// that has signed the request (PKCS #10, DER), and returns it in PEM.
func (d *Dir) IssueFor(id identity.ID, request []byte) ([]byte, error) {
	r, _, err := checkRequest(id, request)
	if err != nil {
		return nil, err
	}
	chain, err := d.Issue(id, r.PublicKey)
	if err != nil {
		return nil, err
	}
	return identity.FormatCerts(chain...), nil
}

// known finds a token by its id and compares the secrets.
func (d *Dir) known(token identity.JoinToken) (keptToken, error) {
	var kept keptToken
	if identity.CheckJoinTokenID(token.ID) == nil {
		var err error
		if kept, err = d.readToken(token.ID); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return kept, err
		}
	}
	hash := token.Hash()
	if subtle.ConstantTimeCompare(hash[:], kept.Hash) == 0 {
		// Neither which of the two is wrong, nor what is known of the token.
		return kept, errUnknown()
	}
	return kept, nil
}

func errUnknown() error {
	return fmt.Errorf("%w: it is not known here: it was removed, has ended, or was made in another directory than this seeder's --ca; make another there with `seeder ca token`", ErrJoinRefused)
}

// markUsed is done before a certificate is made. Who comes second, and is another, is
// refused.
func (d *Dir) markUsed(kept keptToken, use JoinTokenUse) error {
	text, err := json.Marshal(use)
	if err == nil {
		err = private.WriteOnce(d.tokenFile(kept.ID)+usedSuffix, append(text, '\n'))
	}
	if err == nil {
		// One that is being removed loses its mark as well.
		_, err = os.Lstat(d.tokenFile(kept.ID))
		if errors.Is(err, fs.ErrNotExist) {
			return errUnknown()
		}
		return err
	}
	if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("marking join token %s as used: %w", kept.ID, err)
	}
	first, err := d.readToken(kept.ID)
	if err != nil {
		return err
	}
	if first.Used == nil || subtle.ConstantTimeCompare(first.Used.Key, use.Key) == 0 || first.Used.ID != use.ID {
		return errUsed(first.JoinToken)
	}
	return nil
}

func errUsed(t JoinToken) error {
	if t.Used == nil {
		return fmt.Errorf("%w: it has been used; make another with `seeder ca token %s`", ErrJoinRefused, t.For())
	}
	return fmt.Errorf("%w: it was used at %s by %s; make another with `seeder ca token %s`, and if that was none of yours, deny it: `seeder ca deny %s`",
		ErrJoinRefused, stamp(t.Used.At), t.Used.ID, t.For(), t.Used.ID)
}

// checkRequest holds a request to what can be certified, and returns the SHA-256 of its key.
func checkRequest(id identity.ID, request []byte) (*x509.CertificateRequest, []byte, error) {
	if err := id.Check(); err != nil {
		return nil, nil, err
	}
	r, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = r.CheckSignature()
	}
	if err == nil {
		err = identity.CheckKey(r.PublicKey)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("request of %s for a certificate: %w", id, err)
	}
	key := sha256.Sum256(r.RawSubjectPublicKeyInfo)
	return r, key[:], nil
}

func (d *Dir) tokens() string             { return filepath.Join(d.path, tokensDir) }
func (d *Dir) tokenFile(id string) string { return filepath.Join(d.tokens(), id) }

// readToken reads a token, and who has used it.
func (d *Dir) readToken(id string) (keptToken, error) {
	t, err := d.readUnused(id)
	if err != nil {
		return t, err
	}
	text, err := private.Read(d.tokenFile(id)+usedSuffix, maxJoinTokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &t.Used)
	}
	if err == nil && t.Used == nil {
		err = errors.New("it is empty")
	}
	if err != nil {
		return keptToken{}, errDamaged(id, err)
	}
	return t, nil
}

// readUnused reads a token alone.
func (d *Dir) readUnused(id string) (keptToken, error) {
	var t keptToken
	text, err := private.Read(d.tokenFile(id), maxJoinTokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return t, err
	}
	if err == nil {
		err = json.Unmarshal(text, &t)
	}
	if err == nil && (t.ID != id || len(t.Hash) != sha256.Size) {
		err = errors.New("it is of another")
	}
	if err != nil {
		return keptToken{}, errDamaged(id, err)
	}
	t.Used = nil
	return t, nil
}

func errDamaged(id string, err error) error {
	return fmt.Errorf("reading join token %s: %w; `seeder ca token remove %s` removes it", id, err, id)
}

// tokenIDs are those of all tokens that are kept.
func (d *Dir) tokenIDs() ([]string, error) {
	entries, err := os.ReadDir(d.tokens())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if identity.CheckJoinTokenID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// clearTokens removes what has ended, and returns how many have not.
func (d *Dir) clearTokens() (left int, err error) {
	now := d.clock.Now()
	entries, err := os.ReadDir(d.tokens())
	if err != nil {
		return 0, err
	}
	var ended []string
	for _, e := range entries {
		id, used := strings.CutSuffix(e.Name(), usedSuffix)
		switch isID := identity.CheckJoinTokenID(id) == nil; {
		case isID && !used:
			t, err := d.readUnused(id)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return 0, err
			}
			if now.Before(t.Ends) {
				left++
			} else {
				ended = append(ended, id)
			}
		case isID:
			// Of a token that was removed up to here.
			if _, err := os.Lstat(d.tokenFile(id)); errors.Is(err, fs.ErrNotExist) {
				_ = os.Remove(d.tokenFile(e.Name())) // or somebody else has
			}
		case strings.HasPrefix(e.Name(), "."):
			if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > abandoned {
				_ = os.Remove(d.tokenFile(e.Name())) // or somebody else has
			}
		}
	}
	if err := d.removeTokens(ended...); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return left, nil
}

// removeTokens removes the tokens first: there is never one that was used and does not say
// so.
func (d *Dir) removeTokens(ids ...string) (err error) {
	for _, suffix := range []string{"", usedSuffix} {
		for _, id := range ids {
			e := os.Remove(d.tokenFile(id) + suffix)
			if suffix == "" || !errors.Is(e, fs.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
		err = errors.Join(err, private.SyncDir(d.tokens()))
	}
	return err
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
