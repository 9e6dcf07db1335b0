package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command/commandtest"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/processtest"
)

func limitsFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "limits.json")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Limits are read at the start, and again at a hang-up; what is wrong changes nothing.
func TestLimitsFile(t *testing.T) {
	file := limitsFile(t, `{"uploadRate": "200MB"}`)
	daemon(t, cloud.URL, "--limits-file", file, "--upload-rate", "1GB", "--download-rate", "1Gbit").RereadsLimits("seeder is up", file)
}

// A daemon does not begin with limits that are none.
func TestWrongLimits(t *testing.T) {
	key := commandtest.Key(t)
	for _, wrong := range [][]string{
		{"--upload-rate", "1B"}, {"--source-rate", "fast"}, {"--download-rate", "2TB"},
		{"--limits-file", limitsFile(t, `{"uploadRate": 1}`)}, {"--limits-file", "none.json"},
	} {
		args := append([]string{"run", "--bucket", cloud.Bucket(t), "--table", cloud.Table(t), "--signing-key", key, "--data-dir", t.TempDir(),
			"--listen", "127.0.0.1:0", "--gossip-listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0"}, wrong...)
		out, err := binary(processtest.AWSEnv(cloud.URL), args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), wrong[1]) && !strings.Contains(string(out), strings.TrimPrefix(wrong[0], "--")) {
			t.Errorf("%v: %v\n%s", wrong, err, out)
		}
	}
}

// The command shows limits, and changes those that it is given, whatever the daemon was
// started with.
func TestLimitsCommand(t *testing.T) {
	l := limits.New(true)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var change api.LimitsChange
		if r.Method == http.MethodPost {
			if err := json.NewDecoder(r.Body).Decode(&change); err != nil {
				t.Error(err)
			}
			if err := l.Change(change); err != nil {
				t.Error(err)
			}
		}
		if err := json.NewEncoder(w).Encode(l.Rates()); err != nil {
			t.Error(err)
		}
	}))
	defer s.Close()
	call := func(args ...string) string {
		t.Helper()
		out, err := binary([]string{"LANDFALL_UPLOAD_RATE=1GB"}, append([]string{"limits", "--seeder", s.URL}, args...)...).Output()
		if err != nil {
			t.Error(err)
		}
		return string(out)
	}
	if out := call(); strings.Count(out, "none") != 4 || !strings.Contains(out, "landing") {
		t.Errorf("at first:\n%s", out)
	}
	if out := call("--upload-rate", "50MiB", "--source-rate", "1Gbit"); !strings.Contains(out, "50.0 MiB/s") || strings.Count(out, "none") != 2 {
		t.Errorf("changed:\n%s", out)
	}
	var got api.Limits
	if out := call("--source-rate", "0", "-o", "json"); json.Unmarshal([]byte(out), &got) != nil || got.UploadRate != 50<<20 || got.SourceRate != 0 {
		t.Errorf("as JSON:\n%s", out)
	}
}
