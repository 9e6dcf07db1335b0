package web

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/operator"
)

// Protection says which requests are let in. Whoever asks not by a browser and
// brings the token, where there is one, is not held up by it.
type Protection struct {
	// Addr is where the HTTP side listens. On loopback only requests to loopback
	// are let in: the name of a foreign page's host may be made to lead there (DNS
	// rebinding), and its scripts could read all answers.
	Addr net.Addr
	// Hosts are names beside those of loopback that a request may be addressed to,
	// without a port.
	Hosts []string
	// Token is needed for everything that changes something; empty for no token.
	Token operator.Token
}

// Wrap answers what is not let in, and gives the rest to next.
func (p Protection) Wrap(next http.Handler) http.Handler {
	crossOrigin := http.NewCrossOriginProtection()
	loopback := isLoopback(p.Addr)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case loopback && !p.answersTo(r.Host):
			refuse(w, http.StatusMisdirectedRequest,
				"this listens on loopback and does not answer to the name that was asked for; --allow-hosts names others, for a proxy on this machine")
		case crossOrigin.Check(r) != nil:
			refuse(w, http.StatusForbidden, "a browser sent this for a page of another site")
		case p.Token != "" && changes(r.Method) && !p.Token.Is(bearer(r)):
			w.Header().Set("WWW-Authenticate", "Bearer")
			what := "the operator token is missing"
			if r.Header.Get("Authorization") != "" {
				what = "the operator token is wrong"
			}
			refuse(w, http.StatusUnauthorized, what+": this seeder was started with --operator-token and takes changes only from those who have it")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func refuse(w http.ResponseWriter, code int, why string) { Write(w, code, api.Error{Error: why}) }

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// answersTo judges the Host header. Browsers always send one.
func (p Protection) answersTo(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.IsLoopback() || slices.Contains(p.Hosts, host)
	}
	// RFC 6761: localhost and what is below it never lead elsewhere.
	return host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") ||
		slices.ContainsFunc(p.Hosts, func(h string) bool { return strings.EqualFold(h, host) })
}

// changes reports whether a method may change something: the others are safe, by
// RFC 9110.
func changes(method string) bool {
	return method != http.MethodGet && method != http.MethodHead && method != http.MethodOptions
}

// bearer is the token that a request carries, as RFC 6750 has it.
func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}
