// Package identity says who a process is, by its certificate, and who may be believed
// to be whom: names, files, the rules by which a chain of certificates is accepted,
// TLS configurations that hold to them, signatures of small messages. It leaves issuing
// to package ca, and what an identity may do to those who ask.
//
// A name is a SPIFFE URI:
//
//	spiffe://CLUSTER/seeder/NAME
//	spiffe://CLUSTER/agent/REGION/NAME
//	spiffe://REGION.CLUSTER/host/NAME
//
// X.509 constrains the host of a URI and not its path. Therefore the hosts of a region
// have a trust domain of their own: the intermediate that issues them is constrained to
// it, and accepted for hosts alone.
package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Kind is what an identity is.
type Kind string

// The kinds.
const (
	Seeder Kind = "seeder"
	Agent  Kind = "agent"
	Host   Kind = "host"
)

// Protocols are what TLS connections between members carry, as ALPN names them.
const (
	// PeerProto is BitTorrent on the peer port.
	PeerProto = "landfall-peer/1"
	// CallProto is HTTP/1.1 between members, on the peer port.
	CallProto = "landfall-call/1"
	// GossipProto is memberlist's own, on the gossip's TCP port.
	GossipProto = "landfall-gossip/1"
	// EnrolProto is HTTP/1.1 by which who has no certificate asks for the first one, on the
	// gossip's TCP port.
	EnrolProto = "landfall-enrol/1"
)

const (
	// MaxName bounds a region's and a member's name in bytes: a label of DNS has 63,
	// the membership allows 64.
	MaxName = 63
	// MaxCluster bounds a cluster's name in bytes: with a region before it, it is a
	// name of DNS (253).
	MaxCluster = 128
	// MaxURI bounds a name in bytes.
	MaxURI = len("spiffe://") + MaxName + 1 + MaxCluster + len("/agent/") + 2*(MaxName+1)
	// RenewFor is how long after its end a certificate may be used to renew itself.
	RenewFor = 90 * 24 * time.Hour
	// MaxConnectionAge is how long a connection lives that was verified once: what
	// has been denied or replaced since is out by then at the latest.
	MaxConnectionAge = 24 * time.Hour
	// Backdate is how far a certificate's NotBefore lies before it is made: clocks
	// differ.
	Backdate = time.Hour
)

// Clock tells the time; nil means time.Now.
type Clock func() time.Time

// Now is the time.
func (c Clock) Now() time.Time {
	if c == nil {
		return time.Now()
	}
	return c()
}

// ID is who a process is. The zero value is nobody.
type ID struct {
	Cluster string
	Kind    Kind
	Region  string // of agents and hosts
	Name    string
}

// Parse reads a SPIFFE URI. Anything but the three forms is an error.
func Parse(uri string) (ID, error) {
	id, err := parse(uri)
	if err != nil {
		return ID{}, fmt.Errorf("identity %.80q: %w", uri, err)
	}
	return id, nil
}

func parse(uri string) (ID, error) {
	if len(uri) > MaxURI {
		return ID{}, fmt.Errorf("%d bytes long, at most %d", len(uri), MaxURI)
	}
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	if !ok {
		return ID{}, errors.New("it does not begin with spiffe://")
	}
	parts := strings.Split(rest, "/")
	var id ID
	switch {
	case len(parts) == 3 && parts[1] == string(Seeder):
		id = ID{Cluster: parts[0], Kind: Seeder, Name: parts[2]}
	case len(parts) == 4 && parts[1] == string(Agent):
		id = ID{Cluster: parts[0], Kind: Agent, Region: parts[2], Name: parts[3]}
	case len(parts) == 3 && parts[1] == string(Host):
		region, cluster, ok := strings.Cut(parts[0], ".")
		if !ok {
			return ID{}, errors.New("a host's trust domain is REGION.CLUSTER")
		}
		id = ID{Cluster: cluster, Kind: Host, Region: region, Name: parts[2]}
	default:
		return ID{}, errors.New("expected spiffe://CLUSTER/seeder/NAME, spiffe://CLUSTER/agent/REGION/NAME or spiffe://REGION.CLUSTER/host/NAME")
	}
	return id, id.Check()
}

// Check reports what is wrong with the parts of a name. Names are lower case; a region
// is one label of a name of DNS, a cluster one or more with dots between.
func (id ID) Check() error {
	if len(id.Cluster) > MaxCluster {
		return fmt.Errorf("the cluster's name is %d bytes long, at most %d", len(id.Cluster), MaxCluster)
	}
	for label := range strings.SplitSeq(id.Cluster, ".") {
		if !isLabel(label) {
			return fmt.Errorf("cluster %.80q: expected lower-case letters, digits and dashes, with dots between", id.Cluster)
		}
	}
	switch id.Kind {
	case Seeder:
		if id.Region != "" {
			return fmt.Errorf("a seeder has no region, this one has %.80q", id.Region)
		}
	case Agent, Host:
		if !isLabel(id.Region) {
			return fmt.Errorf("region %.80q: expected lower-case letters, digits and dashes, at most %d", id.Region, MaxName)
		}
	default:
		return fmt.Errorf("kind %.80q: expected seeder, agent or host", id.Kind)
	}
	if !isName(id.Name) {
		return fmt.Errorf("name %.80q: expected lower-case letters, digits, dashes, dots and underscores, at most %d", id.Name, MaxName)
	}
	return nil
}

func isLabel(s string) bool {
	if s == "" || len(s) > MaxName || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return onlyOf(s, "-")
}

func isName(s string) bool {
	return s != "" && len(s) <= MaxName && s != "." && s != ".." && onlyOf(s, "-._")
}

func onlyOf(s, beside string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(beside, c) < 0 {
			return false
		}
	}
	return true
}

// TrustDomain is the host of the URI: of hosts REGION.CLUSTER, else the cluster.
func (id ID) TrustDomain() string {
	if id.Kind == Host {
		return id.Region + "." + id.Cluster
	}
	return id.Cluster
}

// String is the SPIFFE URI.
func (id ID) String() string {
	path := string(id.Kind) + "/"
	if id.Kind == Agent {
		path += id.Region + "/"
	}
	return "spiffe://" + id.TrustDomain() + "/" + path + id.Name
}

// URL is the SPIFFE URI as certificates hold it.
func (id ID) URL() *url.URL {
	path, _ := strings.CutPrefix(id.String(), "spiffe://"+id.TrustDomain())
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain(), Path: path}
}

// Of reads the identity that a certificate names: by exactly one URI, and nothing else.
func Of(cert *x509.Certificate) (ID, error) {
	if len(cert.URIs) != 1 {
		return ID{}, fmt.Errorf("certificate of %.80q has %d URIs, expected one that begins with spiffe://", cert.Subject, len(cert.URIs))
	}
	return Parse(cert.URIs[0].String())
}

// Fingerprint is the SHA-256 of a certificate's bytes.
type Fingerprint [sha256.Size]byte

// FingerprintOf returns a certificate's.
func FingerprintOf(cert *x509.Certificate) Fingerprint { return sha256.Sum256(cert.Raw) }

// String is base64, in the alphabet of URLs, without padding.
func (f Fingerprint) String() string { return base64.RawURLEncoding.EncodeToString(f[:]) }

// ParseFingerprint reads what String made.
func ParseFingerprint(s string) (f Fingerprint, err error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(f) {
		return f, fmt.Errorf("fingerprint %.80q: not base64 of %d bytes", s, len(f))
	}
	return Fingerprint(b), nil
}
