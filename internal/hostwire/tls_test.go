package hostwire

import (
	"crypto/tls"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// An agent takes streams of hosts of its own region alone, by the name that the certificate
// has; a host speaks to agents of its own region alone.
func TestWhoMayHaveAStream(t *testing.T) {
	cluster := identitytest.New(t, "prod", nil)
	other := identitytest.New(t, "prod", nil) // another authority of the same name
	agent := cluster.Source(t, cluster.Agent("region-a", "agent-1"))
	s := serve(t, ServeConfig{Identity: agent, Handle: echo})
	for name, c := range map[string]struct {
		own  *identity.Source
		host string
		code int // -1: no handshake, 0: a stream
	}{
		"a host of the region":            {cluster.Source(t, cluster.Host("region-a", "host-1")), "host-1", 0},
		"a host that says another's name": {cluster.Source(t, cluster.Host("region-a", "host-2")), "host-1", http.StatusForbidden},
		"a host of another region":        {cluster.Source(t, cluster.Host("region-b", "host-1")), "host-1", -1},
		"another agent":                   {cluster.Source(t, cluster.Agent("region-a", "agent-2")), "agent-2", http.StatusForbidden},
		"a seeder":                        {cluster.Source(t, cluster.Seeder("host-1")), "host-1", -1},
		"another authority's host":        {other.Source(t, other.Host("region-a", "host-1")), "host-1", -1},
	} {
		h := hello()
		h.Host = c.host
		stream, err := Dial(t.Context(), DialConfig{URL: s.url, TLS: ClientTLS(c.own), Hello: h})
		var refused *RefusedError
		switch {
		case c.code == 0:
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if stream.Peer.ID != agent.ID() {
				t.Errorf("the agent is %s", stream.Peer.ID)
			}
			stream.Close()
		case err == nil:
			t.Errorf("%s has a stream", name)
			stream.Close()
		case c.code > 0 && (!errors.As(err, &refused) || refused.Code != c.code):
			t.Errorf("%s: %v", name, err)
		case c.code < 0 && errors.As(err, &refused):
			t.Errorf("%s: %v, expected to be refused in the handshake", name, err)
		}
	}
	if stream, err := Dial(t.Context(), DialConfig{URL: strings.Replace(s.url, "https:", "http:", 1), Hello: hello()}); err == nil {
		stream.Close()
		t.Error("a stream without TLS")
	}
	if stream, err := Dial(t.Context(), DialConfig{URL: s.url, TLS: &tls.Config{InsecureSkipVerify: true}, Hello: hello()}); err == nil {
		stream.Close()
		t.Error("a stream without a certificate")
	}
}
