package signing

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/fresh"
)

const (
	// maxRules bounds the rules of one member, and the keys in a list of revoked ones.
	maxRules = 256
	// maxListFile bounds a file of keys in bytes.
	maxListFile = 64 << 10
	// watchInterval is how often the files are read again.
	watchInterval = 5 * time.Second
)

// ErrUntrusted is wrapped by errors about what no trusted key may say.
var ErrUntrusted = errors.New("untrusted document")

// Rule trusts a key with the builds of some buckets, for some time.
type Rule struct {
	Key PublicKey
	// Bucket is the source bucket whose builds it may announce, Prefix what their keys
	// begin with; empty for all.
	Bucket, Prefix string
	// Until is when the trust ends; zero for never.
	Until time.Time
}

func (r Rule) String() string {
	var limits []string
	if r.Bucket != "" {
		limits = append(limits, "bucket="+r.Bucket)
	}
	if r.Prefix != "" {
		limits = append(limits, "prefix="+r.Prefix)
	}
	if !r.Until.IsZero() {
		limits = append(limits, "until="+r.Until.Format(time.RFC3339))
	}
	if limits == nil {
		return r.Key.String()
	}
	return r.Key.String() + ":" + strings.Join(limits, ",")
}

// Trust is the rules by which a member takes documents, as files and flags have them. It
// is safe for concurrent use.
type Trust struct {
	own     []Rule
	specs   []string
	revoked string // file; empty for none
	now     func() time.Time

	mu    sync.Mutex // not held over the disk
	rules []Rule
	held  []Rule // those of rules whose time was not over when the files were read
	gone  map[PublicKey]bool
}

// TrustIn trusts these keys with everything.
func TrustIn(keys ...PublicKey) *Trust {
	t := &Trust{now: time.Now}
	for _, k := range keys {
		t.own = append(t.own, Rule{Key: k})
	}
	t.rules, t.held = t.own, t.own // all of them, for all time
	return t
}

// OpenTrust reads rules. Each of specs is KEY or FILE, a key as `seeder keygen` prints it
// or a file of rules, one a line, either with limits behind it:
//
//	KEY:bucket=global-builds,prefix=web/,until=2027-01-31T00:00:00Z
//
// Several rules for one key allow what any of them allows. revoked is a file of keys that
// are trusted no more, whatever the rules say; empty for none. own keys are trusted with
// everything.
func OpenTrust(specs []string, revoked string, own ...PublicKey) (*Trust, error) {
	t := TrustIn(own...)
	t.specs, t.revoked = join(specs), revoked
	if _, err := t.Reload(); err != nil {
		return nil, err
	}
	for _, k := range own {
		if t.gone[k] {
			return nil, fmt.Errorf("the signing key %s… is revoked by %s: make another one with `seeder keygen`", k.ID(), revoked)
		}
	}
	return t, nil
}

// join undoes what a list of flags does to the commas of a rule.
func join(specs []string) (out []string) {
	for _, s := range specs {
		if name, _, ok := strings.Cut(s, "="); ok && len(out) > 0 && slices.Contains(limitNames, name) {
			out[len(out)-1] += "," + s
			continue
		}
		out = append(out, s)
	}
	return out
}

var limitNames = []string{"bucket", "prefix", "until"}

// cutLimits splits KEY:bucket=… into the key and its limits.
func cutLimits(spec string) (name, limits string) {
	for _, limit := range limitNames {
		if name, rest, ok := strings.Cut(spec, ":"+limit+"="); ok {
			return name, limit + "=" + rest
		}
	}
	return spec, ""
}

// apply narrows a rule.
func (r Rule) apply(limits string) (Rule, error) {
	for limit := range strings.SplitSeq(limits, ",") {
		name, value, _ := strings.Cut(limit, "=")
		if value == "" || !slices.Contains(limitNames, name) {
			return r, fmt.Errorf("%q is none of bucket=NAME, prefix=TEXT, until=TIME", limit)
		}
		switch name {
		case "bucket":
			r.Bucket = value
		case "prefix":
			r.Prefix = value
		case "until":
			until, err := time.Parse(time.RFC3339, value)
			if err != nil {
				if until, err = time.Parse(time.DateOnly, value); err != nil {
					return r, fmt.Errorf("until=%q is no time such as 2027-01-31T00:00:00Z or 2027-01-31", value)
				}
			}
			r.Until = until.UTC()
		}
	}
	return r, nil
}

// readRules reads the rules of one spec.
func readRules(spec string) (rules []Rule, err error) {
	name, limits := cutLimits(spec)
	if _, err := os.Stat(spec); err == nil { // a file that is named like a rule
		name, limits = spec, ""
	}
	if key, err := ParsePublicKey(name); err == nil {
		rules = []Rule{{Key: key}}
	} else if rules, err = readFile(name); err != nil {
		return nil, fmt.Errorf("trusted key %.80q: neither a public key nor a readable file: %w", name, err)
	}
	if limits == "" {
		return rules, nil
	}
	for i, r := range rules {
		if rules[i], err = r.apply(limits); err != nil {
			return nil, fmt.Errorf("--trust %.80s: %w", spec, err)
		}
	}
	return rules, nil
}

// readFile reads rules, one a line; what follows # is left out.
func readFile(file string) (rules []Rule, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxListFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxListFile {
		return nil, fmt.Errorf("%s: more than %d bytes are too many for a file of keys", file, maxListFile)
	}
	for line := range strings.Lines(string(text)) {
		if line, _, _ = strings.Cut(line, "#"); strings.TrimSpace(line) == "" {
			continue
		}
		name, limits := cutLimits(strings.TrimSpace(line))
		var r Rule
		if r.Key, err = ParsePublicKey(name); err == nil && limits != "" {
			r, err = r.apply(limits)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// ReadPublicKey takes a key, or the name of a file of one.
func ReadPublicKey(spec string) (PublicKey, error) {
	rules, err := readRules(spec)
	if err == nil && len(rules) != 1 {
		err = fmt.Errorf("%s: %d keys, one is needed", spec, len(rules))
	}
	if err != nil {
		return PublicKey{}, err
	}
	return rules[0].Key, nil
}

// fromFiles is what they say.
type fromFiles struct {
	rules []Rule
	gone  map[PublicKey]bool
}

// Reload reads the files again and says whether other rules hold since. On error those of
// before hold.
func (t *Trust) Reload() (changed bool, err error) {
	now, err := t.read()
	return err == nil && t.take(now), err
}

func (t *Trust) read() (now fromFiles, err error) {
	now = fromFiles{slices.Clone(t.own), make(map[PublicKey]bool)}
	for _, spec := range t.specs {
		more, err := readRules(spec)
		if err != nil {
			return now, err
		}
		now.rules = append(now.rules, more...)
	}
	if t.revoked != "" {
		list, err := readFile(t.revoked)
		if err != nil {
			return now, fmt.Errorf("revoked keys: %w", err)
		}
		for _, r := range list {
			now.gone[r.Key] = true
		}
	}
	if len(now.rules) > maxRules || len(now.gone) > maxRules {
		return now, fmt.Errorf("%d rules of trust and %d revoked keys, at most %d each", len(now.rules), len(now.gone), maxRules)
	}
	return now, nil
}

// files are those that may be read: which of specs are keys is seen there.
func (t *Trust) files() (names []string) {
	for _, spec := range t.specs {
		name, _ := cutLimits(spec)
		names = append(names, spec, name)
	}
	return append(names, t.revoked)
}

// take has the rules hold, and says whether they are others than before.
func (t *Trust) take(now fromFiles) (changed bool) {
	rules, gone := slices.DeleteFunc(now.rules, func(r Rule) bool { return now.gone[r.Key] }), now.gone
	hold := slices.DeleteFunc(slices.Clone(rules), func(r Rule) bool { return !t.holds(r) })
	t.mu.Lock()
	defer t.mu.Unlock()
	changed = !slices.Equal(hold, t.held)
	t.rules, t.held, t.gone = rules, hold, gone
	return changed
}

// Watch reads the files again from time to time, until ctx ends. It calls onChange when
// other rules hold, and onError once for each different error.
func (t *Trust) Watch(ctx context.Context, onChange func(), onError func(error)) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now, err := fresh.Settled(t.read, t.files()...)
		switch {
		case err == nil:
			said = ""
			if t.take(now) {
				onChange()
			}
		case errors.Is(err, fresh.ErrUnsettled):
		case err.Error() != said:
			said = err.Error()
			onError(err)
		}
	}
}

// Keys are those that are trusted with something now, each once.
func (t *Trust) Keys() (keys []PublicKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.rules {
		if t.holds(r) && !slices.Contains(keys, r.Key) {
			keys = append(keys, r.Key)
		}
	}
	return keys
}

// IDs are those of Keys.
func (t *Trust) IDs() (ids []string) {
	for _, k := range t.Keys() {
		ids = append(ids, k.ID())
	}
	return ids
}

func (t *Trust) holds(r Rule) bool { return r.Until.IsZero() || t.now().Before(r.Until) }

// CheckKey returns nil when a key is trusted with something; else the error wraps
// ErrUntrusted.
func (t *Trust) CheckKey(key PublicKey) error {
	return t.check(key, func(Rule) bool { return true })
}

// Check returns nil when a key may speak of an object; else the error wraps ErrUntrusted.
func (t *Trust) Check(key PublicKey, bucket, object string) error {
	return t.check(key, func(r Rule) bool {
		return (r.Bucket == "" || r.Bucket == bucket) && strings.HasPrefix(object, r.Prefix)
	})
}

func (t *Trust) check(key PublicKey, allows func(Rule) bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, over := false, time.Time{}
	for _, r := range t.rules {
		switch {
		case r.Key != key:
		case !t.holds(r):
			over = r.Until
		case allows(r):
			return nil
		default:
			known = true
		}
	}
	switch {
	case t.gone[key]:
		return fmt.Errorf("%w: signed by %s, which is revoked", ErrUntrusted, key)
	case known:
		return fmt.Errorf("%w: signed by %s, which is not trusted with this bucket and key", ErrUntrusted, key)
	case !over.IsZero():
		return fmt.Errorf("%w: signed by %s, which was trusted until %s", ErrUntrusted, key, over.Format(time.RFC3339))
	}
	return fmt.Errorf("%w: signed by %s, which is not among the trusted keys", ErrUntrusted, key)
}
