package call

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/seldom"
)

const (
	// maxEnrolRequest bounds a request for a first certificate in bytes: a token or a
	// proof, and what is to be signed. maxEnrolAnswer bounds the answer: certificates,
	// 16 authorities, and a list of those that are denied.
	maxEnrolRequest, maxEnrolAnswer = 32 << 10, 4 << 20
	// enrolRate and enrolBurst bound the requests for a first certificate that are looked
	// at, a second; addressRate and addressBurst those from one address.
	enrolRate, enrolBurst     = 20, 100
	addressRate, addressBurst = 1, 20
	// maxAddresses bounds the addresses that are told apart in that; all others share one
	// bound.
	maxAddresses = 1024
	// enrolSayInterval is the time between two lines about refusals of one address,
	// maxEnrolSaid bounds the addresses that are told apart in that.
	enrolSayInterval, maxEnrolSaid = 30 * time.Second, 64
)

// EnrolRequest asks for a first certificate.
type EnrolRequest struct {
	Kind   identity.Kind `json:"kind"`
	Region string        `json:"region,omitempty"`
	// Name is the member's, or empty for the token's; Otherwise is for a token without one.
	Name      string `json:"name,omitempty"`
	Otherwise string `json:"otherwise,omitempty"`
	// Token is the secret text of a join token.
	Token string `json:"token,omitempty"`
	// Request is what is to be signed, PKCS #10 in DER.
	Request []byte `json:"request"`
}

// EnrolAnswer is a first certificate and what goes with it.
type EnrolAnswer struct {
	// Certificates and Roots are PEM, Denied the list of denied certificates.
	Certificates string `json:"certificates"`
	Roots        string `json:"roots"`
	Denied       string `json:"denied,omitempty"`
}

// Enrolment gives first certificates, at a seeder with the authority's key.
type Enrolment struct {
	Authority *ca.Dir
	Source    *identity.Source
	Logger    *slog.Logger
	// Record adds to the record of changes, whose Add it is; nil for none.
	Record func(change api.Change, known bool) bool

	limits enrolLimits
	lines  *seldom.Lines
}

// errBusy is told to who comes too often.
var errBusy = errors.New("too many ask for certificates, try again in a moment")

// NewEnrolment gives certificates with an authority's key.
func NewEnrolment(authority *ca.Dir, source *identity.Source, logger *slog.Logger) *Enrolment {
	return &Enrolment{
		Authority: authority, Source: source, Logger: logger,
		limits: enrolLimits{all: rate.NewLimiter(enrolRate, enrolBurst), addresses: make(map[netip.Prefix]*rate.Limiter)},
		lines:  seldom.New(enrolSayInterval, maxEnrolSaid),
	}
}

// enrol answers who has no certificate.
func (s *Server) enrol(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "close")
	e, from := s.handlers.Enrolment, r.Context().Value(connKey{}).(*served).RemoteAddr()
	if e == nil || !e.limits.allow(addressOf(from), time.Now()) {
		http.Error(w, errBusy.Error(), http.StatusTooManyRequests)
		return
	}
	var q EnrolRequest
	b, err := readAll(r.Body, maxEnrolRequest)
	if err == nil {
		err = json.Unmarshal(b, &q)
	}
	if err != nil {
		http.Error(w, "the request for a certificate cannot be read", http.StatusBadRequest)
		return
	}
	answer, status, err := e.give(r.Context(), q, from.String())
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // who asked has gone
}

// give makes a first certificate, and writes down what has come of that.
func (e *Enrolment) give(ctx context.Context, q EnrolRequest, from string) (EnrolAnswer, int, error) {
	text, id, by, err := e.certify(ctx, q, from)
	change := api.Change{
		Time: time.Now().UTC(), Action: "POST /enrol", Path: "/enrol", From: from, Status: http.StatusOK,
		About: map[string]string{"id": id.String(), "by": by},
	}
	if err == nil {
		e.record(change, true)
		e.Logger.Info("first certificate given", "id", id.String(), "by", by, "from", from)
		roots, denied := e.Source.Trusted()
		if own := e.Authority.Certificate(); !slices.ContainsFunc(roots, own.Equal) {
			roots = append(slices.Clone(roots), own)
		}
		return EnrolAnswer{Certificates: string(text), Roots: string(identity.FormatCerts(roots...)), Denied: denied}, change.Status, nil
	}
	change.Error, change.Status = err.Error(), http.StatusForbidden
	host, _, _ := net.SplitHostPort(from)
	refused := errors.Is(err, ca.ErrJoinRefused)
	if !refused {
		change.Status = http.StatusServiceUnavailable
	}
	e.record(change, false)
	if omitted, due := e.lines.Pass(host); due {
		e.Logger.Warn("first certificate not given", "id", id.String(), "by", by, "from", from, "error", err, "omitted", omitted)
	}
	if !refused {
		err = errors.New("this seeder can give no certificate now, its log says why")
	}
	return EnrolAnswer{}, change.Status, err
}

func (e *Enrolment) record(change api.Change, known bool) {
	if e.Record != nil {
		e.Record(change, known)
	}
}

// certify makes a certificate of who has a right to one, and says by what.
func (e *Enrolment) certify(_ context.Context, q EnrolRequest, from string) (text []byte, id identity.ID, by string, err error) {
	id = identity.ID{Cluster: e.Authority.Cluster(), Kind: q.Kind, Region: q.Region, Name: q.Name}
	// Texts that are not checked yet do not get into logs.
	example, otherwise := id, id
	if example.Name == "" {
		example.Name = "x"
	}
	if otherwise.Name = q.Otherwise; q.Otherwise == "" {
		otherwise.Name = "x"
	}
	if err := errors.Join(example.Check(), otherwise.Check()); err != nil {
		return nil, identity.ID{}, "", fmt.Errorf("%w: %w", ca.ErrJoinRefused, err)
	}
	token, err := identity.ParseJoinToken(q.Token)
	if err != nil {
		return nil, id, "", fmt.Errorf("%w: %w", ca.ErrJoinRefused, err)
	}
	text, id, err = e.Authority.Join(token, id, q.Otherwise, q.Request, from)
	return text, id, "join token " + token.ID, err
}

// enrolLimits bound how often somebody may ask.
type enrolLimits struct {
	all *rate.Limiter

	mu        sync.Mutex
	addresses map[netip.Prefix]*rate.Limiter // the zero prefix is all further ones'
}

func (l *enrolLimits) allow(addr netip.Addr, now time.Time) bool {
	return l.of(addr, now).AllowN(now, 1) && l.all.AllowN(now, 1)
}

// of is the bound of an address, of IPv6 that of its network.
func (l *enrolLimits) of(addr netip.Addr, now time.Time) *rate.Limiter {
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits) // the zero value for no address
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.addresses[prefix] == nil && len(l.addresses) >= maxAddresses {
		for p, other := range l.addresses {
			if other.TokensAt(now) >= addressBurst {
				delete(l.addresses, p)
			}
		}
		if len(l.addresses) >= maxAddresses {
			prefix = netip.Prefix{}
		}
	}
	if l.addresses[prefix] == nil {
		l.addresses[prefix] = rate.NewLimiter(addressRate, addressBurst)
	}
	return l.addresses[prefix]
}

// addressOf is that of the other side; the zero value where it has none.
func addressOf(addr net.Addr) netip.Addr {
	if tcp, ok := addr.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
