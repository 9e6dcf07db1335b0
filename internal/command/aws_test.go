package command

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// lines is a log that a timer writes to.
type lines struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.String()
}

// withoutCredentials leaves the SDK nothing but the host's role.
func withoutCredentials(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE",
		"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE"} {
		t.Setenv(name, "")
	}
}

// TestNoCredentials: the search is said while it lasts, and ends in one line.
func TestNoCredentials(t *testing.T) {
	hung := make(chan struct{})
	host := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hung:
		case <-r.Context().Done():
		}
	}))
	defer host.Close()
	defer close(hung)
	for name, c := range map[string]struct {
		disabled, host string
		said           bool
	}{
		"no host to ask":              {"true", "", false},
		"a host that does not answer": {"", host.URL, true},
	} {
		t.Run(name, func(t *testing.T) {
			withoutCredentials(t)
			t.Setenv("AWS_EC2_METADATA_DISABLED", c.disabled)
			t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", c.host)
			log := new(lines)
			_, err := LoadAWS(t.Context(), slog.New(slog.NewTextHandler(log, nil)))
			if err == nil || !strings.Contains(err.Error(), "AWS credentials") || strings.Contains(err.Error(), "operation error") || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v", err)
			}
			if said := strings.Contains(log.String(), "looking for AWS credentials"); c.said && !said {
				t.Errorf("the search was not said: %s", log)
			}
		})
	}
}
