package admission

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// FailureBurst and FailuresPerSecond bound how often those of one network may fail to
	// show who they are before they are turned away without being heard: a handshake of TLS
	// costs both sides the same. Some of it goes on, so that a member behind the same
	// address has its chance.
	FailureBurst, FailuresPerSecond = 32, 4
	// maxNetworks bounds the networks that are told apart in that.
	maxNetworks = 1024
	// cleanInterval is the least time between two looks at all allowances.
	cleanInterval = time.Second
)

// Rates are allowances by key: each may do a thing Burst times at once and PerSecond times a
// second. It is safe for concurrent use.
type Rates[K comparable] struct {
	Burst     int
	PerSecond rate.Limit
	// Most bounds the keys that have an allowance of their own; all further ones share one.
	// As many again that are sure of their own may have it beside them.
	Most int

	mu        sync.Mutex
	own, sure allowances[K]
	shared    *rate.Limiter
}

// allowances are those of some keys. Those that are whole again are forgotten when there are
// too many, and that is looked at once a second: whoever comes with ever new keys is not to
// have all of them looked at each time.
type allowances[K comparable] struct {
	of      map[K]*rate.Limiter
	cleaned time.Time
}

func (a *allowances[K]) clean(burst int, now time.Time) {
	if now.Sub(a.cleaned) < cleanInterval {
		return
	}
	a.cleaned = now
	for key, l := range a.of {
		if l.TokensAt(now) >= float64(burst) {
			delete(a.of, key)
		}
	}
}

// NewFailures are the rates at which addresses may fail to show a certificate. Their keys are
// those of Origins without one.
func NewFailures() *Rates[netip.Addr] {
	return &Rates[netip.Addr]{Burst: FailureBurst, PerSecond: FailuresPerSecond, Most: maxNetworks}
}

// Take spends one of a key's allowance; false where nothing is left. sure says that the key
// is to have one of its own, whoever else there is.
func (r *Rates[K]) Take(key K, sure bool, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of(key, sure, now, true).AllowN(now, 1)
}

// Left reports whether something is left of a key's allowance.
func (r *Rates[K]) Left(key K, sure bool, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.of(key, sure, now, false)
	return l == nil || l.TokensAt(now) >= 1
}

// Len is how many keys are told apart.
func (r *Rates[K]) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.own.of) + len(r.sure.of)
}

// of is the allowance of a key. Where nothing of it is spent, and it is not to be made, that
// is nil. The caller holds mu.
func (r *Rates[K]) of(key K, sure bool, now time.Time, create bool) *rate.Limiter {
	a := &r.own
	if sure {
		a = &r.sure
	}
	if l := a.of[key]; l != nil {
		return l
	}
	if len(a.of) >= r.Most {
		a.clean(r.Burst, now)
	}
	if len(a.of) >= r.Most {
		if r.shared == nil {
			r.shared = rate.NewLimiter(r.PerSecond, r.Burst)
		}
		return r.shared
	}
	if !create {
		return nil
	}
	if a.of == nil {
		a.of = map[K]*rate.Limiter{}
	}
	l := rate.NewLimiter(r.PerSecond, r.Burst)
	a.of[key] = l
	return l
}
