package ledger

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/awserr"
	"github.com/landfall-dist/landfall/internal/executionid"
)

// ErrOvertaken says that another execution has begun of the key since its upload did.
var ErrOvertaken = errors.New("another execution of the key has begun since")

// Upload is an execution whose build is still going up to the source bucket. It stands
// beside the key's execution, as `pending`, until Begin finds its object complete.
type Upload struct {
	// ExecutionID is greater than that of the execution beside which it stands.
	ExecutionID string
	// UploadID is the multipart upload into the source bucket.
	UploadID     string
	Size         int64 // bytes
	Destinations []string
	High         bool
	StartTime    time.Time
	Landings     map[string]Landing // by bucket
	// Scheme and Term are as in Record.
	Scheme string
	Term   int64
}

// record is the upload's execution as if it had the key; it is written nowhere.
func (u *Upload) record(k Key, owner string) *Record {
	return &Record{
		Key: k, ExecutionID: u.ExecutionID, Status: InProgress, StartTime: u.StartTime, Size: u.Size, Owner: owner,
		Destinations: u.Destinations, High: u.High, Results: map[string]Result{}, Landings: maps.Clone(u.Landings), Uploading: true,
		Scheme: u.Scheme, Term: u.Term,
	}
}

// Of returns the record as that of one execution: the item's own, or the one whose build
// is going up. Nil when the item says nothing of it.
func (r *Record) Of(executionID string) *Record {
	switch {
	case r.ExecutionID == executionID:
		return r
	case r.Upload != nil && r.Upload.ExecutionID == executionID:
		of := r.Upload.record(r.Key, r.Owner)
		of.Upload = r.Upload
		return of
	}
	return nil
}

func (u *Upload) encode() types.AttributeValue {
	landings := make(item, len(u.Landings))
	for bucket, l := range u.Landings {
		landings[bucket] = l.encode()
	}
	i := item{
		"executionId": text(u.ExecutionID), "uploadId": text(u.UploadID), "size": number(u.Size), "startTime": instant(u.StartTime),
		"landings": &types.AttributeValueMemberM{Value: landings},
	}
	i.set("destinationBuckets", texts(u.Destinations))
	i.begunAs(u.Scheme, u.Term)
	if u.High {
		i["priority"] = text(highPriority)
	}
	return &types.AttributeValueMemberM{Value: i}
}

// isEmpty reports whether an item has nothing but what EndUpload has left of it.
func (i item) isEmpty() bool {
	for _, name := range []string{"fileKey", "sourceBucket", "owner", "version"} {
		if _, ok := i[name]; !ok {
			return false
		}
	}
	return len(i) == 4
}

// upload reads the attribute `pending`; nil where there is none, or none of use.
func (d *reader) upload() *Upload {
	a, ok := d.item["pending"]
	if !ok {
		return nil
	}
	v, ok := a.(*types.AttributeValueMemberM)
	if !ok {
		d.leave("pending", "is %s", kind(a))
		return nil
	}
	in := &reader{item: v.Value, now: d.now}
	u := &Upload{
		ExecutionID: in.text("executionId"), UploadID: in.text("uploadId"), Size: in.number("size", 0, maxSize),
		Destinations: in.texts("destinationBuckets"), StartTime: in.instant("startTime"),
		High: in.text("priority") == highPriority, Landings: make(map[string]Landing),
		Scheme: in.text("scheme"), Term: in.number("term", 0, maxVersion),
	}
	if err := executionid.Check(u.ExecutionID, d.now); err != nil {
		d.leave("pending", "%v", err)
		return nil
	}
	if n := len(u.Destinations); n == 0 || n > maxDestinations || slices.ContainsFunc(u.Destinations, func(b string) bool { return !isBucket(b) }) {
		d.leave("pending", "has %d destinations", n)
		return nil
	}
	for bucket, l := range in.each("landings") {
		if slices.Contains(u.Destinations, bucket) {
			u.Landings[bucket] = l.landing()
		}
	}
	return u
}

// NewUpload returns the id for an execution whose build is about to go up, and the item
// beside which it is to stand; nil when there is none. ErrOwned, or an *Unreadable, where it
// cannot stand there.
func (l *Ledger) NewUpload(ctx context.Context, k Key, now time.Time) (executionID string, beside *Record, err error) {
	if err := k.check(); err != nil {
		return "", nil, err
	}
	old, err := l.current(ctx, k)
	if err != nil {
		return "", nil, err
	}
	if err := l.owns(old); err != nil {
		return "", nil, err
	}
	last := ""
	if old != nil && old.unreadable != nil {
		return "", nil, old.unreadable // whoever reads it beside this would not understand it
	}
	if old != nil {
		last = old.ExecutionID
		if u := old.Upload; u != nil {
			last = max(last, u.ExecutionID)
		}
	}
	return executionid.New(now, last), old, nil
}

// current reads the item of a key as what a new execution meets: nil for none, and one
// that is no execution as another system's.
func (l *Ledger) current(ctx context.Context, k Key) (*Record, error) {
	old, err := l.Get(ctx, k)
	var unreadable *Unreadable
	switch {
	case errors.As(err, &unreadable):
		return &Record{Key: k, Owner: (&reader{item: unreadable.item}).text("owner"), Foreign: true, item: unreadable.item, unreadable: unreadable}, nil
	case errors.Is(err, ErrNotFound):
		return nil, nil
	}
	return old, err
}

// BeginUpload notes, beside the item as NewUpload has returned it, an execution whose build
// is going up, and returns it as if it had the key. Nothing else of the item changes.
// ErrOvertaken when the item has changed since.
func (l *Ledger) BeginUpload(ctx context.Context, k Key, u Upload, beside *Record) (*Record, error) {
	start := Start{Key: k, Size: u.Size, Destinations: u.Destinations}
	if err := start.check(); err != nil {
		return nil, err
	}
	u.Destinations = sorted(u.Destinations)
	var err error
	if beside == nil {
		i := k.item()
		i["owner"], i["version"], i["pending"] = text(l.owner), number(1), u.encode()
		if l.owner == "" {
			delete(i, "owner")
		}
		_, err = l.client.PutItem(ctx, &dynamodb.PutItemInput{
			TableName: &l.table, Item: i, ConditionExpression: aws.String("attribute_not_exists(fileKey)"),
		})
	} else {
		condition, values := beside.item.unchanged()
		values[":pending"], values[":next"] = u.encode(), number(beside.Version+1)
		_, err = l.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
			TableName: &l.table, Key: k.item(), UpdateExpression: aws.String("SET #pending = :pending, version = :next"),
			ConditionExpression: &condition, ExpressionAttributeNames: map[string]string{"#pending": "pending"}, ExpressionAttributeValues: values,
		})
	}
	if err = l.refused(err); isConflict(err) {
		return nil, fmt.Errorf("%w: %s", ErrOvertaken, k.FileKey)
	}
	if err != nil {
		return nil, err
	}
	return u.record(k, l.owner), nil
}

// EndUpload takes away what BeginUpload has noted, and leaves the rest of the item as it
// is. Again, or of another upload, it changes nothing.
func (l *Ledger) EndUpload(ctx context.Context, k Key, executionID string) error {
	return l.withRetry(ctx, k, func() error {
		r, err := l.Get(ctx, k)
		var unreadable *Unreadable
		switch {
		case errors.Is(err, ErrNotFound), errors.As(err, &unreadable):
			return nil
		case err != nil:
			return err
		case r.Upload == nil || r.Upload.ExecutionID != executionID:
			return nil
		}
		condition, values := r.item.unchanged()
		condition += " AND #pending.executionId = :upload" // of a deleted item the version begins anew
		names := map[string]string{"#pending": "pending"}
		values[":upload"] = text(executionID)
		if r.ExecutionID == "" { // nothing but the upload
			_, err := l.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{
				TableName: &l.table, Key: k.item(), ConditionExpression: &condition, ExpressionAttributeNames: names, ExpressionAttributeValues: values,
			})
			if awserr.Code(err) != "AccessDeniedException" { // else the item stays, with nothing in it
				return l.refused(err)
			}
		}
		values[":next"] = number(r.Version + 1)
		_, err = l.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
			TableName: &l.table, Key: k.item(), UpdateExpression: aws.String("REMOVE #pending SET version = :next"),
			ConditionExpression: &condition, ExpressionAttributeNames: names, ExpressionAttributeValues: values,
		})
		return l.refused(err)
	})
}

// addUploadLanding is addLanding for an execution whose build is going up.
func (l *Ledger) addUploadLanding(ctx context.Context, k Key, executionID, bucket string, landing Landing) (*Record, error) {
	out, err := l.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName:                &l.table,
		Key:                      k.item(),
		UpdateExpression:         aws.String("SET #pending.landings.#bucket = :landing, version = version + :one"),
		ConditionExpression:      aws.String("#pending.executionId = :id AND contains(#pending.destinationBuckets, :bucket) AND attribute_type(version, :number)"),
		ExpressionAttributeNames: map[string]string{"#pending": "pending", "#bucket": bucket},
		ExpressionAttributeValues: item{
			":id": text(executionID), ":bucket": text(bucket), ":landing": landing.encode(), ":one": number(1), ":number": text("N"),
		},
		ReturnValues: types.ReturnValueAllNew,
	})
	if err != nil {
		return nil, l.refused(err)
	}
	r, err := decode(out.Attributes, time.Now())
	if err != nil {
		return nil, err
	}
	return r.Of(executionID), nil
}

// adopt is the execution of an upload that has come to its end, in place of old, beside
// which it stands.
func (s Start) adopt(old *Record) *Begun {
	u := old.Upload
	r := &Record{
		Key: s.Key, ExecutionID: u.ExecutionID, Destinations: sorted(u.Destinations), StartTime: u.StartTime,
		Results: map[string]Result{}, Landings: maps.Clone(u.Landings), Size: s.Size, SourceETag: s.SourceETag,
		Headers: maps.Clone(s.Headers), SourceModified: s.SourceModified, Version: old.Version + 1, item: old.item.foreign(),
		High: u.High || s.High, Scheme: u.Scheme, Term: u.Term,
	}
	b := &Begun{Record: r, Adopted: true}
	b.inherit(s, old)
	r.settle(s.Now)
	return b
}
