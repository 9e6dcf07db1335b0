// Package executionid makes and checks the ids of executions: ULIDs, so that they
// sort by time, of which the one that takes a key over is always the greater,
// whatever the clocks say.
package executionid

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"
)

// MaxAhead is how far an id or a time from a table, a document or an object may lie
// ahead of this clock. AWS refuses requests of a clock that is a quarter of an hour
// wrong, so an honest one never comes near. An id from far ahead would freeze its key:
// every later one has to be greater, and the greatest has none after it.
const MaxAhead = 24 * time.Hour

var (
	// ErrInvalid is wrapped by errors about what is no id.
	ErrInvalid = errors.New("no executionId")
	// ErrAhead is wrapped by errors about an id or a time more than MaxAhead ahead.
	ErrAhead = errors.New("lies more than a day ahead of the clock")
)

// Check returns an error when id is not a ULID as New writes it, or more than
// MaxAhead ahead of now.
func Check(id string, now time.Time) error {
	u, err := ulid.ParseStrict(id)
	if err != nil {
		return fmt.Errorf("%w: %.40q: %w", ErrInvalid, id, err)
	}
	if u.String() != id { // lower case sorts elsewhere
		return fmt.Errorf("%w: %.40q is not in upper case", ErrInvalid, id)
	}
	if err := CheckTime(u.Timestamp(), now); err != nil {
		return fmt.Errorf("executionId %s: %w", id, err)
	}
	return nil
}

// CheckTime returns an error when t is more than MaxAhead ahead of now.
func CheckTime(t, now time.Time) error {
	if t.After(now.Add(MaxAhead)) {
		return fmt.Errorf("%s %w", t.UTC().Format(time.RFC3339), ErrAhead)
	}
	return nil
}

// Time is when an id was made; zero for what is no id.
func Time(id string) time.Time {
	u, err := ulid.ParseStrict(id)
	if err != nil {
		return time.Time{}
	}
	return u.Timestamp().UTC()
}

// New returns an id of now that is greater than last: a clock that stands or was set
// back only adds one to last. A last that Check refuses, or that is empty, counts for
// nothing, and so the id never wraps to zero.
func New(now time.Time, last string) string {
	id := ulid.MustNew(ulid.Timestamp(now), rand.Reader)
	if Check(last, now) != nil {
		return id.String()
	}
	previous := ulid.MustParseStrict(last)
	if id.Compare(previous) > 0 {
		return id.String()
	}
	for i := len(previous) - 1; i >= 0; i-- {
		if previous[i]++; previous[i] != 0 {
			break
		}
	}
	return previous.String()
}
