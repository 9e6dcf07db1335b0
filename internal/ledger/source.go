package ledger

import (
	"context"
	"maps"
	"time"
)

// SetSourceModified notes that the source object was written again, at a time, as it
// was. Nothing else of the item changes; ErrSuperseded when it is another
// execution's.
func (l *Ledger) SetSourceModified(ctx context.Context, k Key, executionID string, at time.Time) (*Record, error) {
	r, err := l.updateItem(ctx, k, "",
		"SET sourceModified = :at, version = version + :one",
		"executionId = :id AND attribute_type(version, :number)",
		item{":id": text(executionID), ":at": instant(at), ":one": number(1), ":number": text("N")})
	if !isConflict(err) {
		return r, err
	}
	return l.updateFrom(ctx, nil, k, executionID, func(r *Record) (bool, error) {
		r.SourceModified = at
		return true, nil
	}, l.put)
}

// sameObject reports whether an execution is of what the source has now. The headers
// of one that an older version began are not known.
func (s Start) sameObject(old *Record) bool {
	return old.SourceETag == s.SourceETag && (old.Headers == nil || maps.Equal(old.Headers, s.Headers))
}
