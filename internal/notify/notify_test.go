package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/ledger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// timeout bounds every wait; a test that runs into it has failed.
	timeout = 30 * time.Second
	// never is longer than any test.
	never = time.Hour
	// token must be in no log.
	token = "T0KEN"
)

// log collects what is logged.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// runner is a notifier under test.
type runner struct {
	*Notifier
	t   *testing.T
	log *log
	end func() // ends Run and waits for it
}

// prepare makes a notifier with short waits that does not run yet. At the test's
// end its log must not have the token.
func prepare(t *testing.T, cfg Config) *runner {
	t.Helper()
	r := &runner{t: t, log: &log{}, end: func() {}}
	cfg.Logger = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.firstBackoff = time.Millisecond
	r.Notifier = n
	t.Cleanup(func() {
		r.end()
		if strings.Contains(r.log.String(), token) {
			t.Errorf("the log has the token:\n%s", r.log)
		}
	})
	return r
}

func (r *runner) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
}

// counts are the metrics, as sent, failed and dropped.
func (r *runner) counts() [3]float64 {
	r.t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(Collector(r.Notifier))
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "landfall_notices_total" {
		r.t.Fatalf("%v, %v", families, err)
	}
	var out [3]float64
	for _, m := range families[0].GetMetric() {
		i := slices.Index([]string{"sent", "failed", "dropped"}, m.GetLabel()[0].GetValue())
		out[i] = m.GetCounter().GetValue()
	}
	return out
}

// until waits for the counts.
func (r *runner) until(want ...float64) {
	r.t.Helper()
	deadline := time.After(timeout)
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for r.counts() != [3]float64(want) {
		select {
		case <-ticker.C:
		case <-deadline:
			r.t.Fatalf("sent, failed, dropped are %v, want %v; log:\n%s", r.counts(), want, r.log)
		}
	}
}

// logged fails the test unless the log has a line with all of these.
func (r *runner) logged(parts ...string) {
	r.t.Helper()
	for line := range strings.Lines(r.log.String()) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return
		}
	}
	r.t.Errorf("no line with %q in\n%s", parts, r.log)
}

// hook is a webhook: it passes on the bodies that it gets and answers with the
// next status of answers, 204 after the last.
type hook struct {
	*httptest.Server
	got     chan []byte
	answers chan int
}

func newHook(t *testing.T, answers ...int) *hook {
	h := &hook{got: make(chan []byte, 2*queueSize), answers: make(chan int, len(answers))}
	for _, a := range answers {
		h.answers <- a
	}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		user, password, _ := r.BasicAuth()
		if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" ||
			r.URL.Path != "/hook/"+token || r.URL.RawQuery != "key="+token || user != "user" || password != token {
			t.Errorf("%s %s %v, %v", r.Method, r.URL, r.Header, err)
		}
		h.got <- body
		select {
		case a := <-h.answers:
			w.WriteHeader(a)
			io.WriteString(w, token)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	t.Cleanup(h.Close)
	return h
}

// with is a URL that has the token wherever it can be.
func with(t *testing.T, server string) *url.URL {
	t.Helper()
	u, err := ParseWebhook(strings.Replace(server, "://", "://user:"+token+"@", 1) + "/hook/" + token + "?key=" + token)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// webhook is a prepared notifier of one.
func (h *hook) notifier(t *testing.T) *runner {
	t.Helper()
	return prepare(t, Config{Webhook: with(t, h.URL)})
}

// host is what logs may name.
func (h *hook) host() string { return "receiver=" + h.URL }

func notice(n int) Notice {
	return Of(&ledger.Record{
		Key:          ledger.Key{FileKey: fmt.Sprintf("build-%d.zip", n), SourceBucket: "global-builds"},
		ExecutionID:  "01ARZ3NDEKTSV4RRFFQ69G5FAV",
		Destinations: []string{"a-builds", "b-builds", "c-builds"},
		Successful:   []string{"a-builds"},
		Failed:       []string{"b-builds"},
		Results: map[string]ledger.Result{"b-builds": {
			Error:     `no progress for 30m0s: <"&'>`,
			Timestamp: time.Date(2026, 1, 2, 4, 4, 5, 6e6, time.FixedZone("", 3600)),
		}},
	}, "b-builds")
}

func TestWebhookGetsTheNotice(t *testing.T) {
	h := newHook(t)
	r := h.notifier(t)
	r.run()
	r.Send(notice(1))
	r.until(1, 0, 0)
	const want = `{"event":"destination_failed","executionId":"01ARZ3NDEKTSV4RRFFQ69G5FAV","key":"build-1.zip",` +
		`"sourceBucket":"global-builds","bucket":"b-builds","error":"no progress for 30m0s: <\"&'>","time":"2026-01-02T03:04:05.006Z",` +
		`"landed":["a-builds"],"pending":["c-builds"],"failed":["b-builds"]}`
	if got := <-h.got; string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if r.log.String() != "" {
		t.Errorf("logged %s", r.log)
	}
}

func TestEmptySetsAreNotNull(t *testing.T) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(Of(&ledger.Record{}, "b").encode(), &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"landed", "pending", "failed"} {
		if string(fields[name]) != "[]" {
			t.Errorf("%s is %s", name, fields[name])
		}
	}
	const ofDeployments = 2 // service and deploymentId are not there
	if want := reflect.TypeFor[Notice]().NumField() - ofDeployments; len(fields) != want {
		t.Errorf("%d fields, want %d", len(fields), want)
	}
}

func TestWebhookIsTriedAgain(t *testing.T) {
	for _, answers := range [][]int{{500, 503}, {429, 408}} {
		h := newHook(t, answers...)
		r := h.notifier(t)
		r.run()
		r.Send(notice(1))
		r.until(1, 0, 0)
		if len(h.got) != 3 {
			t.Errorf("%v: %d tries", answers, len(h.got))
		}
		for try, answer := range answers {
			r.logged("level=WARN", "trying again", fmt.Sprintf("try=%d", try+1), fmt.Sprintf("answered %d", answer), h.host())
		}
	}
}

func TestWebhookIsGivenUp(t *testing.T) {
	h := newHook(t, 500, 502, 504)
	r := h.notifier(t)
	r.run()
	r.Send(notice(1))
	r.until(0, 1, 0)
	if len(h.got) != maxTries {
		t.Errorf("%d tries", len(h.got))
	}
	r.logged("level=ERROR", "notice not sent", "tries=3", "answered 504 Gateway Timeout", h.host(),
		"key=build-1.zip", "executionId=01ARZ3NDEKTSV4RRFFQ69G5FAV", "bucket=b-builds")
	r.Send(notice(2)) // the next one has its own tries
	r.until(1, 1, 0)
}

func TestSettledAnswersAreNotTriedAgain(t *testing.T) {
	for _, answer := range []int{400, 401, 404, 410, 422, 304} {
		h := newHook(t, answer)
		r := h.notifier(t)
		r.run()
		r.Send(notice(1))
		r.until(0, 1, 0)
		if len(h.got) != 1 {
			t.Errorf("%d: %d tries", answer, len(h.got))
		}
		r.logged("level=ERROR", "tries=1", fmt.Sprintf("answered %d", answer))
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	elsewhere := newHook(t)
	for _, code := range []int{301, 302, 303, 307, 308} {
		from := httptest.NewServer(http.RedirectHandler(with(t, elsewhere.URL).String(), code))
		t.Cleanup(from.Close)
		r := prepare(t, Config{Webhook: with(t, from.URL)})
		r.run()
		r.Send(notice(1))
		r.until(0, 1, 0)
		r.logged("level=ERROR", "tries=1", fmt.Sprintf("answered %d", code), "receiver="+from.URL)
	}
	if len(elsewhere.got) != 0 {
		t.Error("a redirect was followed")
	}
}

func TestNobodyListens(t *testing.T) {
	server := httptest.NewServer(nil)
	u := with(t, server.URL)
	server.Close()
	r := prepare(t, Config{Webhook: u})
	r.run()
	r.Send(notice(1))
	r.until(0, 1, 0)
	r.logged("level=ERROR", "tries=3", "refused", "receiver="+server.URL)
}

// hang is a webhook that answers nobody before the test's end, and passes on the
// bodies that it gets.
func hang(t *testing.T) *hook {
	h := &hook{got: make(chan []byte, 2*queueSize)}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h.got <- body
		<-r.Context().Done()
	}))
	t.Cleanup(h.Close)
	return h
}

func TestHangingReceiverIsCutOff(t *testing.T) {
	h := hang(t)
	r := h.notifier(t)
	r.tryTimeout = 20 * time.Millisecond
	r.run()
	r.Send(notice(1))
	r.until(0, 1, 0)
	r.logged("level=ERROR", "tries=3", "deadline exceeded", h.host())
}

func TestHangingReceiverHoldsUpNobody(t *testing.T) {
	h, other := hang(t), newTopics(t)
	r := prepare(t, Config{Webhook: with(t, h.URL), Topic: other.arn, AWS: other.aws})
	r.tryTimeout, r.lastChance = never, 20*time.Millisecond
	r.run()
	for n := range 3 {
		r.Send(notice(n))
	}
	<-h.got // and no answer
	r.until(3, 0, 0)
	r.end()
	// The one under way is cut, the two that wait are lost.
	r.until(3, 1, 2)
	r.logged("level=ERROR", "notice not sent", "tries=1", "key=build-0.zip", h.host())
	r.logged("level=ERROR", "notices lost at the end", "notices=2", h.host())
}

func TestFullQueueDrops(t *testing.T) {
	h := newHook(t)
	r := h.notifier(t)
	for n := range queueSize + 2 { // nothing runs yet, so all but two wait
		r.Send(notice(n))
	}
	r.until(0, 0, 2)
	r.logged("level=ERROR", "notice dropped", fmt.Sprintf("key=build-%d.zip", queueSize+1), "too many", h.host())
	r.run()
	r.until(queueSize, 0, 2)
	for n := range queueSize {
		var got Notice
		if err := json.Unmarshal(<-h.got, &got); err != nil || got.Key != notice(n).Key {
			t.Fatalf("the notice after %d others is %s, %v", n, got.Key, err)
		}
	}
}

func TestTheEndIsALastChance(t *testing.T) {
	h := newHook(t, 503)
	r := h.notifier(t)
	r.firstBackoff = never
	r.run()
	for n := range 3 {
		r.Send(notice(n))
	}
	<-h.got // the first is going to be refused, and to wait
	r.end()
	if got := r.counts(); got != [3]float64{3, 0, 0} {
		t.Errorf("sent, failed, dropped are %v; log:\n%s", got, r.log)
	}
	r.Send(notice(4))
	r.until(3, 0, 1)
	r.logged("level=ERROR", "notice dropped", "key=build-4.zip", "ending")
}

func TestTheLastChanceIsOneTry(t *testing.T) {
	h := newHook(t, 503, 503, 503, 503, 503, 503)
	r := h.notifier(t)
	r.firstBackoff = never
	r.run()
	for n := range 3 {
		r.Send(notice(n))
	}
	<-h.got
	r.end()
	r.until(0, 3, 0)
	if tries := 1 + len(h.got); tries != 4 { // the first had one before
		t.Errorf("%d tries", tries)
	}
}

func TestWebhookURLs(t *testing.T) {
	for _, s := range []string{"http://127.0.0.1:8080", "https://example.com/hook?key=1", "https://user:password@[::1]:1/"} {
		if u, err := ParseWebhook(s); err != nil || u.String() != s {
			t.Errorf("%s: %v, %v", s, u, err)
		}
	}
	for _, s := range []string{
		"", token, "example.com/" + token, "ftp://example.com/" + token, "https:///" + token, "https://:443/" + token,
		"file:///" + token, "http://example.com:" + token, "https://example.com/%zz" + token, "//example.com/" + token, token + ":x", "http://exa mple.com/" + token,
	} {
		if u, err := ParseWebhook(s); err == nil || strings.Contains(err.Error(), token) {
			t.Errorf("%q: %v, %v", s, u, err)
		}
	}
}

func TestNoReceiver(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("a notifier that tells nobody")
	}
}
