package web

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/operator"
)

const token = "a-token-of-the-operator"

// secured asks for the token.
func secured() Security {
	access, err := operator.NewAccess(token, "")
	if err != nil {
		panic(err) // there is no file to be read
	}
	return Security{Access: access}
}

// ask gives the code that a protected handler answers; the handler itself says 200.
func ask(t *testing.T, p Protection, method, host string, header ...string) int {
	t.Helper()
	r := httptest.NewRequest(method, "/deploy", nil)
	r.Host = host
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	p.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })).ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		var body api.Error
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Error == "" || strings.Contains(body.Error, token) {
			t.Errorf("%s %s: %s", method, host, w.Body)
		}
		if (w.Code == http.StatusUnauthorized) != (w.Header().Get("WWW-Authenticate") == "Bearer") {
			t.Errorf("%s %s: %d with %v", method, host, w.Code, w.Header())
		}
	}
	return w.Code
}

func TestHosts(t *testing.T) {
	loopback := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7070}
	for host, code := range map[string]int{
		"127.0.0.1:7070": 200, "localhost:7070": 200, "localhost": 200, "LOCALHOST.:7070": 200, "[::1]:7070": 200, "::1": 200,
		"127.9.9.9": 200, "a.localhost": 200, "builds.example.com": 200, "Builds.Example.Com:443": 200, "": 200,
		"evil.example:7070": 421, "127.0.0.1.evil.example": 421, "localhost.evil.example": 421, "notlocalhost": 421,
		"10.0.0.1:7070": 421, "0.0.0.0:7070": 421, "[fe80::1]:7070": 421,
	} {
		for _, method := range []string{"GET", "POST"} {
			if got := ask(t, Protection{Addr: loopback, Hosts: []string{"builds.example.com"}}, method, host); got != code {
				t.Errorf("%s of %q: %d, want %d", method, host, got, code)
			}
		}
	}
}

// A name of a foreign page can be made to lead to a listener that is not on loopback as
// well: there, too, only names that are known are answered to.
func TestHostsBeyondLoopback(t *testing.T) {
	own := ""
	for ip := range interfaceAddrs() {
		if !ip.IsLoopback() && ip.Is4() {
			own = ip.String()
		}
	}
	for _, bound := range []net.IP{net.IPv4zero, net.IPv6zero, nil, net.IPv4(192, 0, 2, 1)} {
		p := Protection{Addr: &net.TCPAddr{IP: bound, Port: 7070}, Hosts: []string{"builds.example.com", "192.0.2.1"}}
		for host, code := range map[string]int{
			"127.0.0.1:7070": 200, "localhost": 200, "[::1]:7070": 200, "": 200, "builds.example.com:7070": 200,
			"192.0.2.1:7070": 200, "[::ffff:192.0.2.1]:7070": 200, "198.51.100.7:7070": 200, // where the connection came to
			"evil.example:7070": 421, "192.0.2.1.evil.example": 421, "192.0.2.2:7070": 421, "0.0.0.0:7070": 421, "[::]:7070": 421,
			"[2001:db8::1]:7070": 421, own + ":7070": 200,
		} {
			r := httptest.NewRequest("PUT", "/uploads/evil.zip", nil)
			r.Host = host
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(198, 51, 100, 7), Port: 7070}))
			w := httptest.NewRecorder()
			p.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
			if w.Code != code {
				t.Errorf("%q of a listener on %v: %d, want %d", host, bound, w.Code, code)
			}
		}
	}
}

// Whoever asks under other names must not fill the log.
func TestRefusedHostsAreLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	p := Protection{Addr: &net.TCPAddr{IP: net.IPv4zero}, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	h := p.Wrap(http.NotFoundHandler())
	for range 1000 {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = strings.Repeat("evil.example.", 500)
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	if lines := strings.Count(log.String(), "\n"); lines != 1 || log.Len() > 1000 || !strings.Contains(log.String(), "--allow-hosts") {
		t.Errorf("%d lines, %d bytes: %.300s", lines, log.Len(), log.String())
	}
}

func TestOpen(t *testing.T) {
	loopback, everywhere := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.TCPAddr{IP: net.IPv4zero}
	for p, want := range map[*Protection]bool{
		{Addr: loopback}: false, {Addr: everywhere}: true, {Addr: everywhere, Security: secured()}: false,
	} {
		if p.Open() != want {
			t.Errorf("%v, token %t: %t", p.Addr, p.Access != nil, p.Open())
		}
	}
}

func TestForeignPages(t *testing.T) {
	p := Protection{Security: secured(), Hosts: []string{"seeder"}}
	const right = "Bearer " + token
	for _, c := range []struct {
		method string
		header []string
		code   int
	}{
		{"POST", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"PUT", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"POST", []string{"Origin", "http://evil.example"}, 403},
		{"POST", []string{"Sec-Fetch-Site", "same-origin"}, 200},
		{"PUT", []string{"Origin", "http://seeder:7070"}, 200},
		{"POST", nil, 200},
		{"GET", []string{"Sec-Fetch-Site", "cross-site"}, 200}, // a link
	} {
		if got := ask(t, p, c.method, "seeder:7070", append(c.header, "Authorization", right)...); got != c.code {
			t.Errorf("%s %v: %d, want %d", c.method, c.header, got, c.code)
		}
	}
}

func TestToken(t *testing.T) {
	p := Protection{Security: secured(), Hosts: []string{"seeder"}}
	for header, code := range map[string]int{
		"": 401, "Bearer " + token: 200, "bearer  " + token: 200, "Bearer wrong": 401, "Bearer": 401,
		token: 401, "Basic " + token: 401, "Bearer " + token + "x": 401, "Bearer " + token[1:]: 401,
	} {
		for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
			if got := ask(t, p, method, "seeder", "Authorization", header); got != code {
				t.Errorf("%s with %q: %d, want %d", method, header, got, code)
			}
		}
		for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
			if got := ask(t, p, method, "seeder", "Authorization", header); got != 200 {
				t.Errorf("%s with %q: %d", method, header, got)
			}
		}
		if got := ask(t, Protection{Hosts: p.Hosts}, "POST", "seeder", "Authorization", header); got != 200 {
			t.Errorf("no token is asked for, with %q: %d", header, got)
		}
	}
}
