package awsproof_test

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/identity/awsproof"
	"github.com/landfall-dist/landfall/internal/identity/awsproof/ststest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const role = "arn:aws:sts::123456789012:assumed-role/landfall-agent-a/i-0abc"

func TestProof(t *testing.T) {
	server := ststest.New(t, map[string]ststest.Caller{"AKID": {Secret: "secret", ARN: role}})
	defer server.Client().CloseIdleConnections()
	key, other := sha256.Sum256([]byte("key")), sha256.Sum256([]byte("other"))
	cfg := aws.Config{Credentials: credentials.NewStaticCredentialsProvider("AKID", "secret", "session")}
	proof, err := awsproof.New(t.Context(), cfg, server.URL, "prod", key)
	if err != nil {
		t.Fatal(err)
	}
	check := func(cluster string, p awsproof.Proof, key [32]byte, now time.Time) (awsproof.Caller, error) {
		c := &awsproof.Checker{Endpoint: server.URL, Cluster: cluster, Client: server.Client(), Now: func() time.Time { return now }}
		return c.Check(t.Context(), p, key)
	}
	now := time.Now()
	if caller, err := check("prod", proof, key, now); err != nil || caller.ARN != role || caller.Account != "123456789012" {
		t.Errorf("%+v, %v", caller, err)
	}
	wrong, err := awsproof.New(t.Context(), aws.Config{Credentials: credentials.NewStaticCredentialsProvider("AKID", "guessed", "")}, server.URL, "prod", key)
	if err != nil {
		t.Fatal(err)
	}
	unsigned := proof
	unsigned.Authorization = strings.Replace(proof.Authorization, "x-landfall-cluster;", "", 1)
	broken := proof
	broken.Authorization += "\r\nX-Other: 1"
	long := proof
	long.Token = strings.Repeat("x", 8<<10+1)
	for name, c := range map[string]struct {
		cluster string
		proof   awsproof.Proof
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
		"of nothing":                      {"prod", awsproof.Proof{}, key, now},
	} {
		if caller, err := check(c.cluster, c.proof, c.key, c.now); !errors.Is(err, awsproof.ErrRefused) {
			t.Errorf("a proof %s: %+v, %v", name, caller, err)
		}
	}
}

func TestAnswersAreBounded(t *testing.T) {
	cfg := aws.Config{Credentials: credentials.NewStaticCredentialsProvider("AKID", "secret", "")}
	for name, handler := range map[string]http.HandlerFunc{
		"endless":      func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("<a>", 64<<10)) },
		"nobody":       func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<GetCallerIdentityResponse/>") },
		"a redirect":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"out of order": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
	} {
		server := httptest.NewServer(handler)
		proof, err := awsproof.New(context.Background(), cfg, server.URL, "prod", [32]byte{})
		if err != nil {
			t.Fatal(err)
		}
		c := &awsproof.Checker{Endpoint: server.URL, Cluster: "prod", Client: server.Client()}
		if caller, err := c.Check(t.Context(), proof, [32]byte{}); err == nil || errors.Is(err, awsproof.ErrRefused) {
			t.Errorf("%s: %+v, %v", name, caller, err)
		}
		server.Client().CloseIdleConnections()
		server.Close()
	}
}

func TestRules(t *testing.T) {
	for pattern, want := range map[string]bool{
		role: true,
		"arn:aws:sts::123456789012:assumed-role/landfall-agent-a/*":    true,
		"arn:aws:sts::123456789012:assumed-role/landfall-agent/*":      false,
		"arn:aws:sts::999999999999:assumed-role/landfall-agent-a/*":    false,
		"arn:aws:iam::123456789012:user/landfall-agent-a/i-0abc":       false,
		"arn:aws-cn:sts::123456789012:assumed-role/landfall-agent-a/*": false,
	} {
		r, err := awsproof.ParseRule(pattern + "=region-a")
		if err != nil || r.Region != "region-a" || r.Matches(role) != want {
			t.Errorf("%s: %+v, %v", pattern, r, err)
		}
		for _, arn := range []string{role + "/x", role + ":x", "", strings.TrimSuffix(role, "i-0abc"), strings.TrimSuffix(role, "/i-0abc"), "x" + role, strings.Replace(role, "-a/", "-ab/", 1)} {
			if r.Matches(arn) {
				t.Errorf("%s is about %q", pattern, arn)
			}
		}
	}
	for _, bad := range []string{
		"", role, role + "=", "=region-a", "*=region-a", "arn:*=region-a", "arn:aws:sts::*:assumed-role/r/*=region-a", "arn:aws:sts::123456789012:assumed-role/*/i-0abc=region-a",
		"arn:aws:sts::123456789012:assumed-role/landfall-*/*=region-a", "arn:aws:sts::123456789012:assumed-role/landfall/i-*=region-a", "arn:aws:sts::123456789012:assumed-role/*=region-a",
		"arn:aws:sts::123456789012:assumed-role/landfall/?=region-a", "arn:aws:iam::123456789012:user/*=region-a", "arn:aws:iam::123456789012:root=region-a", "arn:aws:sts::12345678901:assumed-role/r/*=region-a",
	} {
		if r, err := awsproof.ParseRule(bad); err == nil {
			t.Errorf("%q is a rule: %+v", bad, r)
		}
	}
}

func TestEndpoints(t *testing.T) {
	for _, good := range []string{awsproof.DefaultEndpoint, "https://sts.eu-west-3.amazonaws.com", "http://127.0.0.1:4566", "http://[::1]:80"} {
		if err := awsproof.CheckEndpoint(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "sts.amazonaws.com", "http://sts.amazonaws.com", "http://localhost:80", "https://a@b", "https://sts.amazonaws.com/?x", "https://sts.amazonaws.com/x", "ftp://127.0.0.1"} {
		if awsproof.CheckEndpoint(bad) == nil {
			t.Errorf("%q is an endpoint", bad)
		}
	}
}

// TestMoto has moto's STS, another's server of the protocol, say who has made a proof; with
// signatures checked.
func TestMoto(t *testing.T) {
	program, err := exec.LookPath(cmp.Or(os.Getenv("LANDFALL_TEST_MOTO"), "moto_server"))
	if err != nil {
		t.Skip("moto_server is not here (pip install 'moto[server]')")
	}
	url := startMoto(t, program)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	post := func(path, kind, text, authorization string) string {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+path, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", kind)
		r.Header.Set("Authorization", authorization)
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("%s %s, %v", answer.Status, b, err)
		}
		return string(b)
	}
	text := post("/", "application/x-www-form-urlencoded", "Action=AssumeRole&Version=2011-06-15&RoleArn=arn:aws:iam::123456789012:role/landfall-agent-a&RoleSessionName=i-0abc",
		"AWS4-HMAC-SHA256 Credential=test/20300102/us-east-1/sts/aws4_request, SignedHeaders=host, Signature=00")
	var assumed struct {
		AccessKeyID     string `xml:"AssumeRoleResult>Credentials>AccessKeyId"`
		SecretAccessKey string `xml:"AssumeRoleResult>Credentials>SecretAccessKey"`
		SessionToken    string `xml:"AssumeRoleResult>Credentials>SessionToken"`
	}
	if err := xml.Unmarshal([]byte(text), &assumed); err != nil || assumed.SecretAccessKey == "" {
		t.Fatalf("%s, %v", text, err)
	}
	post("/moto-api/reset-auth", "text/plain", "0", "") // from now on it looks at signatures
	key := sha256.Sum256([]byte("key"))
	prove := func(secret string) (awsproof.Caller, error) {
		cfg := aws.Config{Credentials: credentials.NewStaticCredentialsProvider(assumed.AccessKeyID, secret, assumed.SessionToken)}
		proof, err := awsproof.New(t.Context(), cfg, url, "prod", key)
		if err != nil {
			t.Fatal(err)
		}
		c := &awsproof.Checker{Endpoint: url, Cluster: "prod", Client: client}
		return c.Check(t.Context(), proof, key)
	}
	if caller, err := prove(assumed.SecretAccessKey); err != nil || caller.ARN != role || caller.Account != "123456789012" {
		t.Errorf("%+v, %v", caller, err)
	}
	if caller, err := prove("guessed"); !errors.Is(err, awsproof.ErrRefused) {
		t.Errorf("a guessed secret: %+v, %v", caller, err)
	}
}

// startMoto starts it on a free port that it chooses, and ends it with the test.
func startMoto(t *testing.T, program string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), program, "-H", "127.0.0.1", "-p", "0")
	out, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_, _ = io.Copy(io.Discard, out)
		_ = c.Wait() // killed
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, url, ok := strings.Cut(lines.Text(), "Running on "); ok {
			return strings.TrimSpace(url)
		}
	}
	t.Fatal("moto_server ends without an address")
	return ""
}
