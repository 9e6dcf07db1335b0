// Package goal holds the signed documents that say which build each service is to run, and
// what follows from them for a region and a host. It signs, checks and keeps them
// (shelf.go) and has what agents count of the hosts under them (counts.go); others carry
// them, switch hosts, and decide what the next goal is.
//
// A document travels as a signing.Envelope of the kind "landfall-goal-v1", "landfall-beat-v1",
// "landfall-recall-v1" or "landfall-recall-beat-v1" (recall.go).
package goal

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/signing"
)

const (
	// MaxLength bounds a document on the wire in bytes.
	MaxLength = 24 << 10
	// MaxRegions bounds the regions of one goal, like the destinations of one execution.
	MaxRegions = announce.MaxDestinations
	// MaxHeld bounds the hosts that one goal holds; so many names of full length fit beside
	// two builds with keys of full length.
	MaxHeld = 200
	// MaxServices bounds the services of one cluster: a beat names every one of them and is
	// a document like others.
	MaxServices = 250
	// maxBy bounds the name of the operator whose goal it is in bytes.
	maxBy = 256

	// Circle is what HashOf stays below.
	Circle = int64(1) << 32

	goalKind = "landfall-goal-v1"
	beatKind = "landfall-beat-v1"
)

var envelope = signing.Envelope{Kinds: []string{goalKind, beatKind, recallKind, recallBeatKind}, MaxLength: MaxLength}

var (
	// ErrInvalid is wrapped by errors about a document that is malformed or breaks a bound.
	ErrInvalid = signing.ErrInvalid
	// ErrUntrusted is wrapped when no trusted key has signed, or the key is not trusted with
	// a build that is named.
	ErrUntrusted = signing.ErrUntrusted
	// ErrContradiction is wrapped when two goals of a service have the same version.
	ErrContradiction = errors.New("another goal of this version is known")
)

// NewerError says that a trusted key has signed a goal which this version does not
// understand: it is of a newer one. It wraps ErrInvalid.
type NewerError struct {
	Service string
	Version int64
	Err     error // what is not understood
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("goal %d of %s says what this version does not know: %v", e.Version, e.Service, e.Err)
}

func (e *NewerError) Unwrap() error { return e.Err }

// HashOf places a host of a service on the circle: 0 to Circle-1.
func HashOf(service, host string) int64 {
	sum := sha256.Sum256([]byte(service + "\x00" + host))
	return int64(binary.BigEndian.Uint32(sum[:4]))
}

// Build is what a service can run: one execution of one object.
type Build struct {
	SourceBucket string `json:"sourceBucket"`
	Key          string `json:"key"`
	ExecutionID  string `json:"executionId"` // ULID
	Size         int64  `json:"size"`        // bytes
	// SHA256 is the composite that S3 has of the parts: base64, a dash, how many there are.
	// Empty while it is not known, which is only while no gate is open.
	SHA256 string `json:"sha256,omitempty"`
}

// Region is what a goal says of one region.
type Region struct {
	// Open is set when hosts may switch to the target: its gate.
	Open bool `json:"open,omitempty"`
	// Cut is the value of HashOf below which hosts run the target: 0 none, Circle all.
	Cut int64 `json:"cut,omitempty"`
	// Skipped regions are left out of the deployment: no host of theirs goes from Stable to
	// Target any more.
	Skipped bool `json:"skipped,omitempty"`
}

// Goal is what one service is to run. A later version replaces an earlier one.
type Goal struct {
	Service string `json:"service"`
	// Version only grows, also when a table was restored from an old copy: NextVersion.
	Version    int64  `json:"version"`
	Deployment string `json:"deployment"` // ULID
	// Target is what hosts below their region's cut run.
	Target Build `json:"target"`
	// Stable is what the others run: the build that a deployment completed with before this
	// one; nil for none. Hosts hold both.
	Stable *Build `json:"stable,omitempty"`
	// Regions are those of the deployment, by name. Hosts of others run Stable, or, when the
	// deployment is Done, Target.
	Regions map[string]Region `json:"regions,omitempty"`
	// Done is set when the deployment has ended with Target everywhere but in regions that
	// were skipped.
	Done bool `json:"done,omitempty"`
	// MaxUnavailable is how many of a region and zone may be switching at a time.
	MaxUnavailable Share `json:"maxUnavailable"`
	// Paused goals let no host go from Stable to Target: Leave.
	Paused bool `json:"paused,omitempty"`
	// Now lifts MaxUnavailable: a roll-back that may take the service down.
	Now bool `json:"now,omitempty"`
	// Held are hosts that stay with what they run.
	Held   []string  `json:"held,omitempty"`
	By     string    `json:"by,omitempty"` // the operator
	Issued time.Time `json:"issued"`
}

// For is what a host is to run now; nil for what it runs: it is held, or there is nothing
// else for it.
func (g *Goal) For(region, host string) *Build {
	if slices.Contains(g.Held, host) {
		return nil
	}
	return g.Named(region, host)
}

// Named is what a host is to run unless it is held; nil for what it runs.
func (g *Goal) Named(region, host string) *Build {
	r, named := g.Regions[region]
	if named && r.Open && HashOf(g.Service, host) < r.Cut || !named && g.Done {
		return &g.Target
	}
	return g.Stable
}

// Leave reports whether a host that runs an execution (empty for none) may get leave to
// switch to what For says, as far as the goal is concerned.
func (g *Goal) Leave(region, host, running string) bool {
	build := g.For(region, host)
	if build == nil || build.ExecutionID == running {
		return false
	}
	fromStable := g.Stable == nil && running == "" || g.Stable != nil && running == g.Stable.ExecutionID
	return build != &g.Target || !fromStable || !g.Paused && !g.Regions[region].Skipped
}

// Beat says which goals are the newest, so that whoever has an old one knows.
type Beat struct {
	Time time.Time `json:"time"`
	// Versions are the goals', by service.
	Versions map[string]int64 `json:"versions"`
}

// NextVersion is that of a goal which replaces another: the seconds of the clock, so that
// it is greater than those which a table forgot that was restored from an old copy, and
// greater than last whatever the clock says.
func NextVersion(now time.Time, last int64) int64 { return max(now.Unix(), last+1) }

// Sign encodes and signs a *Goal, a *Beat, a *Recall or a *RecallBeat.
func Sign(ctx context.Context, signer signing.Signer, doc any) ([]byte, error) {
	switch d := doc.(type) {
	case *Goal:
		if err := d.check(); err != nil {
			return nil, err
		}
		return envelope.Sign(ctx, signer, goalKind, d)
	case *Beat:
		if err := d.check(); err != nil {
			return nil, err
		}
		return envelope.Sign(ctx, signer, beatKind, d)
	case *Recall:
		if err := d.check(); err != nil {
			return nil, err
		}
		return envelope.Sign(ctx, signer, recallKind, d)
	case *RecallBeat:
		if err := d.check(); err != nil {
			return nil, err
		}
		return envelope.Sign(ctx, signer, recallBeatKind, d)
	}
	return nil, fmt.Errorf("%w: cannot sign a %T", ErrInvalid, doc)
}

// Open checks a document from the network or the disk against what is trusted, and returns
// a *Goal, a *Beat, a *Recall or a *RecallBeat. Errors wrap ErrInvalid or ErrUntrusted.
func Open(wire []byte, trust *signing.Trust, now time.Time) (any, error) {
	opened, err := envelope.Open(wire, trust)
	if err != nil {
		return nil, err
	}
	if opened.Kind == beatKind {
		b := new(Beat)
		if err := opened.Decode(b); err != nil {
			return nil, err
		}
		if err := b.check(); err != nil {
			return nil, err
		}
		return b, checkTime(b.Time, now)
	}
	if opened.Kind == recallBeatKind {
		b := new(RecallBeat)
		if err := opened.Decode(b); err != nil {
			return nil, err
		}
		if err := b.check(); err != nil {
			return nil, err
		}
		if err := checkTime(b.Time, now); err != nil {
			return nil, err
		}
		return b, checkVersion(b.Version, now)
	}
	if opened.Kind == recallKind {
		r := new(Recall)
		if err := opened.Decode(r); err != nil {
			return nil, err
		}
		if err := r.check(); err != nil {
			return nil, err
		}
		if err := checkTime(r.Issued, now); err != nil {
			return nil, err
		}
		if err := checkVersion(r.Version, now); err != nil {
			return nil, err
		}
		if err := trust.Check(opened.Key, r.SourceBucket, ""); err != nil {
			return nil, err
		}
		return r, nil
	}
	g := new(Goal)
	err = opened.Decode(g)
	if err == nil {
		err = g.check()
	}
	if err != nil {
		return nil, newer(opened, trust, now, err)
	}
	if err := checkTime(g.Issued, now); err != nil {
		return nil, err
	}
	if err := checkVersion(g.Version, now); err != nil {
		return nil, err
	}
	for _, b := range g.builds() {
		if err := trust.Check(opened.Key, b.SourceBucket, b.Key); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// newer is a NewerError for a goal that was signed and is not understood, if it names a
// service, a version, and builds with which the key is trusted; else why it is not understood.
func newer(opened signing.Opened, trust *signing.Trust, now time.Time, err error) error {
	var of struct {
		Service string `json:"service"`
		Version int64  `json:"version"`
		Target  Build  `json:"target"`
		Stable  *Build `json:"stable"`
	}
	if json.Unmarshal(opened.Body, &of) != nil || CheckService(of.Service) != nil || of.Version < 1 || checkVersion(of.Version, now) != nil {
		return err
	}
	for _, b := range []*Build{&of.Target, of.Stable} {
		if b != nil && trust.Check(opened.Key, b.SourceBucket, b.Key) != nil {
			return err
		}
	}
	return &NewerError{of.Service, of.Version, err}
}

// checkTime refuses a document from far ahead: a signature says who wrote it, not that its
// clock is right.
func checkTime(t, now time.Time) error {
	if err := executionid.CheckTime(t, now); err != nil {
		return fmt.Errorf("%w: issued %w", ErrInvalid, err)
	}
	return nil
}

// checkVersion refuses one from far ahead, which nobody could replace.
func checkVersion(version int64, now time.Time) error {
	if latest := now.Add(executionid.MaxAhead).Unix(); version > latest {
		return fmt.Errorf("%w: version %d, %d is the greatest that there can be by now", ErrInvalid, version, latest)
	}
	return nil
}

// builds are the target, and the stable one if there is one.
func (g *Goal) builds() []*Build {
	if g.Stable == nil {
		return []*Build{&g.Target}
	}
	return []*Build{&g.Target, g.Stable}
}

func (g *Goal) check() error {
	if err := CheckService(g.Service); err != nil {
		return err
	}
	open := false
	for name, r := range g.Regions {
		if err := CheckName("region", name); err != nil {
			return err
		}
		if r.Cut < 0 || r.Cut > Circle {
			return fmt.Errorf("%w: region %s: cut %d, expected 0 to %d", ErrInvalid, name, r.Cut, Circle)
		}
		open = open || r.Open
	}
	for _, h := range g.Held {
		if err := CheckName("host", h); err != nil {
			return err
		}
	}
	for _, b := range g.builds() {
		if err := b.check(); err != nil {
			return err
		}
	}
	switch {
	case g.Version < 1:
		return fmt.Errorf("%w: version %d", ErrInvalid, g.Version)
	case len(g.Regions) > MaxRegions:
		return fmt.Errorf("%w: %d regions, at most %d", ErrInvalid, len(g.Regions), MaxRegions)
	case len(g.Held) > MaxHeld:
		return fmt.Errorf("%w: %d hosts are held, at most %d", ErrInvalid, len(g.Held), MaxHeld)
	case len(g.By) > maxBy:
		return fmt.Errorf("%w: operator's name of %d bytes", ErrInvalid, len(g.By))
	case (open || g.Done) && g.Target.SHA256 == "":
		return fmt.Errorf("%w: a gate is open and the target's SHA-256 is not known", ErrInvalid)
	case g.Stable != nil && g.Stable.SHA256 == "":
		return fmt.Errorf("%w: the stable build's SHA-256 is not known", ErrInvalid)
	}
	if err := checkID("deployment", g.Deployment); err != nil {
		return err
	}
	return g.MaxUnavailable.Check()
}

func (b *Build) check() error {
	if err := announce.CheckKey(b.Key); err != nil {
		return err
	}
	if err := announce.CheckBucketName(b.SourceBucket); err != nil {
		return err
	}
	if b.Size < 0 || b.Size > manifest.MaxSize {
		return fmt.Errorf("%w: build of %d bytes", ErrInvalid, b.Size)
	}
	if b.SHA256 != "" && !IsComposite(b.SHA256) {
		return fmt.Errorf("%w: composite SHA-256 %.80q: expected base64, a dash and the number of parts", ErrInvalid, b.SHA256)
	}
	return checkID("executionId", b.ExecutionID)
}

// IsComposite reports whether a text is what S3 has as the SHA-256 of an object of parts.
func IsComposite(s string) bool {
	sum, parts, _ := strings.Cut(s, "-")
	raw, err := base64.StdEncoding.DecodeString(sum)
	n, errParts := strconv.Atoi(parts)
	return err == nil && errParts == nil && len(raw) == sha256.Size && n > 0 && n <= manifest.MaxParts
}

func checkID(what, id string) error {
	if executionid.Time(id).IsZero() || id != strings.ToUpper(id) {
		return fmt.Errorf("%w: %s %.40q", ErrInvalid, what, id)
	}
	return nil
}

func (b *Beat) check() error {
	if len(b.Versions) > MaxServices {
		return fmt.Errorf("%w: %d services, at most %d", ErrInvalid, len(b.Versions), MaxServices)
	}
	for service, version := range b.Versions {
		if err := CheckService(service); err != nil {
			return err
		}
		if version < 1 {
			return fmt.Errorf("%w: version %d of %s", ErrInvalid, version, service)
		}
	}
	return nil
}

// Head is the item beside the services in their table, and so the name of none.
const Head = "head"

// CheckService reports what is wrong with a service's name: it is a directory's name on
// hosts and a file's on agents.
func CheckService(name string) error {
	if name == Head {
		return fmt.Errorf("%w: no service can be called %q", ErrInvalid, Head)
	}
	return CheckName("service", name)
}

// CheckName reports what is wrong with the name of a service, a region or a host.
func CheckName(what, name string) error {
	if name == "" || len(name) > identity.MaxName || name[0] == '.' || strings.Trim(name, nameCharacters) != "" {
		return fmt.Errorf("%w: %s %.80q: expected at most %d lower-case letters, digits, dashes, dots and underscores, no dot first", ErrInvalid, what, name, identity.MaxName)
	}
	return nil
}

const nameCharacters = "abcdefghijklmnopqrstuvwxyz0123456789-_."
