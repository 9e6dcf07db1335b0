package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/oklog/ulid/v2"
)

// What a seeder's watcher has to remember of its bucket lies in the table of
// arrivals, since nothing else outlives the seeder's host: items with a NotePrefix,
// read by GetItem and written by PutItem alone, which every seeder's role allows
// already.
//
//	fileKey            sourceBucket                          attributes
//	landfall:baseline  landfall:baseline:BUCKET              scopes, lists, version
//	landfall:baseline  landfall:baseline:BUCKET:LIST:CHUNK   versions
//	landfall:baseline  landfall:sent:BUCKET:CHUNK            versions, revision
const (
	baselineKey    = "landfall:baseline"
	baselinePrefix = NotePrefix + "baseline:"
	sentPrefix     = NotePrefix + "sent:"
)

const (
	// versionLength is an ObjectVersion's in bytes.
	versionLength = 16
	// maxListChunk is the versions in one item of a list: 256 KiB, and DynamoDB
	// takes 400 KB.
	maxListChunk = 16 << 10
	// maxSentChunk is the versions in one item of those that were sent. Each write
	// of the last costs its whole length: at most 32 write units.
	maxSentChunk = 2 << 10
	// MaxVersions bounds the versions that a baseline holds, and so the memory for
	// them: 320 MB.
	MaxVersions = 20_000_000
	// maxScopes bounds the prefixes and suffixes that a baseline knows.
	maxScopes = 64
)

var (
	// ErrNoBaseline says that the table has no baseline of the bucket.
	ErrNoBaseline = errors.New("no baseline")
	// ErrBaselineChanged says that another seeder of the bucket has written the
	// baseline since it was read: read it again.
	ErrBaselineChanged = errors.New("the baseline was written by another seeder")
)

// ObjectVersion stands for an object as it was once: hashes of its key and its ETag.
type ObjectVersion struct{ Key, ETag uint64 }

// Scope are the keys that start by themselves, as a seeder was told.
type Scope struct{ Prefix, Suffix string }

// Covers reports whether a key is one of them.
func (s Scope) Covers(key string) bool {
	return strings.HasPrefix(key, s.Prefix) && strings.HasSuffix(key, s.Suffix)
}

// Baseline is what the table remembers of a bucket beside its executions, whose
// items may be pruned or expire.
type Baseline struct {
	// Scopes are those that a seeder has begun with: what they cover and Old does
	// not hold has come since.
	Scopes []Scope
	// Old are the objects that were there before the first start with a scope, as
	// they were read; the caller may drop them.
	Old []ObjectVersion
	// Sent are the objects that had an execution, in the order of their sending:
	// of two versions of a key the later one counts. The caller may drop them.
	Sent []ObjectVersion

	bucket string
	lists  []versionList
	held   int // versions in the table
	// version is the head's, 0 before it is written; chunk, tail and revision are
	// those of the last chunk of Sent.
	version, revision int64
	chunk             int
	tail              []ObjectVersion
}

// versionList is one listing's outcome: its chunks are written before the head names
// it, so nobody reads a list that is not whole.
type versionList struct {
	id     string // ULID
	chunks int
}

// NewBaseline is that of a bucket that nobody has watched yet.
func NewBaseline(bucket string) *Baseline { return &Baseline{bucket: bucket} }

// Covers reports whether a scope of the baseline covers a key.
func (b *Baseline) Covers(key string) bool {
	for _, s := range b.Scopes {
		if s.Covers(key) {
			return true
		}
	}
	return false
}

// Baseline reads what is remembered of a bucket. ErrNoBaseline when nothing is.
func (l *Ledger) Baseline(ctx context.Context, bucket string) (*Baseline, error) {
	head, err := l.row(ctx, baselinePrefix+bucket)
	if err != nil {
		return nil, err
	}
	if head == nil {
		return nil, fmt.Errorf("table %s: %w of bucket %s", l.table, ErrNoBaseline, bucket)
	}
	b := NewBaseline(bucket)
	if err := b.decodeHead(head); err != nil {
		return nil, l.damaged(bucket, err)
	}
	for _, list := range b.lists {
		for n := range list.chunks {
			row, err := l.row(ctx, listChunk(bucket, list.id, n))
			if err != nil {
				return nil, err
			}
			versions, err := decodeVersions(row, maxListChunk)
			if b.held += len(versions); err == nil && b.held > MaxVersions {
				err = fmt.Errorf("more than %d versions", MaxVersions)
			}
			if err != nil {
				return nil, l.damaged(bucket, fmt.Errorf("chunk %d of list %s: %w", n, list.id, err))
			}
			b.Old = append(b.Old, versions...)
		}
	}
	for {
		row, err := l.row(ctx, sentChunk(bucket, b.chunk))
		if err != nil {
			return nil, err
		}
		if row == nil {
			break
		}
		versions, err := decodeVersions(row, maxSentChunk)
		if b.held += len(versions); err == nil && b.held > MaxVersions {
			err = fmt.Errorf("more than %d versions", MaxVersions)
		}
		if err != nil {
			return nil, l.damaged(bucket, fmt.Errorf("chunk %d of what was sent: %w", b.chunk, err))
		}
		b.Sent = append(b.Sent, versions...)
		b.tail, b.revision = versions, (&strict{item: row}).number("revision")
		if len(versions) < maxSentChunk {
			break
		}
		b.chunk, b.tail, b.revision = b.chunk+1, nil, 0
	}
	return b, nil
}

func (l *Ledger) damaged(bucket string, err error) error {
	return fmt.Errorf("table %s: baseline of bucket %s is damaged: %w; delete the item with fileKey %s and sourceBucket %s, "+
		"and what is in the bucket then counts as sent", l.table, bucket, err, baselineKey, baselinePrefix+bucket)
}

// Extend adds a scope, and what it covers that counts as old, to the table. ErrBaselineChanged when
// another seeder was faster.
func (l *Ledger) Extend(ctx context.Context, b *Baseline, scope Scope, old []ObjectVersion) error {
	if b.held+len(old) > MaxVersions {
		return fmt.Errorf("bucket %s holds more than %d objects from before the first start; choose fewer with --prefix, or send them with --backfill", b.bucket, MaxVersions)
	}
	list := versionList{id: ulid.Make().String()}
	for rest := old; len(rest) > 0; list.chunks++ {
		n := min(len(rest), maxListChunk)
		row := ownRow(listChunk(b.bucket, list.id, list.chunks))
		row["versions"] = encodeVersions(rest[:n])
		if _, err := l.client.PutItem(ctx, &dynamodb.PutItemInput{TableName: &l.table, Item: row}); err != nil {
			return l.explain(err)
		}
		rest = rest[n:]
	}
	next := *b
	next.Scopes = append([]Scope{scope}, b.Scopes...)
	next.Scopes = next.Scopes[:min(len(next.Scopes), maxScopes)]
	if list.chunks > 0 {
		next.lists = append([]versionList{list}, b.lists...)
	}
	next.version++
	in := &dynamodb.PutItemInput{TableName: &l.table, Item: next.encodeHead(), ConditionExpression: aws.String("attribute_not_exists(fileKey)")}
	if b.version > 0 {
		in.ConditionExpression = aws.String("version = :version")
		in.ExpressionAttributeValues = item{":version": number(b.version)}
	}
	if err := l.putOwn(ctx, in); err != nil {
		return err
	}
	next.held += len(old)
	*b = next
	return nil
}

// AddSent adds objects that had an execution to the table, and returns how many it has
// of them, the first ones. ErrBaselineChanged when another seeder has written since.
func (l *Ledger) AddSent(ctx context.Context, b *Baseline, sent []ObjectVersion) (saved int, err error) {
	if b.held+len(sent) > MaxVersions {
		return 0, fmt.Errorf("table %s: baseline of bucket %s holds %d objects and takes no more than %d", l.table, b.bucket, b.held, MaxVersions)
	}
	for saved < len(sent) {
		n := min(len(sent)-saved, maxSentChunk-len(b.tail))
		tail := slices.Concat(b.tail, sent[saved:saved+n])
		row := ownRow(sentChunk(b.bucket, b.chunk))
		row["versions"], row["revision"] = encodeVersions(tail), number(b.revision+1)
		in := &dynamodb.PutItemInput{TableName: &l.table, Item: row, ConditionExpression: aws.String("attribute_not_exists(fileKey)")}
		if b.revision > 0 {
			in.ConditionExpression = aws.String("revision = :revision")
			in.ExpressionAttributeValues = item{":revision": number(b.revision)}
		}
		if err := l.putOwn(ctx, in); err != nil {
			return saved, err
		}
		saved += n
		b.held += n
		b.tail, b.revision = tail, b.revision+1
		if len(tail) == maxSentChunk {
			b.chunk, b.tail, b.revision = b.chunk+1, nil, 0
		}
	}
	return saved, nil
}

func (l *Ledger) putOwn(ctx context.Context, in *dynamodb.PutItemInput) error {
	_, err := l.client.PutItem(ctx, in)
	var conflict *types.ConditionalCheckFailedException
	if errors.As(err, &conflict) {
		l.conflicts.Add(1)
		return fmt.Errorf("table %s: %w", l.table, ErrBaselineChanged)
	}
	if err != nil {
		return l.explain(err)
	}
	return nil
}

// row reads one of Landfall's own rows, consistently; nil when there is none.
func (l *Ledger) row(ctx context.Context, name string) (item, error) {
	out, err := l.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &l.table, Key: ownRow(name), ConsistentRead: aws.Bool(true)})
	if err != nil {
		return nil, l.explain(err)
	}
	if len(out.Item) == 0 {
		return nil, nil
	}
	return out.Item, nil
}

func ownRow(name string) item { return Key{FileKey: baselineKey, SourceBucket: name}.item() }

func listChunk(bucket, list string, n int) string {
	return baselinePrefix + bucket + ":" + list + ":" + strconv.Itoa(n)
}

func sentChunk(bucket string, n int) string { return sentPrefix + bucket + ":" + strconv.Itoa(n) }

func (b *Baseline) encodeHead() item {
	row := ownRow(baselinePrefix + b.bucket)
	row["version"] = number(b.version)
	row["writtenAt"] = instant(time.Now())
	scopes := &types.AttributeValueMemberL{}
	for _, s := range b.Scopes {
		scopes.Value = append(scopes.Value, &types.AttributeValueMemberM{Value: item{"prefix": text(s.Prefix), "suffix": text(s.Suffix)}})
	}
	lists := &types.AttributeValueMemberL{Value: []types.AttributeValue{}}
	for _, list := range b.lists {
		lists.Value = append(lists.Value, &types.AttributeValueMemberM{Value: item{"id": text(list.id), "chunks": number(int64(list.chunks))}})
	}
	row["scopes"], row["lists"] = scopes, lists
	return row
}

func (b *Baseline) decodeHead(row item) error {
	d := &strict{item: row}
	b.version = d.number("version")
	for _, m := range d.list("scopes") {
		b.Scopes = append(b.Scopes, Scope{m.text("prefix"), m.text("suffix")})
		d.note(m.err)
	}
	for _, m := range d.list("lists") {
		list := versionList{m.text("id"), int(m.number("chunks"))}
		d.note(m.err)
		if list.chunks < 0 || list.chunks > MaxVersions/maxListChunk+1 {
			d.note(fmt.Errorf("list of %d chunks", list.chunks))
		}
		b.lists = append(b.lists, list)
	}
	if b.version < 1 || len(b.Scopes) == 0 || len(b.Scopes) > maxScopes {
		d.note(fmt.Errorf("version %d, %d scopes", b.version, len(b.Scopes)))
	}
	return d.err
}

// strict takes one of Landfall's own notes apart and remembers the first thing that is
// wrong: nobody else writes them.
type strict struct {
	item
	err error
}

func (d *strict) note(err error) {
	if d.err == nil {
		d.err = err
	}
}

// exactly is an attribute as a T; its zero value when it is absent. Another type is an
// error.
func exactly[T types.AttributeValue](d *strict, name string) (v T) {
	if a, ok := d.item[name]; ok {
		if v, ok = a.(T); !ok {
			d.note(fmt.Errorf("attribute %s is a %T", name, a))
		}
	}
	return v
}

func (d *strict) text(name string) string {
	if v := exactly[*types.AttributeValueMemberS](d, name); v != nil {
		return v.Value
	}
	return ""
}

func (d *strict) number(name string) int64 {
	v := exactly[*types.AttributeValueMemberN](d, name)
	if v == nil {
		return 0
	}
	n, err := strconv.ParseInt(v.Value, 10, 64)
	d.note(err)
	return n
}

// list returns the maps inside a list.
func (d *strict) list(name string) []*strict {
	v := exactly[*types.AttributeValueMemberL](d, name)
	if v == nil {
		return nil
	}
	var out []*strict
	for _, inner := range v.Value {
		m, ok := inner.(*types.AttributeValueMemberM)
		if !ok {
			d.note(fmt.Errorf("%s holds a %T", name, inner))
			continue
		}
		out = append(out, &strict{item: m.Value})
	}
	return out
}

func encodeVersions(versions []ObjectVersion) types.AttributeValue {
	out := make([]byte, 0, len(versions)*versionLength)
	for _, v := range versions {
		out = binary.BigEndian.AppendUint64(out, v.Key)
		out = binary.BigEndian.AppendUint64(out, v.ETag)
	}
	return &types.AttributeValueMemberB{Value: out}
}

func decodeVersions(row item, most int) ([]ObjectVersion, error) {
	d := &strict{item: row}
	v := exactly[*types.AttributeValueMemberB](d, "versions")
	switch {
	case row == nil:
		return nil, errors.New("it is missing")
	case d.err != nil:
		return nil, d.err
	case v == nil || len(v.Value)%versionLength != 0 || len(v.Value) > most*versionLength:
		return nil, errors.New("it has a wrong length")
	}
	out := make([]ObjectVersion, 0, len(v.Value)/versionLength)
	for b := v.Value; len(b) > 0; b = b[versionLength:] {
		out = append(out, ObjectVersion{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])})
	}
	return out, nil
}
