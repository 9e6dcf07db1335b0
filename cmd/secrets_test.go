package cmd_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSecretsStay gives the roles every secret that there is, has them work and fail with
// all that they can say, and looks for the secrets in logs, traces, pages, metrics, answers,
// errors, the lists of processes, and in what they keep on disk beside the files that they
// were given.
func TestSecretsStay(t *testing.T) {
	t.Parallel()
	if !inside(t) {
		return
	}
	dir, _ := workplace(t)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("hook", "http://127.0.0.1:1/services/T0KEN-of-the-hook\n")
	write("builds", "http://reader:T0KEN-of-the-builds@127.0.0.1:1/ci?key=T0KEN-of-the-query\n")
	write("settings", "export OTEL_EXPORTER_OTLP_HEADERS=authorization=T0KEN-of-the-collector\n")
	write("aws", "export AWS_ACCESS_KEY_ID=another AWS_SECRET_ACCESS_KEY=T0KEN-of-AWS\n")
	const member = "--log-level debug"
	var said bytes.Buffer
	ask := func() { // while they run
		for _, url := range []string{
			"http://127.0.0.1:7070/", "http://127.0.0.1:7070/metrics", "http://127.0.0.1:7070/executions", "http://127.0.0.1:7070/readyz", "http://127.0.0.1:7070/limits",
			"http://127.0.0.1:7070/events", "http://127.0.0.1:7080/", "http://127.0.0.1:7080/metrics", "http://127.0.0.1:7080/status", "http://127.0.0.1:7080/events",
			"http://127.0.0.1:7070/services", "http://127.0.0.1:7200/metrics", "http://127.0.0.1:7200/status",
		} {
			said.WriteString(get(t, url))
		}
		for _, file := range [][2]string{{"cmdline", ""}, {"comm", ""}} {
			lists, err := filepath.Glob("/proc/[0-9]*/" + file[0])
			if err != nil {
				t.Error(err)
			}
			for _, l := range lists {
				text, _ := os.ReadFile(l) // one that has ended since
				said.Write(text)
			}
		}
	}
	out := shell(t, dir, []string{
		"export AWS_ENDPOINT_URL=http://127.0.0.1:4566 OTEL_TRACES_EXPORTER=console && . ./settings",
		"bin/landfall-dev cloud --dir cloud > cloud.log 2>&1 &", "healthy bin/landfall-dev health",
		// Also of those who run for a moment only.
		"while sleep 0.02; do cat /proc/[0-9]*/cmdline || true; done > processes.log 2>/dev/null & lists=$!",
		"bin/seeder keygen seeder.key; bin/seeder keygen --gossip-key gossip.key; bin/seeder keygen --operator-token operator.token; bin/seeder keygen --operator-token other.token",
		"install -m 600 /dev/null ci.token; bin/seeder operator add ci --operators operators > ci.token",
		"bin/seeder init --bucket global-builds --destinations region-a-builds,region-b-builds",
		"bin/seeder ca init --dir ca --cluster prod --regions region-a; bin/seeder ca issue seeder s1 --dir ca --out is; bin/seeder ca issue host region-a h1 --dir ca --out ih; bin/seeder ca issue operator ann --dir ca --out oa; bin/seeder ca token agent region-a --dir ca --out join.token; bin/seeder ca token list --dir ca",
		"bin/seeder run --bucket global-builds --destinations region-a-builds,region-b-builds --signing-key seeder.key --gossip-key gossip.key --operator-token operator.token --operators operators --notify-webhook-file hook --build-source-file builds --arrival-timeout 1s --data-dir s --poll 200ms --tls require --identity is --ca ca --serves region-a=region-a-builds --serves region-b=region-b-builds " + member + " > seeder.log 2>&1 &",
		"seeder=$!; healthy bin/seeder health",
		"bin/agent run --region region-a --bucket region-a-builds --join 127.0.0.1:7946 --trust seeder.key.pub --gossip-key gossip.key --operator-token operator.token --data-dir a --tls require --identity ia --join-token join.token --fleet-listen 127.0.0.1:7090 --fleet-peers 127.0.0.1:7092 --host-authority ca/regions/region-a " + member + " > agent.log 2>&1 &",
		"agent=$!; healthy bin/agent health",
		`bin/agent host --service web --dir srv --agents https://127.0.0.1:7090 --trust seeder.key.pub --tls require --identity ih --listen 127.0.0.1:7200 --unpack --exec 'env | grep LANDFALL_; exit 1' ` + member + " > host.log 2>&1 &",
		"host=$!; healthy curl --silent --fail http://127.0.0.1:7200/healthz",
		// The token has been used; another agent says so.
		"bin/agent run --region region-a --bucket region-a-builds --join 127.0.0.1:7946 --trust seeder.key.pub --gossip-key gossip.key --data-dir a2 --listen 127.0.0.1:0 --tls require --identity ia2 --join-token join.token " + member + " > refused.log 2>&1 && exit 1",
		"bin/seeder audit --operator-token operator.token",
		// One region lands, the other fails and is told of; what has a wrong token is refused.
		"bin/seeder publish --operator-token operator.token testdata/builds/hello-1.0.0.zip || true",
		"bin/seeder publish --operator-token ci.token testdata/builds/hello-1.0.0.zip --key by-ci.zip --no-wait",
		"bin/seeder cancel --operator-token ci.token by-ci.zip && exit 1",
		"bin/seeder publish --operator-token other.token testdata/builds/hello-1.0.0.zip --key refused.zip && exit 1",
		// Keys that S3 refuses.
		"(. ./aws; bin/seeder run --bucket global-builds --destinations region-a-builds --signing-key seeder.key --data-dir s2 --listen 127.0.0.1:0 --gossip-listen 127.0.0.1:0 --peer-listen 127.0.0.1:0 " + member + " > aws.log 2>&1) && exit 1",
		// A hook prints what it was told, and fails.
		"bin/seeder publish --operator-token operator.token --to region-a-builds testdata/builds/hello-1.0.0.zip --key service.zip",
		"bin/seeder deploy web service.zip --operator-token operator.token --wave 100% --bake 1s || true",
		"bin/seeder hosts web --state failed",
		"curl_like() { exec 3<>/dev/tcp/127.0.0.1/7070; printf \"$1\" >&3; timeout 5 cat <&3; exec 3>&-; }",
		`token=$(cat operator.token); body='{"commit":"abc"}'`,
		`curl_like "POST /builds HTTP/1.1\r\nHost: 127.0.0.1:7070\r\nConnection: close\r\nAuthorization: Bearer $token\r\nContent-Type: application/json\r\nContent-Length: ${#body}\r\n\r\n$body"`,
		"touch ready; healthy test -e asked",
		"kill $lists; kill $host; wait $host; kill $agent; wait $agent; kill $seeder; wait $seeder",
	}, func() {
		waitFor(t, filepath.Join(dir, "ready"))
		ask()
		write("asked", "")
	})
	said.WriteString(out)
	secrets := map[string]string{
		"the hook's token": "T0KEN-of-the-hook", "the build source's password": "T0KEN-of-the-builds", "the build source's query": "T0KEN-of-the-query",
		"the collector's header": "T0KEN-of-the-collector", "a secret key of AWS": "T0KEN-of-AWS",
	}
	given := map[string]bool{"hook": true, "builds": true, "settings": true, "aws": true}
	for _, file := range []string{"seeder.key", "gossip.key", "operator.token", "other.token", "ci.token"} {
		given[file] = true
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "-----") {
				secrets[file] = line
			}
		}
	}
	// Of a token its secret part, of keys a line with nothing of a certificate's in it.
	for file, part := range map[string]func(string) string{
		"join.token":  func(text string) string { return strings.Split(text, ".")[2] },
		"ca/ca.key":   func(text string) string { return strings.Split(text, "\n")[2] },
		"is/key.pem":  func(text string) string { return strings.Split(text, "\n")[2] },
		"ia/key.pem":  func(text string) string { return strings.Split(text, "\n")[2] },
		"ia2/key.pem": func(text string) string { return strings.Split(text, "\n")[2] },
		"ih/key.pem":  func(text string) string { return strings.Split(text, "\n")[2] },
		"oa/key.pem":  func(text string) string { return strings.Split(text, "\n")[2] },

		"ca/regions/region-a/ca.key": func(text string) string { return strings.Split(text, "\n")[2] },
	} {
		given[filepath.Base(file)] = true
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if secrets[file] = part(string(text)); len(secrets[file]) < 43 {
			t.Fatalf("the secret of %s is %q", file, secrets[file])
		}
	}
	if len(secrets) != 18 {
		t.Fatalf("%d secrets", len(secrets))
	}
	look := func(where string, text []byte) {
		for what, secret := range secrets {
			if at := bytes.Index(text, []byte(secret)); at >= 0 {
				t.Errorf("%s has %s: …%.200q", where, what, text[max(0, at-100):])
			}
		}
	}
	look("what was said", said.Bytes())
	logs := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || given[d.Name()] {
			return err
		}
		text, err := os.ReadFile(path)
		if strings.HasSuffix(path, ".log") && len(text) > 1000 {
			logs++
		}
		look(d.Name(), text)
		return err
	})
	if err != nil || logs < 4 {
		t.Errorf("%d logs have been looked at, %v", logs, err)
	}
	for _, want := range []string{`msg="notice not sent`, `"Name":"execution"`, "level=DEBUG"} { // they had something to say
		if text, err := os.ReadFile(filepath.Join(dir, "seeder.log")); err != nil || !bytes.Contains(text, []byte(want)) {
			t.Errorf("the seeder's log has no %s, %v", want, err)
		}
	}
}

// get returns what a URL answers within a second, which may be without an end.
func get(t *testing.T, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Errorf("%s: %v", url, err)
		return ""
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body) // cut short by the time
	if len(text) == 0 {
		t.Errorf("%s says nothing", url)
	}
	return fmt.Sprint(answer.Header) + string(text)
}

// waitFor waits until a file is there.
func waitFor(t *testing.T, file string) {
	t.Helper()
	deadline := time.After(timeout)
	for {
		if _, err := os.Stat(file); err == nil {
			return
		}
		select {
		case <-deadline:
			t.Errorf("%s does not come", filepath.Base(file))
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}
