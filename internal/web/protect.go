package web

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/operator"
)

// Protection says which requests are let in. Whoever asks not by a browser and
// brings the token, where there is one, is not held up by it.
//
// A request is let in only under a name that is known to lead here: one of loopback, an
// address of this machine where the listener is not on loopback, or one of Hosts. The
// name of a foreign page's host may be made to lead here as well (DNS rebinding), and
// then that page's scripts could read all answers, and send what they like.
type Protection struct {
	// Addr is where the HTTP side listens.
	Addr net.Addr
	// Hosts are names and addresses beside those that a request may be addressed to,
	// without a port.
	Hosts []string
	// Security says who may do what.
	Security
	// Role is what a request asks for, and Action its name for the record of changes; nil
	// for View of what changes nothing, and Admin.
	Role   func(*http.Request) operator.Role
	Action func(*http.Request) string
	// Logger is told of changes, and of names that are not answered to, once in
	// refusedLogInterval; nil for nobody.
	Logger *slog.Logger
}

const (
	// refusedLogInterval is how often a refused name is logged: whoever asks is not
	// known, and must not fill the log.
	refusedLogInterval = time.Minute
	// maxLoggedHost bounds what is logged of a name, which a client chose.
	maxLoggedHost = 100
	// interfacesInterval is for how long the addresses of this machine are taken as
	// they were read.
	interfacesInterval = 10 * time.Second
)

// Open reports whether everybody who reaches the listener may change something: there is
// no token, and it is not on loopback.
func (p Protection) Open() bool { return p.Access == nil && !isLoopback(p.Addr) }

// Wrap answers what is not let in, and gives the rest to next.
func (p Protection) Wrap(next http.Handler) http.Handler {
	crossOrigin := http.NewCrossOriginProtection()
	own := &ownAddresses{}
	log := &refusedLog{logger: p.Logger}
	judge := func(r *http.Request) (operator.Operator, *Error) {
		switch {
		case !p.answersTo(r, own):
			log.refused(r)
			return operator.Operator{}, Errorf(http.StatusMisdirectedRequest,
				"this does not answer to the name that was asked for: it is neither loopback's nor an address of this machine; --allow-hosts names others, such as this host's name or a proxy's")
		case crossOrigin.Check(r) != nil:
			return operator.Operator{}, Errorf(http.StatusForbidden, "a browser sent this for a page of another site")
		}
		return p.admit(r)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, refused := judge(r)
		if changes(r.Method) {
			a := &asked{ResponseWriter: w, by: who.Name}
			w, r = a, r.WithContext(context.WithValue(r.Context(), askedKey{}, a))
			defer func() {
				p.record(r, p.action(r), who, refused == nil || refused.Code == http.StatusForbidden && who.Name != "", a)
			}()
		}
		if refused == nil {
			next.ServeHTTP(w, r)
			return
		}
		if refused.Code == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		Write(w, refused.Code, api.Error{Error: refused.Error()})
	})
}

// admit finds out by the token, or the certificate, who asks, and whether they may.
func (p Protection) admit(r *http.Request) (operator.Operator, *Error) {
	role := p.role(r)
	if p.Access == nil || role == operator.Anyone || role == operator.View && !p.CloseReading {
		return operator.Operator{}, nil
	}
	who, err := p.who(r)
	switch {
	case errors.Is(err, operator.ErrNotListed):
		return who, Errorf(http.StatusForbidden, "%w", err)
	case errors.Is(err, operator.ErrCertificate):
		return who, Errorf(http.StatusUnauthorized, "%w", err)
	case err != nil && role == operator.View:
		return who, Errorf(http.StatusUnauthorized, "%w: this daemon was started with --close-reading, and answers only those who have one%s", err, p.orCertificate())
	case err != nil:
		return who, Errorf(http.StatusUnauthorized, "%w: this daemon takes changes only from those who have one%s (--operator-token, --operators)", err, p.orCertificate())
	case who.Role < role:
		return who, Errorf(http.StatusForbidden, "%s has the role %s, and this asks for %s", who.Name, who.Role, role)
	}
	return who, nil
}

// orCertificate says that a token can be done without.
func (p Protection) orCertificate() string {
	if p.Access.Authorities() == nil {
		return ""
	}
	return " or show an operator's certificate"
}

// who is the operator whose token a request brings, or, where it brings none, whose
// certificate the connection has shown.
func (p Protection) who(r *http.Request) (operator.Operator, error) {
	given := bearer(r)
	if given == "" && r.Header.Get("Authorization") != "" {
		given = "not a bearer's"
	}
	if given == "" && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		return p.Access.WhoShows(r.TLS.PeerCertificates, time.Now())
	}
	return p.Access.Who(given, time.Now())
}

func (p Protection) role(r *http.Request) operator.Role {
	switch {
	case p.Role != nil:
		return p.Role(r)
	case changes(r.Method):
		return operator.Admin
	}
	return operator.View
}

func (p Protection) action(r *http.Request) string {
	action := ""
	if p.Action != nil {
		action = p.Action(r)
	}
	return cmp.Or(action, cutTo(r.Method, maxLoggedHost))
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// answersTo judges the Host header. Browsers always send one.
func (p Protection) answersTo(r *http.Request, own *ownAddresses) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if ip, err := netip.ParseAddr(host); err == nil {
		ip = plainAddr(ip)
		switch {
		case ip.IsUnspecified():
			return false // browsers take it for loopback
		case ip.IsLoopback(), slices.ContainsFunc(p.Hosts, func(h string) bool { return isAddr(h, ip) }):
			return true
		case isLoopback(p.Addr):
			return false
		}
		return arrivedAt(r, ip) || own.has(ip, time.Now())
	}
	// RFC 6761: localhost and what is below it never lead elsewhere.
	return host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") ||
		slices.ContainsFunc(p.Hosts, func(h string) bool { return strings.EqualFold(h, host) })
}

// plainAddr is an address without what does not tell two of them apart here.
func plainAddr(ip netip.Addr) netip.Addr { return ip.Unmap().WithZone("") }

func isAddr(s string, ip netip.Addr) bool {
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return err == nil && plainAddr(a) == ip
}

// arrivedAt reports whether a request's connection came to an address: then it is one of
// this machine's.
func arrivedAt(r *http.Request, ip netip.Addr) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && plainAddr(local.AddrPort().Addr()) == ip
}

// ownAddresses are those of this machine's interfaces, which come and go.
type ownAddresses struct {
	mu    sync.Mutex
	read  time.Time
	addrs map[netip.Addr]bool
}

func (o *ownAddresses) has(ip netip.Addr, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.addrs == nil || now.Sub(o.read) >= interfacesInterval {
		o.read, o.addrs = now, interfaceAddrs()
	}
	return o.addrs[ip]
}

func interfaceAddrs() map[netip.Addr]bool {
	addrs := make(map[netip.Addr]bool)
	found, err := net.InterfaceAddrs()
	if err != nil {
		return addrs // then the address that a connection came to is the only one
	}
	for _, a := range found {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			addrs[plainAddr(prefix.Addr())] = true
		}
	}
	return addrs
}

// refusedLog says which name was not answered to, so that whoever set up a proxy or a
// scraper finds out.
type refusedLog struct {
	logger *slog.Logger

	mu    sync.Mutex
	said  time.Time
	since int // refused and not said
}

func (l *refusedLog) refused(r *http.Request) {
	if l.logger == nil {
		return
	}
	l.mu.Lock()
	now := time.Now()
	if !l.said.IsZero() && now.Sub(l.said) < refusedLogInterval {
		l.since++
		l.mu.Unlock()
		return
	}
	unsaid := l.since
	l.said, l.since = now, 0
	l.mu.Unlock()
	l.logger.Warn("request refused: its Host is no name of this server's; --allow-hosts names more",
		"host", r.Host[:min(len(r.Host), maxLoggedHost)], "from", r.RemoteAddr, "refusedSince", unsaid)
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
