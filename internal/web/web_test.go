package web

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mux(ready error) *Mux {
	return NewMux(Options{
		Page:    "seeder",
		Ready:   func() error { return ready },
		State:   State{All: func() iter.Seq2[string, any] { return maps.All(map[string]any{"n": 1}) }},
		Metrics: prometheus.NewRegistry(),
		Logger:  slog.New(slog.DiscardHandler),
	})
}

func TestRead(t *testing.T) {
	for name, c := range map[string]struct {
		contentType, body string
		code              int
	}{
		"right":              {"application/json", `{"commit":"a"}`, 0},
		"with charset":       {"application/json; charset=utf-8", `{"commit":"a"}`, 0},
		"no content type":    {"", `{"commit":"a"}`, 400},
		"wrong content type": {"text/plain", `{"commit":"a"}`, 400},
		"not JSON":           {"application/json", `commit=a`, 400},
		"empty":              {"application/json", ``, 400},
		"unknown field":      {"application/json", `{"commit":"a","x":1}`, 400},
		"wrong type":         {"application/json", `{"commit":1}`, 400},
		"goes on":            {"application/json", `{"commit":"a"}{}`, 400},
		"too long":           {"application/json", `{"commit":"` + strings.Repeat("a", maxBody) + `"}`, 413},
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(c.body))
		r.Header.Set("Content-Type", c.contentType)
		var into api.BuildRequest
		err := Read(r, &into)
		var e *Error
		code := 0
		if errors.As(err, &e) {
			code = e.Code
		}
		if code != c.code || err == nil && into.Commit != "a" {
			t.Errorf("%s: %d, want %d (%v)", name, code, c.code, err)
		}
	}
}

func TestErrorsAreJSON(t *testing.T) {
	m := mux(nil)
	m.JSON("GET /gone", func(*http.Request) (int, any, error) {
		return 0, nil, &Error{Code: http.StatusGone, Err: errors.New("superseded"), Successor: "next"}
	})
	m.JSON("GET /broken", func(*http.Request) (int, any, error) { return 0, nil, errors.New("broken") })
	for path, code := range map[string]int{"/gone": 410, "/broken": 500} {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		var body api.Error
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != code || body.Error == "" {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestSharedPaths(t *testing.T) {
	for path, want := range map[string]string{
		"/healthz": `"ok"`, "/": "<title>Landfall", "/feed.js": "EventSource", "/changes": `"n": 1`, "/page.css": "color-scheme", "/metrics": "",
	} {
		w := httptest.NewRecorder()
		mux(nil).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %.100s", path, w.Code, w.Body)
		}
	}
	for ready, code := range map[error]int{nil: 200, errors.New("starting"): 503} {
		w := httptest.NewRecorder()
		mux(ready).ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		if w.Code != code {
			t.Errorf("ready %v: %d", ready, w.Code)
		}
	}
}

func TestServeAndEvents(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, mux(nil), slog.New(slog.DiscardHandler)) }()
	res, err := http.Get("http://" + l.Addr().String() + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	var data string
	for data == "" && lines.Scan() {
		data, _ = strings.CutPrefix(lines.Text(), "data: ")
		if data == lines.Text() {
			data = ""
		}
	}
	if !strings.Contains(data, `"full":true,"set":{"n":1}`) {
		t.Errorf("first event is %q", data)
	}
	// An open stream must not keep the process from ending.
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestPortTaken(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(l.Addr().String()); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("the error does not name the port: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"sourceBucket":"b","sourceKey":"k","destinationBuckets":["d"]}`))
	f.Add([]byte(`{"destinationBuckets":null}`))
	f.Add([]byte(`{"uploadRate":"50MB","downloadRate":0}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest("POST", "/deploy", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		again := httptest.NewRequest("POST", "/builds", bytes.NewReader(body))
		again.Header.Set("Content-Type", "application/json")
		limits := httptest.NewRequest("POST", "/limits", bytes.NewReader(body))
		limits.Header.Set("Content-Type", "application/json")
		for _, err := range []error{Read(r, new(api.DeployRequest)), Read(again, new(api.BuildRequest)), Read(limits, new(api.LimitsChange))} {
			if e := new(Error); err != nil && !errors.As(err, &e) {
				t.Errorf("error has no status: %v", err)
			}
		}
	})
}
