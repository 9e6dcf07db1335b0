package awsproof

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const role = "arn:aws:sts::123456789012:assumed-role/landfall-agent-a/i-0abc"

// sts answers as the API reference of AWS STS has it, and checks signatures as Signature
// Version 4 says, by signing what it got once more.
func sts(t *testing.T, keys map[string]string) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		given := r.Header.Get("Authorization")
		id, _, _ := strings.Cut(strings.TrimPrefix(given, "AWS4-HMAC-SHA256 Credential="), "/")
		at, dateErr := time.Parse(dateFormat, r.Header.Get("X-Amz-Date"))
		if err != nil || dateErr != nil || string(text) != body || keys[id] == "" {
			http.Error(w, "<ErrorResponse><Error><Code>InvalidClientTokenId</Code></Error></ErrorResponse>", http.StatusForbidden)
			return
		}
		again, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+r.Host+r.URL.Path, strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		for _, name := range []string{"Content-Type", clusterHeader, keyHeader} {
			again.Header.Set(name, r.Header.Get(name))
		}
		sum := sha256.Sum256(text)
		err = v4.NewSigner().SignHTTP(r.Context(), aws.Credentials{AccessKeyID: id, SecretAccessKey: keys[id], SessionToken: r.Header.Get("X-Amz-Security-Token")},
			again, hex.EncodeToString(sum[:]), "sts", "us-east-1", at)
		if err != nil || again.Header.Get("Authorization") != given {
			http.Error(w, "<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code></Error></ErrorResponse>", http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>%s</Arn><UserId>AROA:i-0abc</UserId><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`, role)
	}))
	t.Cleanup(server.Close)
	return server
}

func TestProof(t *testing.T) {
	server := sts(t, map[string]string{"AKID": "secret"})
	defer server.Client().CloseIdleConnections()
	key, other := sha256.Sum256([]byte("key")), sha256.Sum256([]byte("other"))
	cfg := aws.Config{Credentials: credentials.NewStaticCredentialsProvider("AKID", "secret", "session")}
	proof, err := New(t.Context(), cfg, server.URL, "prod", key)
	if err != nil {
		t.Fatal(err)
	}
	check := func(cluster string, p Proof, key [32]byte, now time.Time) (Caller, error) {
		c := &Checker{Endpoint: server.URL, Cluster: cluster, Client: server.Client(), Now: func() time.Time { return now }}
		return c.Check(t.Context(), p, key)
	}
	now := time.Now()
	if caller, err := check("prod", proof, key, now); err != nil || caller.ARN != role || caller.Account != "123456789012" {
		t.Errorf("%+v, %v", caller, err)
	}
	wrong, err := New(t.Context(), aws.Config{Credentials: credentials.NewStaticCredentialsProvider("AKID", "guessed", "")}, server.URL, "prod", key)
	if err != nil {
		t.Fatal(err)
	}
	unsigned := proof
	unsigned.Authorization = strings.Replace(proof.Authorization, "x-landfall-cluster;", "", 1)
	broken := proof
	broken.Authorization += "\r\nX-Other: 1"
	long := proof
	long.Token = strings.Repeat("x", maxHeader+1)
	for name, c := range map[string]struct {
		cluster string
		proof   Proof
		key     [32]byte
		now     time.Time
	}{
		"for another cluster":             {"test", proof, key, now},
		"for another key":                 {"prod", proof, other, now},
		"of who does not know the secret": {"prod", wrong, key, now},
		"without the cluster's header":    {"prod", unsigned, key, now},
		"with a line break":               {"prod", broken, key, now},
		"with an endless token":           {"prod", long, key, now},
		"of yesterday":                    {"prod", proof, key, now.AddDate(0, 0, 1)},
		"of tomorrow":                     {"prod", proof, key, now.AddDate(0, 0, -1)},
		"of nothing":                      {"prod", Proof{}, key, now},
	} {
		if caller, err := check(c.cluster, c.proof, c.key, c.now); !errors.Is(err, ErrRefused) {
			t.Errorf("a proof %s: %+v, %v", name, caller, err)
		}
	}
}

func TestAnswersAreBounded(t *testing.T) {
	cfg := aws.Config{Credentials: credentials.NewStaticCredentialsProvider("AKID", "secret", "")}
	for name, handler := range map[string]http.HandlerFunc{
		"endless":      func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("<a>", maxAnswer)) },
		"nobody":       func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<GetCallerIdentityResponse/>") },
		"a redirect":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"out of order": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
	} {
		server := httptest.NewServer(handler)
		proof, err := New(context.Background(), cfg, server.URL, "prod", [32]byte{})
		if err != nil {
			t.Fatal(err)
		}
		c := &Checker{Endpoint: server.URL, Cluster: "prod", Client: server.Client()}
		if caller, err := c.Check(t.Context(), proof, [32]byte{}); err == nil || errors.Is(err, ErrRefused) {
			t.Errorf("%s: %+v, %v", name, caller, err)
		}
		server.Client().CloseIdleConnections()
		server.Close()
	}
}

func TestMatches(t *testing.T) {
	for pattern, want := range map[string]bool{
		role: true,
		"arn:aws:sts::123456789012:assumed-role/landfall-agent-a/*": true,
		"arn:aws:sts::123456789012:assumed-role/landfall-agent-?/*": true,
		"arn:aws:sts::123456789012:assumed-role/landfall-agent-*":   false, // no slash
		"arn:aws:sts::*": false, // no colon
		"*":              false,
		"arn:aws:sts::999999999999:assumed-role/landfall-agent-a/*": false,
		"": false,
		"arn:aws:sts::123456789012:assumed-role/[l]andfall-agent-a/*": false,
	} {
		if got := Matches(pattern, role); got != want {
			t.Errorf("%s: %v", pattern, got)
		}
	}
	if regionOf("https://sts.eu-west-3.amazonaws.com") != "eu-west-3" || regionOf("https://sts.amazonaws.com") != "us-east-1" {
		t.Error("an endpoint's region is not known")
	}
}
