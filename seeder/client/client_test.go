package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/seeder/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answer is what a pretended seeder says next, by status and body; 0 hangs up.
type answer struct {
	code int
	body any
}

// pretend answers GET /executions/… with one answer after the other, the last for ever.
func pretend(answers ...answer) *httptest.Server {
	next := 0
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		a := answers[min(next, len(answers)-1)]
		next++
		if a.code == 0 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(a.code)
		json.NewEncoder(w).Encode(a.body) //nolint:errcheck // the test sees it
	}))
}

// TestAllHosts joins pages, within its bounds.
func TestAllHosts(t *testing.T) {
	const hosts = 2500
	page := func(from, to int) client.HostViews {
		out := client.HostViews{All: hosts + 1, Hosts: []client.HostView{}} // one has moved
		for i := from; i < to; i++ {
			out.Hosts = append(out.Hosts, client.HostView{Region: "region/a", Host: fmt.Sprintf("h%04d", i)})
		}
		if to < hosts {
			out.Next = fmt.Sprintf("region/a/h%04d", to-1)
		}
		return out
	}
	odd := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		from, limit := 0, 0
		_, _ = fmt.Sscanf(q.Get("limit"), "%d", &limit)
		if after := q.Get("after"); after != "" {
			if _, err := fmt.Sscanf(after, "region/a/h%d", &from); err != nil {
				t.Errorf("after %q: %v", after, err)
			}
			from++
		}
		if limit < 1 || limit > 1000 || q.Get("state") != "failed" {
			t.Errorf("asked for %s", r.URL)
		}
		out := page(from, min(from+min(limit, 700), hosts))
		switch odd {
		case "silent":
			out.Unanswered = []string{"region-c", "region-b"}
		case "empty":
			out.Hosts, out.Next = nil, "region/a/h0001"
		case "error":
			if from > 0 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}
		json.NewEncoder(w).Encode(out) //nolint:errcheck // the test sees it
	}))
	defer server.Close()
	to := client.Client{URL: server.URL, HTTP: server.Client()}
	for most, want := range map[int]int{0: hosts, 1: 1, 700: 700, 701: 701, 1000: 1000, hosts: hosts, client.MaxAllHosts + 1: hosts} {
		list, err := to.AllHosts(t.Context(), "web", "failed", most)
		if err != nil || len(list.Hosts) != want || (list.Next == "") != (want == hosts) || list.Hosts[want-1].Host != fmt.Sprintf("h%04d", want-1) {
			t.Errorf("at most %d: %v", most, err)
		} else if all := hosts + map[bool]int{want < hosts: 1}[true]; list.All != all {
			t.Errorf("at most %d: %d in all, want %d", most, list.All, all)
		}
	}
	odd = "silent"
	if list, err := to.AllHosts(t.Context(), "web", "failed", 0); err != nil || fmt.Sprint(list.Unanswered) != "[region-b region-c]" || list.All != hosts+1 {
		t.Errorf("%v", err)
	}
	for _, odd = range []string{"empty", "error"} {
		if list, err := to.AllHosts(t.Context(), "web", "failed", 0); err == nil {
			t.Errorf("%s: %d hosts", odd, len(list.Hosts))
		}
	}
}

func execution(status string, landed int64) answer {
	return answer{http.StatusOK, client.Execution{
		ExecutionID: "01K0Z4V5QW8TQ0H6Q9M3N7R2XD", Status: status, Key: "build.zip",
		Destinations: []client.Destination{{Bucket: "region-a-builds", LandedBytes: landed}},
	}}
}

func TestFollow(t *testing.T) {
	unavailable := answer{http.StatusServiceUnavailable, map[string]string{"error": "restarting"}}
	gone := answer{http.StatusGone, map[string]string{"error": "superseded", "successor": "01K0Z4V5QW8TQ0H6Q9M3N7R2XE"}}
	for name, c := range map[string]struct {
		answers []answer
		want    string
		code    int
	}{
		"to its end":     {[]answer{execution("IN_PROGRESS", 1), execution("IN_PROGRESS", 1), execution("COMPLETED", 2)}, "IN_PROGRESS COMPLETED", 0},
		"ended":          {[]answer{execution("FAILED", 0)}, "FAILED", 0},
		"a restart":      {[]answer{{}, unavailable, execution("COMPLETED", 2)}, "COMPLETED", 0},
		"is superseded":  {[]answer{execution("IN_PROGRESS", 1), gone}, "IN_PROGRESS", http.StatusGone},
		"is not allowed": {[]answer{{http.StatusForbidden, "no"}}, "", http.StatusForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := pretend(c.answers...)
			defer server.Close()
			to := client.Client{URL: server.URL, HTTP: server.Client()}
			var got []string
			code := 0
			for e, err := range to.Follow(t.Context(), "01K0Z4V5QW8TQ0H6Q9M3N7R2XD") {
				var s *client.StatusError
				if errors.As(err, &s) {
					code = s.Code
				} else if err != nil {
					t.Fatal(err)
				} else {
					got = append(got, e.Status)
				}
			}
			if strings.Join(got, " ") != c.want || code != c.code {
				t.Errorf("%v and %d, want %s and %d", got, code, c.want, c.code)
			}
		})
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	server := pretend(execution("IN_PROGRESS", 1))
	defer server.Close()
	to := client.Client{URL: server.URL, HTTP: server.Client()}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for e, err := range to.Follow(ctx, "01K0Z4V5QW8TQ0H6Q9M3N7R2XD") {
		if e == nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		cancel()
	}
	for range to.Follow(t.Context(), "01K0Z4V5QW8TQ0H6Q9M3N7R2XD") {
		break // and nothing is asked any more
	}
}

// TestRefusedUploadIsNotSent: nothing of a build goes to a seeder that refuses it.
func TestRefusedUploadIsNotSent(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer right" {
			io.Copy(io.Discard, r.Body) //nolint:errcheck // the test sees it
			fmt.Fprint(w, `{"key":"a.zip"}`)
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"error":"the operator token is wrong"}`)
	}))
	defer server.Close()
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	for token, want := range map[string]bool{"right": true, "wrong": false, "": false} {
		body := &counted{left: 64 << 20}
		to := client.Client{URL: server.URL, HTTP: &http.Client{Transport: transport}, Token: token}
		_, err := to.Upload(t.Context(), "a.zip", body, 64<<20, "application/zip")
		var s *client.StatusError
		if want != (err == nil) || !want && (!errors.As(err, &s) || s.Code != http.StatusUnauthorized) {
			t.Errorf("with %q: %v", token, err)
		}
		if sent := 64<<20 - body.left; sent > 0 && !want {
			t.Errorf("with %q: %d bytes were sent", token, sent)
		}
	}
}

// counted is a body of zeros.
type counted struct{ left int }

func (c *counted) Read(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	if c.left == 0 {
		return n, io.EOF
	}
	clear(p[:n])
	return n, nil
}

// TestBuildFor: all that a request for a build of a commit can say is sent.
func TestBuildFor(t *testing.T) {
	var got client.BuildRequest
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil || r.URL.Path != "/builds" {
			t.Errorf("%s: %v", r.URL, err)
		}
		fmt.Fprint(w, `{"fileName":"abc123.zip"}`)
	}))
	defer server.Close()
	to := client.Client{URL: server.URL, HTTP: server.Client()}
	want := client.BuildRequest{Commit: "abc123", Priority: "high"}
	if a, err := to.BuildFor(t.Context(), want); err != nil || a.FileName != "abc123.zip" || got != want {
		t.Errorf("asked for %+v, answered %+v, %v", got, a, err)
	}
}

// TestTokenIsForChanges: who only reads sends no secret.
func TestTokenIsForChanges(t *testing.T) {
	var with []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer secret" {
			with = append(with, r.Method+" "+r.URL.Path)
		}
		fmt.Fprint(w, `{}`)
	}))
	defer server.Close()
	to := client.Client{URL: server.URL, HTTP: server.Client(), Token: "secret"}
	ctx := t.Context()
	for _, call := range []func() error{
		func() error { _, err := to.Execution(ctx, "id"); return err },
		func() error { _, err := to.Swarm(ctx, "id"); return err },
		func() error { return to.Ready(ctx) },
		func() error { _, err := to.Deploy(ctx, client.DeployRequest{}); return err },
		func() error { _, err := to.Build(ctx, "abc123"); return err },
		func() error { _, err := to.Cancel(ctx, "id"); return err },
		func() error { _, err := to.Retry(ctx, "id"); return err },
		func() error { _, err := to.Upload(ctx, "a/../b", strings.NewReader("x"), 1, ""); return err },
	} {
		if err := call(); err != nil {
			t.Error(err)
		}
	}
	want := []string{"POST /deploy", "POST /builds", "POST /executions/id/cancel", "POST /executions/id/retry", "PUT /uploads/a/../b"}
	if !slices.Equal(with, want) {
		t.Errorf("%q have the token, want %q", with, want)
	}
	if _, err := to.ByKey(ctx, "none.zip"); !errors.Is(err, client.ErrNoExecution) {
		t.Errorf("by key: %v", err)
	}
}
