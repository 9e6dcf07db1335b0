package call

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"github.com/landfall-dist/landfall/internal/admission"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/awsproof"
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
	// maxAsking bounds the questions to STS at a time, maxARN an answer in bytes (IAM's
	// quotas: a path of 512 and a name of 64).
	maxAsking, maxARN = 4, 700
)

// EnrolRequest asks for a first certificate.
type EnrolRequest struct {
	Kind   identity.Kind `json:"kind"`
	Region string        `json:"region,omitempty"`
	// Name is the member's, or empty for the token's; Otherwise is for a token without one.
	Name      string `json:"name,omitempty"`
	Otherwise string `json:"otherwise,omitempty"`
	// Token is the secret text of a join token; AWS a proof instead of one.
	Token string          `json:"token,omitempty"`
	AWS   *awsproof.Proof `json:"aws,omitempty"`
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
	// AWS gives certificates to whom AWS names, too; nil for nobody.
	AWS *AWSEnrolment

	limits enrolLimits
	lines  *seldom.Lines
}

// AWSEnrolment gives certificates to agents that prove who they are to AWS.
type AWSEnrolment struct {
	// Rules say who is an agent of which region.
	Rules []awsproof.Rule
	// Checker asks STS, at an endpoint of this seeder's settings.
	Checker awsproof.Checker
	// asking has a value for each question under way.
	asking chan struct{}
}

// NewAWSEnrolment asks STS at an endpoint about agents of a cluster.
func NewAWSEnrolment(rules []awsproof.Rule, endpoint, cluster string) *AWSEnrolment {
	return &AWSEnrolment{Rules: rules, Checker: awsproof.Checker{Endpoint: endpoint, Cluster: cluster}, asking: make(chan struct{}, maxAsking)}
}

// errNotAllowed is why somebody gets no certificate, and may be told so.
var errNotAllowed = errors.New("no certificate is given")

// errBusy is told to who comes too often.
var errBusy = errors.New("too many ask for certificates, try again in a moment")

// NewEnrolment gives certificates with an authority's key.
func NewEnrolment(authority *ca.Dir, source *identity.Source, logger *slog.Logger) *Enrolment {
	return &Enrolment{
		Authority: authority, Source: source, Logger: logger,
		limits: enrolLimits{
			all:      rate.NewLimiter(enrolRate, enrolBurst),
			networks: admission.Rates[netip.Addr]{Burst: addressBurst, PerSecond: addressRate, Most: maxAddresses},
		},
		lines: seldom.New(enrolSayInterval, maxEnrolSaid),
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
	refused := errors.Is(err, ca.ErrJoinRefused) || errors.Is(err, errNotAllowed) || errors.Is(err, awsproof.ErrRefused)
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
func (e *Enrolment) certify(ctx context.Context, q EnrolRequest, from string) (text []byte, id identity.ID, by string, err error) {
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
		return nil, identity.ID{}, "", fmt.Errorf("%w: %w", errNotAllowed, err)
	}
	if q.AWS != nil {
		if id.Name == "" {
			id.Name = q.Otherwise
		}
		text, by, err = e.certifyByAWS(ctx, *q.AWS, id, q.Request)
		return text, id, by, err
	}
	token, err := identity.ParseJoinToken(q.Token)
	if err != nil {
		return nil, id, "", fmt.Errorf("%w: %w", ca.ErrJoinRefused, err)
	}
	text, id, err = e.Authority.Join(token, id, q.Otherwise, q.Request, from)
	return text, id, "join token " + token.ID, err
}

// certifyByAWS makes a certificate of an agent whom AWS names.
func (e *Enrolment) certifyByAWS(ctx context.Context, proof awsproof.Proof, id identity.ID, request []byte) (text []byte, by string, err error) {
	if e.AWS == nil {
		return nil, "", fmt.Errorf("%w: this seeder takes no proof by AWS, which --enrol-aws ARN=REGION would let it; a join token does as well (`seeder ca token`)", errNotAllowed)
	}
	if id.Kind != identity.Agent {
		return nil, "", fmt.Errorf("%w: a %s joins with a token (`seeder ca token`), AWS vouches for agents alone", errNotAllowed, id.Kind)
	}
	r, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", errNotAllowed, err)
	}
	select {
	case e.AWS.asking <- struct{}{}:
		defer func() { <-e.AWS.asking }()
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
	caller, err := e.AWS.Checker.Check(ctx, proof, sha256.Sum256(r.RawSubjectPublicKeyInfo))
	if err != nil {
		return nil, "", err
	}
	by = caller.ARN
	if len(by) > maxARN || !utf8.ValidString(by) {
		return nil, "", errors.New("STS names somebody by more than a name")
	}
	if !slices.ContainsFunc(e.AWS.Rules, func(r awsproof.Rule) bool { return r.Region == id.Region && r.Matches(by) }) {
		return nil, by, fmt.Errorf("%w: AWS says that this is %s, which no --enrol-aws names for %s", errNotAllowed, by, id.Region)
	}
	if text, err = e.Authority.IssueFor(id, request); err != nil {
		err = fmt.Errorf("%w: %w", errNotAllowed, err)
	}
	return text, by, err
}

// enrolLimits bound how often somebody may ask.
type enrolLimits struct {
	all      *rate.Limiter
	networks admission.Rates[netip.Addr]
}

func (l *enrolLimits) allow(addr netip.Addr, now time.Time) bool {
	return l.networks.Take(admission.Network(addr), false, now) && l.all.AllowN(now, 1)
}

// addressOf is that of the other side; the zero value where it has none.
func addressOf(addr net.Addr) netip.Addr {
	if tcp, ok := addr.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
