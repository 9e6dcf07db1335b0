package fleet

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// A host whose certificate is denied loses its stream, and gets no other.
func TestDeniedHostIsOut(t *testing.T) {
	cluster := identitytest.New(t, "prod", nil)
	files := cluster.Files(t, cluster.Agent("region-a", "agent-1"))
	files.Told = filepath.Join(t.TempDir(), "denied")
	own := identitytest.Open(t, files, nil)
	s := newServed(t, func(c *Config) { c.Identity = own })
	s.goal(1, 0)
	dial := func(name string) (*remote, error) {
		hello := &hostwire.Hello{Version: hostwire.Version, Host: name, Start: start, Services: []hostwire.ServiceState{{Service: "web", State: "waiting"}}}
		stream, err := hostwire.Dial(t.Context(), hostwire.DialConfig{URL: s.url, TLS: hostwire.ClientTLS(cluster.Source(t, cluster.Host("region-a", name))), Hello: hello})
		if err != nil {
			return nil, err
		}
		t.Cleanup(stream.Close)
		r := &remote{Stream: stream, t: t, name: name}
		next[*hostwire.Goal](r)
		return r, nil
	}
	stays, err := dial("stays")
	if err != nil {
		t.Fatal(err)
	}
	denied, err := dial("denied")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := own.TakeDenied("id " + cluster.Host("region-a", "denied").String() + "\n"); err != nil {
		t.Fatal(err)
	}
	s.Recheck(t.Context())
	for err == nil {
		_, err = denied.Receive()
	}
	if _, err := dial("denied"); err == nil {
		t.Error("a denied host has a stream")
	}
	s.goal(2, 0)
	next[*hostwire.Goal](stays)
	if text := s.log.String(); !strings.Contains(text, "denied") {
		t.Errorf("nobody says so: %s", text)
	}
}
