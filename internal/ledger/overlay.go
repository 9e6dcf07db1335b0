package ledger

import (
	"maps"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// What a destination's agents say of an execution may stand elsewhere than in its item.
// These put it beside what the item says, without a write.

// With returns the record as it is when a destination's result counts. A failure never
// counts over a success, or over a failure that is known.
func (r *Record) With(bucket string, result Result) *Record {
	c := r.Clone()
	change := c.arrive
	if !result.Success {
		if slices.Contains(c.Failed, bucket) {
			return r
		}
		change = c.fail
	}
	if changed, err := change(bucket, result); err != nil || !changed {
		return r
	}
	c.settle(time.Now())
	return c
}

// Without returns the record as it is when a destination has not arrived.
func (r *Record) Without(bucket string) *Record {
	c := r.Clone()
	c.Successful = without(c.Successful, []string{bucket})
	delete(c.Results, bucket)
	c.settle(time.Now())
	return c
}

// WithLanding returns the record with the upload of a destination, of the execution that
// has the key or of one whose build is going up. One of another execution changes nothing.
func (r *Record) WithLanding(bucket string, l Landing) *Record {
	c := r.Clone()
	switch u := r.Upload; {
	case l.ExecutionID == r.ExecutionID:
		if c.Landings == nil {
			c.Landings = make(map[string]Landing)
		}
		c.Landings[bucket] = l
	case u != nil && l.ExecutionID == u.ExecutionID:
		up := *u
		if up.Landings = maps.Clone(u.Landings); up.Landings == nil {
			up.Landings = make(map[string]Landing)
		}
		up.Landings[bucket] = l
		c.Upload = &up
	}
	return c
}

// Attributes reads attributes that anybody may have written, as far as they can be read,
// with the same bounds as the items of the table.
type Attributes struct{ in reader }

// Read begins to read; times and ids must not lie ahead of now.
func Read(i map[string]types.AttributeValue, now time.Time) *Attributes {
	return &Attributes{reader{item: i, now: now}}
}

// Whole is a text as it is, however long; empty for what is no text.
func (a *Attributes) Whole(name string) string { return a.in.whole(name) }

// Text is a text of at most 1 KiB; of a longer one its beginning.
func (a *Attributes) Text(name string) string { return a.in.text(name) }

// Number is a whole number from 0 to most; 0 for any other.
func (a *Attributes) Number(name string, most int64) int64 { return a.in.number(name, 0, most) }

// Result is how a destination ended; ok is false where there is none.
func (a *Attributes) Result(name string) (r Result, ok bool) {
	v, ok := a.in.item[name].(*types.AttributeValueMemberM)
	if !ok {
		return Result{}, false
	}
	in := reader{item: v.Value, now: a.in.now}
	r = in.result()
	a.in.take(&in, name)
	return r, true
}

// Each calls f with every map inside a map, up to most of them, in the order of their names.
func (a *Attributes) Each(name string, most int, f func(name string, of *Attributes)) {
	v, ok := a.in.item[name].(*types.AttributeValueMemberM)
	if !ok {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(v.Value)) {
		if most--; most < 0 {
			a.in.leave(name, "has more than is read: %d", len(v.Value))
			return
		}
		if m, ok := v.Value[key].(*types.AttributeValueMemberM); ok {
			of := &Attributes{reader{item: m.Value, now: a.in.now}}
			f(key, of)
			a.in.take(&of.in, key)
		}
	}
}

// Odd is the first thing that could not be read and was left out; empty for nothing.
func (a *Attributes) Odd() string { return a.in.odd }

// Attribute is the result as DynamoDB has it.
func (r Result) Attribute() types.AttributeValue { return r.encode() }

// CutText is a text as an item keeps it of an error: at most 1 KiB.
func CutText(s string) string { return cutText(s) }
