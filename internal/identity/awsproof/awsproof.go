// Package awsproof proves who somebody is to AWS: by a signed request for
// sts:GetCallerIdentity that is sent by whom it is to convince, as HashiCorp Vault's and
// Kubernetes' authenticators do. It names the cluster and the key that is to be certified
// in signed headers, so that a proof for one cluster or key is none for another.
package awsproof

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	// DefaultEndpoint is the STS that proofs are for.
	DefaultEndpoint = "https://sts.us-east-1.amazonaws.com"

	// Body is the request for whom a proof is.
	Body = "Action=GetCallerIdentity&Version=2011-06-15"

	// ClusterHeader and KeyHeader say for which cluster and key; they are signed.
	ClusterHeader = "X-Landfall-Cluster"
	KeyHeader     = "X-Landfall-Key"

	// maxHeader bounds one header of a proof in bytes: a session token has 2 KiB or less,
	// as a rule.
	maxHeader = 8 << 10
	// maxAnswer bounds what STS answers, in bytes; maxTime how long that may take.
	maxAnswer, maxTime = 64 << 10, 5 * time.Second
	// maxAge is how old a proof may be; STS itself allows 15 minutes.
	maxAge = 5 * time.Minute

	// DateFormat is that of X-Amz-Date.
	DateFormat = "20060102T150405Z"
)

// ErrRefused is wrapped when STS, or a rule, does not accept a proof.
var ErrRefused = errors.New("the proof of who is asking is not accepted")

// Proof is the request's headers; everything else of it is known.
type Proof struct {
	Authorization string `json:"authorization"`
	Date          string `json:"date"`
	Token         string `json:"token,omitempty"`
}

// New signs a proof with the credentials of cfg, for a cluster and the SHA-256 of the
// public key that is to be certified. endpoint is the STS that will be asked.
func New(ctx context.Context, cfg aws.Config, endpoint, cluster string, key [sha256.Size]byte) (Proof, error) {
	credentials, err := cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return Proof{}, fmt.Errorf("AWS credentials: %w", err)
	}
	r, err := request(ctx, endpoint, cluster, key)
	if err != nil {
		return Proof{}, err
	}
	sum := sha256.Sum256([]byte(Body))
	if err := v4.NewSigner().SignHTTP(ctx, credentials, r, hex.EncodeToString(sum[:]), "sts", regionOf(endpoint), time.Now()); err != nil {
		return Proof{}, fmt.Errorf("signing for STS: %w", err)
	}
	return Proof{r.Header.Get("Authorization"), r.Header.Get("X-Amz-Date"), r.Header.Get("X-Amz-Security-Token")}, nil
}

// request is what both sides make, without the proof.
func request(ctx context.Context, endpoint, cluster string, key [sha256.Size]byte) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint+"/", strings.NewReader(Body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set(ClusterHeader, cluster)
	r.Header.Set(KeyHeader, hex.EncodeToString(key[:]))
	return r, nil
}

var regional = regexp.MustCompile(`^sts\.([a-z]{2}(?:-[a-z]+)+-[0-9])\.amazonaws\.com`)

// regionOf is the region that an endpoint's requests are signed for.
func regionOf(endpoint string) string {
	if u, err := url.Parse(endpoint); err == nil {
		if m := regional.FindStringSubmatch(u.Host); m != nil {
			return m[1]
		}
	}
	return "us-east-1"
}

// Caller is whom STS names.
type Caller struct {
	Account string `xml:"GetCallerIdentityResult>Account"`
	ARN     string `xml:"GetCallerIdentityResult>Arn"`
}

// Checker asks STS.
type Checker struct {
	// Endpoint is the STS that is asked, never one that a proof names; Cluster what proofs
	// must name.
	Endpoint, Cluster string
	// Client lends its transport; nil for the usual one. Redirects are not followed.
	Client *http.Client
	// Now is nil for time.Now.
	Now func() time.Time
}

// Check sends a proof to STS and returns who made it, for this cluster and key.
func (c *Checker) Check(ctx context.Context, p Proof, key [sha256.Size]byte) (Caller, error) {
	if err := c.wellFormed(p); err != nil {
		return Caller{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	r, err := request(ctx, c.Endpoint, c.Cluster, key)
	if err != nil {
		return Caller{}, err
	}
	r.Close = true // it is seldom asked
	r.Header.Set("Authorization", p.Authorization)
	r.Header.Set("X-Amz-Date", p.Date)
	if p.Token != "" {
		r.Header.Set("X-Amz-Security-Token", p.Token)
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if c.Client != nil {
		client.Transport = c.Client.Transport
	}
	answer, err := client.Do(r)
	if err != nil {
		return Caller{}, fmt.Errorf("asking STS at %s: %w", c.Endpoint, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return Caller{}, fmt.Errorf("asking STS at %s: %w", c.Endpoint, err)
	case len(text) > maxAnswer:
		return Caller{}, fmt.Errorf("asking STS at %s: it answers more than %d bytes", c.Endpoint, maxAnswer)
	case answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusBadRequest:
		return Caller{}, fmt.Errorf("%w: STS answers %s", ErrRefused, answer.Status)
	case answer.StatusCode != http.StatusOK:
		return Caller{}, fmt.Errorf("asking STS at %s: it answers %s", c.Endpoint, answer.Status)
	}
	caller, ok := readCaller(text)
	if !ok {
		return Caller{}, fmt.Errorf("asking STS at %s: it names nobody", c.Endpoint)
	}
	return caller, nil
}

// readCaller reads whom STS names; false for nobody.
func readCaller(text []byte) (caller Caller, ok bool) {
	err := xml.Unmarshal(text, &caller)
	return caller, err == nil && strings.HasPrefix(caller.ARN, "arn:") && caller.Account != ""
}

var signedHeaders = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=[^,\s]+, ?SignedHeaders=([a-z0-9;-]+), ?Signature=[0-9a-f]{64}$`)

// wellFormed looks at what STS would not: that the headers which make a proof one for this
// cluster and key are among those that are signed, and that it is fresh.
func (c *Checker) wellFormed(p Proof) error {
	for _, h := range []string{p.Authorization, p.Date, p.Token} {
		if len(h) > maxHeader || strings.ContainsAny(h, "\r\n") {
			return errors.New("a header of it is malformed")
		}
	}
	m := signedHeaders.FindStringSubmatch(p.Authorization)
	if m == nil {
		return errors.New("it is not signed as AWS does (Signature Version 4)")
	}
	signed := ";" + m[1] + ";"
	for _, name := range []string{"host", "x-amz-date", strings.ToLower(ClusterHeader), strings.ToLower(KeyHeader)} {
		if !strings.Contains(signed, ";"+name+";") {
			return fmt.Errorf("its signature leaves %s out", name)
		}
	}
	made, err := time.Parse(DateFormat, p.Date)
	if err != nil {
		return fmt.Errorf("its date %.40q is none", p.Date)
	}
	now := time.Now
	if c.Now != nil {
		now = c.Now
	}
	if age := now().Sub(made); age > maxAge || age < -maxAge {
		return fmt.Errorf("it was made at %s and here it is %s; compare the clocks", made.Format(time.RFC3339), now().UTC().Format(time.RFC3339))
	}
	return nil
}

// Rule says who may join as an agent of a region.
type Rule struct {
	Region string
	arn    string // without its last part where anySession
	// anySession stands for whatever follows arn, which has no slash.
	anySession bool
}

var (
	roleForm = regexp.MustCompile(`^(arn:aws[a-z-]{0,16}:sts::[0-9]{12}:assumed-role/[A-Za-z0-9_+=,.@-]{1,64}/)(\*|[A-Za-z0-9_+=,.@-]{2,64})$`)
	userForm = regexp.MustCompile(`^arn:aws[a-z-]{0,16}:iam::[0-9]{12}:user/[A-Za-z0-9_+=,.@/-]{1,576}$`)
)

// ParseRule reads ARN=REGION. The ARN is that of a session of a role, or * for all of them,
// or of a user: nothing else stands for more than it says.
func ParseRule(text string) (Rule, error) {
	i := strings.LastIndexByte(text, '=')
	if i < 0 || i == len(text)-1 {
		return Rule{}, fmt.Errorf("%.200q: expected ARN=REGION", text)
	}
	r := Rule{arn: text[:i], Region: text[i+1:]}
	if m := roleForm.FindStringSubmatch(r.arn); m != nil {
		if m[2] == "*" {
			r.arn, r.anySession = m[1], true
		}
		return r, nil
	}
	if userForm.MatchString(r.arn) {
		return r, nil
	}
	return Rule{}, fmt.Errorf("%.200q: expected arn:aws:sts::ACCOUNT:assumed-role/ROLE/* (or a session's name for *), or arn:aws:iam::ACCOUNT:user/NAME", r.arn)
}

// Matches reports whether the rule is about an ARN.
func (r Rule) Matches(arn string) bool {
	if !r.anySession {
		return arn == r.arn
	}
	session, ok := strings.CutPrefix(arn, r.arn)
	return ok && session != "" && !strings.ContainsAny(session, "/:")
}

// CheckEndpoint reports why proofs are not sent to an endpoint.
func CheckEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "":
		return fmt.Errorf("%.200q: expected a URL such as %s", endpoint, DefaultEndpoint)
	case u.Scheme == "https":
		return nil
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme != "http" || err != nil || !ip.IsLoopback() {
		return fmt.Errorf("%.200q: expected https, or http on loopback", endpoint)
	}
	return nil
}
