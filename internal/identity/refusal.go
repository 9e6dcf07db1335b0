package identity

import (
	"errors"
	"sync/atomic"
)

// Reason is why somebody is refused by its certificate, for metrics.
type Reason string

// The reasons.
const (
	// Denied is on the deny list, or its authority is.
	Denied Reason = "denied"
	// Expired has ended, NotYet not begun.
	Expired Reason = "expired"
	NotYet  Reason = "not_yet"
	// Authority is one that is not trusted here.
	Authority Reason = "authority"
	// Misplaced is of another cluster, kind, region or name than may be there.
	Misplaced Reason = "misplaced"
	// Missing is who shows none.
	Missing Reason = "missing"
	// Invalid is what is no certificate of a member at all.
	Invalid Reason = "invalid"
)

// Reasons are all of them.
var Reasons = [...]Reason{Denied, Expired, NotYet, Authority, Misplaced, Missing, Invalid}

// refusal is an error with its reason.
type refusal struct {
	error
	reason Reason
}

func (r refusal) Unwrap() error { return r.error }

// Refuse gives an error a reason, unless it has one already; nil stays nil.
func Refuse(reason Reason, err error) error {
	var r refusal
	if err == nil || errors.As(err, &r) {
		return err
	}
	return refusal{err, reason}
}

// reasonOf is why verification has failed.
func reasonOf(err error) Reason {
	switch { // in this order: who is denied stays so when it has ended, too
	case errors.Is(err, ErrDenied):
		return Denied
	case errors.Is(err, ErrExpired):
		return Expired
	case errors.Is(err, ErrNotYet):
		return NotYet
	case errors.Is(err, ErrUnknown):
		return Authority
	}
	return Invalid
}

// refusals counts by reason, in the order of Reasons.
type refusals [len(Reasons)]atomic.Int64

// Count takes note that somebody was turned away; errors that have no reason, such as
// those of a network, do not count. A nil Source counts nothing.
func (s *Source) Count(err error) {
	var r refusal
	if s == nil || !errors.As(err, &r) {
		return
	}
	for i, reason := range Reasons {
		if reason == r.reason {
			s.refused[i].Add(1)
		}
	}
}

// Refused is how many Count has taken note of; 0 of a nil Source.
func (s *Source) Refused(reason Reason) (n int64) {
	if s == nil {
		return 0
	}
	for i, r := range Reasons {
		if r == reason {
			n = s.refused[i].Load()
		}
	}
	return n
}
