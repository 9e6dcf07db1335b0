package identity_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// TestAlerted: a refusal by the other side is told from a connection that has ended, and
// from one that speaks another protocol.
func TestAlerted(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	s := prod.Source(t, prod.Seeder("s1"))
	stranger := identitytest.New(t, "prod", nil).Source(t, prod.Seeder("s2"))
	for _, c := range []struct {
		name                string
		client              *tls.Config
		refused, noProtocol bool
	}{
		{"another authority's", &tls.Config{InsecureSkipVerify: true, NextProtos: []string{identity.CallProto}, GetClientCertificate: stranger.Client(identity.CallProto, nil).GetClientCertificate}, true, false},
		{"another protocol", s.Client(identity.EnrolProto, nil), true, true},
	} {
		a, b := net.Pipe()
		go func() {
			server := tls.Server(b, s.Server(identity.CallProto))
			_ = server.Handshake() // which is refused
			server.Close()
		}()
		conn := tls.Client(a, c.client)
		err := conn.Handshake()
		if err == nil { // of TLS 1.3 the client knows with the first answer
			_, err = conn.Read(make([]byte, 1))
		}
		if refused, noProtocol := identity.Alerted(err); refused != c.refused || noProtocol != c.noProtocol {
			t.Errorf("%s: %t, %t of %v", c.name, refused, noProtocol, err)
		}
		a.Close()
		b.Close()
	}
	for _, err := range []error{nil, io.EOF, errors.New("remote error: tls: no application protocol"), &net.OpError{Op: "read", Err: io.EOF}} {
		if refused, noProtocol := identity.Alerted(err); refused || noProtocol {
			t.Errorf("%v is a refusal", err)
		}
	}
}

func FuzzParseJoinToken(f *testing.F) {
	made := identity.NewJoinToken(identity.Fingerprint{1})
	f.Add(made.Text())
	f.Add("lfjoin1...")
	f.Fuzz(func(t *testing.T, text string) {
		if token, err := identity.ParseJoinToken(text); err == nil && (token.Text() != text || identity.CheckJoinTokenID(token.ID) != nil) {
			t.Errorf("%q is read as %v", text, token)
		}
	})
}
