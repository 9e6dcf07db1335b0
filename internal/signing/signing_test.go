package signing

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newKey(t *testing.T) Ed25519 {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return Ed25519(key)
}

func write(t *testing.T, file string, lines ...any) string {
	t.Helper()
	var text strings.Builder
	for _, l := range lines {
		fmt.Fprintln(&text, l)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestKeyFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "seeder.key")
	public, err := WriteKey(file)
	if err != nil {
		t.Fatal(err)
	}
	private, err := ReadKey(file)
	if err != nil || private.Public() != public {
		t.Fatalf("read back: %v", err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := WriteKey(file); !errors.Is(err, os.ErrExist) {
		t.Errorf("a key was overwritten: %v", err)
	}
	other := newKey(t).Public()
	trust, err := OpenTrust([]string{file + ".pub", other.String()}, "")
	if err != nil || !slices.Equal(trust.Keys(), []PublicKey{public, other}) {
		t.Errorf("trust: %v, %v", trust.Keys(), err)
	}
	if _, err := OpenTrust([]string{file}, ""); err == nil {
		t.Error("a private key was taken for a public one")
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKey(file); err == nil || !strings.Contains(err.Error(), "chmod 600 "+file) {
		t.Errorf("a key that everybody may read: %v", err)
	}
	if _, err := ReadKey(file + ".none"); err == nil || !strings.Contains(err.Error(), "seeder keygen") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}

func TestPublicKeys(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ECDSAKey(&ec.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("message")
	digest := sha256.Sum256(message)
	der, err := ecdsa.SignASN1(rand.Reader, ec, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature, err := plain(der)
	if err != nil {
		t.Fatal(err)
	}
	ed := newKey(t)
	edSignature, _ := ed.Sign(t.Context(), message)
	for _, c := range []struct {
		key PublicKey
		sig []byte
	}{{p256, signature}, {ed.Public(), edSignature}} {
		read, err := ParsePublicKey(c.key.String())
		if err != nil || read != c.key {
			t.Errorf("read back %v, %v", read, err)
		}
		if !c.key.Verify(message, c.sig) || c.key.Verify([]byte("other"), c.sig) || c.key.Verify(message, c.sig[1:]) {
			t.Errorf("key of %d bytes: it does not tell its signatures from others", len(c.key.Bytes()))
		}
		for i := range c.sig {
			c.sig[i] ^= 1
			if c.key.Verify(message, c.sig) {
				t.Errorf("byte %d of a signature changed and nobody saw", i)
			}
			c.sig[i] ^= 1
		}
	}
	if p256.Verify(message, edSignature) || (PublicKey{}).Verify(message, edSignature) {
		t.Error("one key's signature is another's")
	}
	for name, raw := range map[string][]byte{"no point": append([]byte{2}, make([]byte, 31)...), "off the curve": append([]byte{2}, slices.Repeat([]byte{0xff}, 32)...), "neither length": make([]byte, 40)} {
		if _, err := PublicKeyOf(raw); err == nil && len(raw) != ed25519Size {
			t.Errorf("%s: taken for a key", name)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ECDSAKey(&p384.PublicKey); err == nil {
		t.Error("a key of another curve is taken")
	}
}

func TestRules(t *testing.T) {
	a, b, c := newKey(t).Public(), newKey(t).Public(), newKey(t).Public()
	dir := t.TempDir()
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	list := write(t, filepath.Join(dir, "list"), "# the web team's", c.String()+":prefix=web/ # until they have their own", "")
	// As a list of flags comes in, cut at each comma.
	specs := strings.Split(a.String()+":bucket=global-builds,prefix=app/,"+b.String()+":until=2026-06-02,"+list+":bucket=global-builds", ",")
	trust, err := OpenTrust(specs, "")
	if err != nil {
		t.Fatal(err)
	}
	trust.now = func() time.Time { return now }
	for _, q := range []struct {
		key            PublicKey
		bucket, object string
		want           string // empty for yes
	}{
		{a, "global-builds", "app/1.zip", ""},
		{a, "global-builds", "other/1.zip", "not trusted with this"},
		{a, "other-builds", "app/1.zip", "not trusted with this"},
		{b, "other-builds", "anything", ""},
		{c, "global-builds", "web/1.zip", ""},
		{c, "other-builds", "web/1.zip", "not trusted with this"},
		{c, "global-builds", "app/1.zip", "not trusted with this"},
		{newKey(t).Public(), "global-builds", "app/1.zip", "not among"},
	} {
		err := trust.Check(q.key, q.bucket, q.object)
		if q.want == "" && err != nil || q.want != "" && (!errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), q.want)) {
			t.Errorf("%s/%s: %v, want %q", q.bucket, q.object, err, q.want)
		}
	}
	if len(trust.Keys()) != 3 {
		t.Errorf("%d keys are trusted", len(trust.Keys()))
	}
	now = now.AddDate(0, 0, 1)
	if err := trust.Check(b, "x", "y"); err == nil || !strings.Contains(err.Error(), "until 2026-06-02") {
		t.Errorf("a trust that is over: %v", err)
	}
	if slices.Contains(trust.Keys(), b) {
		t.Error("a trust that is over is still told of")
	}
	for _, wrong := range []string{a.String() + ":bucket=", a.String() + ":until=soon", a.String() + ":prefix=a,colour=red", "nothing"} {
		if _, err := OpenTrust([]string{wrong}, ""); err == nil {
			t.Errorf("taken: %s", wrong)
		}
	}
}

func TestRulesAreBounded(t *testing.T) {
	dir := t.TempDir()
	key := newKey(t).Public()
	lines := make([]any, maxRules+1)
	for i := range lines {
		lines[i] = fmt.Sprintf("%s:prefix=%d/", key, i)
	}
	file := write(t, filepath.Join(dir, "keys"), lines...)
	if _, err := OpenTrust([]string{file}, ""); err == nil {
		t.Error("more rules than there may be")
	}
	write(t, file, lines[1:]...)
	if _, err := OpenTrust([]string{file}, ""); err != nil {
		t.Error(err)
	}
	write(t, file, strings.Repeat("#", maxListFile))
	if _, err := OpenTrust([]string{file}, ""); err == nil {
		t.Error("a longer file than there may be")
	}
}

// Keys that are in no file are the same when they are looked at again.
func TestTrustIn(t *testing.T) {
	if changed, err := TrustIn(newKey(t).Public()).Reload(); changed || err != nil {
		t.Errorf("changed: %v, %v", changed, err)
	}
}

// TestRotation goes from one key to the next as docs/security.md has it, and then revokes
// the old one.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	before, after := newKey(t).Public(), newKey(t).Public()
	keys := write(t, filepath.Join(dir, "keys"), before)
	revoked := write(t, filepath.Join(dir, "revoked"))
	trust, err := OpenTrust([]string{keys}, revoked)
	if err != nil {
		t.Fatal(err)
	}
	reload := func(want bool) {
		t.Helper()
		if changed, err := trust.Reload(); err != nil || changed != want {
			t.Errorf("changed: %v, want %v; %v", changed, want, err)
		}
	}
	reload(false)
	write(t, keys, before, after)
	reload(true)
	if trust.CheckKey(before) != nil || trust.CheckKey(after) != nil {
		t.Error("one of two keys is not trusted")
	}
	write(t, revoked, before, "# it was on a laptop")
	reload(true)
	if err := trust.CheckKey(before); !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a revoked key: %v", err)
	}
	write(t, keys, "garbage")
	if _, err := trust.Reload(); err == nil {
		t.Error("garbage is read")
	}
	if trust.CheckKey(after) != nil {
		t.Error("the rules of before do not hold after a failure")
	}
	write(t, keys, after)
	if _, err := OpenTrust([]string{keys}, revoked, before); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a seeder signs with a revoked key: %v", err)
	}
}

// While the list of revoked keys is being written it revokes what it did before, and then
// what it says.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	first, second := newKey(t).Public(), newKey(t).Public()
	keys, revoked := write(t, filepath.Join(dir, "keys"), first, second), write(t, filepath.Join(dir, "revoked"), first)
	trust, err := OpenTrust([]string{keys}, revoked)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		changes, errs, done := 0, 0, make(chan struct{})
		go func() {
			defer close(done)
			trust.Watch(ctx, func() { changes++ }, func(error) { errs++ })
		}()
		at := func(d time.Duration, file string, lines ...any) {
			write(t, file, lines...)
			if err := os.Chtimes(file, time.Time{}, time.Now().Add(d)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(watchInterval)
			synctest.Wait()
		}
		at(watchInterval-settled/2, revoked)
		if changes != 0 || trust.CheckKey(first) == nil {
			t.Error("an emptied list counts while it is written")
		}
		at(watchInterval-2*settled, revoked, second)
		if changes != 1 || trust.CheckKey(first) != nil || trust.CheckKey(second) == nil {
			t.Errorf("%d changes: the list does not count that has been written", changes)
		}
		at(watchInterval-2*settled, revoked, "rubbish")
		at(watchInterval-2*settled, revoked, "rubbish")
		if changes != 1 || errs != 1 {
			t.Errorf("%d changes, %d errors for rubbish", changes, errs)
		}
		cancel()
		<-done
	})
}

// settled is after how long a file is read again.
const settled = time.Second

func TestCommand(t *testing.T) {
	// A program that keeps a key: this one has its signature ready.
	key := newKey(t)
	message := []byte("landfall-end-v1\n{}")
	signature, _ := key.Sign(t.Context(), message)
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "signature"), base64.StdEncoding.EncodeToString(signature))
	got := filepath.Join(dir, "got")
	signer := Command{Line: fmt.Sprintf("cat > '%s'; cat '%s'", got, file), Key: key.Public()}
	out, err := signer.Sign(t.Context(), message)
	if err != nil || !key.Public().Verify(message, out) {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(got); err != nil || string(b) != string(message) {
		t.Errorf("the command got %q, %v", b, err)
	}
	for line, want := range map[string]string{
		"echo no key >&2; exit 3": "no key",
		"echo '?'":                "base64",
		"echo AAAA":               "no signature by the key",
		"cat '" + file + "' && cat /dev/zero | head -c 100000": "base64",
	} {
		if _, err := (Command{Line: line, Key: key.Public()}).Sign(t.Context(), message); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", line, err)
		}
	}
	if _, err := signer.Sign(t.Context(), []byte("something else")); err == nil {
		t.Error("a signature of something else is taken")
	}
}

// TestKMS talks to what answers as the API reference of AWS KMS has it: GetPublicKey with
// a SubjectPublicKeyInfo, Sign with an ECDSA signature in DER.
func TestKMS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	usage, spoil := "SIGN_VERIFY", false
	var asked sync.Map
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			KeyId, MessageType, SigningAlgorithm string
			Message                              []byte
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.KeyId != "alias/landfall" {
			t.Errorf("asked for %q, %v", in.KeyId, err)
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		target := r.Header.Get("X-Amz-Target")
		asked.Store(strings.Replace(target, "TrentService.", "kms:", 1), true)
		switch target {
		case "TrentService.GetPublicKey":
			_ = json.NewEncoder(w).Encode(map[string]any{"KeyId": in.KeyId, "PublicKey": spki, "KeySpec": "ECC_NIST_P256", "KeyUsage": usage, "SigningAlgorithms": []string{"ECDSA_SHA_256"}})
		case "TrentService.Sign":
			if in.MessageType != "DIGEST" || in.SigningAlgorithm != "ECDSA_SHA_256" || len(in.Message) != 32 {
				t.Errorf("sign %s by %s, %d bytes", in.MessageType, in.SigningAlgorithm, len(in.Message))
			}
			if spoil {
				in.Message[0]++
			}
			der, err := ecdsa.SignASN1(rand.Reader, key, in.Message)
			if err != nil {
				t.Error(err)
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"KeyId": in.KeyId, "Signature": der, "SigningAlgorithm": in.SigningAlgorithm})
		default:
			t.Errorf("asked for %s", target)
		}
	}))
	defer server.Close()
	defer server.Client().CloseIdleConnections()
	cfg := aws.Config{Region: "us-east-1", BaseEndpoint: &server.URL, HTTPClient: server.Client(), Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}
	signer, err := OpenKMS(t.Context(), cfg, "alias/landfall")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 { // some numbers begin with zeros
		if s, err := signer.Sign(t.Context(), []byte("message")); err != nil || !signer.Public().Verify([]byte("message"), s) {
			t.Fatalf("%x, %v", s, err)
		}
	}
	spoil = true
	if _, err := signer.Sign(t.Context(), []byte("message")); err == nil || !strings.Contains(err.Error(), "no signature by the key") {
		t.Errorf("another's signature: %v", err)
	}
	usage = "KEY_AGREEMENT"
	if _, err := OpenKMS(t.Context(), cfg, "alias/landfall"); err == nil || !strings.Contains(err.Error(), "SIGN_VERIFY") {
		t.Errorf("a key for something else: %v", err)
	}

	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	policy := regexp.MustCompile(`"Action": \[("kms:[^]]*)\]`).FindSubmatch(page)
	if policy == nil {
		t.Fatal("docs/security.md has no policy for KMS")
	}
	allowed := strings.Split(strings.ReplaceAll(string(policy[1]), `"`, ""), ", ")
	var needed []string
	asked.Range(func(action, _ any) bool { needed = append(needed, action.(string)); return true })
	if slices.Sort(needed); !slices.Equal(needed, allowed) {
		t.Errorf("KMS is asked for %v, docs/security.md allows %v", needed, allowed)
	}
}

func FuzzPlain(f *testing.F) {
	f.Add([]byte{0x30, 6, 2, 1, 1, 2, 1, 1})
	f.Fuzz(func(t *testing.T, der []byte) {
		if out, err := plain(der); err == nil && len(out) != SignatureSize {
			t.Errorf("%d bytes", len(out))
		}
	})
}
