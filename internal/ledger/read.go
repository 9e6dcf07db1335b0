package ledger

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/executionid"
)

const (
	// maxSize is S3's limit on an object, in bytes.
	maxSize = 5 << 40
	// maxVersion is where a number still is exact for those who read it as a float.
	maxVersion = 1 << 53
	// maxHeaders bounds the source object's headers in bytes; S3 itself takes less.
	maxHeaders = 16 << 10
	// maxSeconds bounds how long a landing is said to have taken: ten years.
	maxSeconds = 10 * 365 * 24 * 3600
	// NotePrefix begins the sourceBucket of items that are no executions but notes of
	// a seeder. No bucket can be called so.
	NotePrefix = "landfall:"
)

// Unreadable is the error about an item that is no execution as far as can be told.
// Others may write to the table; whoever reads goes on with the next item.
type Unreadable struct {
	Key
	// Cause is one of a few constant texts, Detail what was found.
	Cause, Detail string

	item item
}

func (e *Unreadable) Error() string {
	return fmt.Sprintf("the table's item of %q from %q is no execution: %s: %s; publish the key again, or remove the item",
		e.FileKey, e.SourceBucket, e.Cause, e.Detail)
}

// decode reads an item as far as it can be read: sets that are lists, numbers that are
// text, times that are numbers, results that are a list. Its error is an *Unreadable.
func decode(i item, now time.Time) (*Record, error) {
	d := &reader{item: i, now: now}
	r := &Record{
		Key:        Key{d.whole("fileKey"), d.whole("sourceBucket")},
		Results:    map[string]Result{},
		Landings:   map[string]Landing{},
		Size:       d.number("size", 0, maxSize),
		SourceETag: d.text("sourceEtag"),
		InfoHash:   d.text("infohash"),
		SHA256:     d.text("sha256"),
		Version:    d.number("version", 0, maxVersion),
		Retries:    d.number("retries", 0, maxVersion),
		Owner:      d.text("owner"),
		Scheme:     d.text("scheme"),
		Term:       d.number("term", 0, maxVersion),
		item:       i,
	}
	unreadable := func(cause, detail string) (*Record, error) {
		return nil, &Unreadable{r.Key, cause, detail, i}
	}
	if err := r.Key.check(); err != nil {
		return unreadable("its key is none of S3's", err.Error())
	}
	id := d.text("executionId")
	switch err := executionid.Check(id, now); {
	case err == nil:
		r.ExecutionID = id
	case errors.Is(err, executionid.ErrAhead):
		return unreadable("its executionId is of the future", err.Error())
	default:
		r.Foreign = true
	}
	if r.Upload = d.upload(); id == "" && d.text("status") == "" && (r.Upload != nil && d.item["destinationBuckets"] == nil || i.isEmpty()) {
		r.Foreign, r.Odd, r.mended = false, d.odd, d.mended
		return r, nil
	}
	r.StartTime = d.instant("startTime")
	r.CompletedAt = d.instant("completedAt")
	r.Headers, r.SourceModified = d.headers(), d.instant("sourceModified")
	r.High = d.high()
	r.Destinations = d.texts("destinationBuckets")
	r.Successful, r.Failed = d.texts("successfulBuckets"), d.texts("failedBuckets")
	results := d.each("copyResults")
	if len(r.Destinations) == 0 {
		r.Destinations = slices.Concat(r.Successful, r.Failed)
		for bucket := range results {
			r.Destinations = append(r.Destinations, bucket)
		}
		r.Destinations = sorted(d.names("copyResults", r.Destinations))
	}
	if n := len(r.Destinations); n > maxDestinations {
		return unreadable("it has too many destinations", fmt.Sprintf("%d, at most %d", n, maxDestinations))
	}
	d.read(r, results)
	status := strings.ToUpper(d.text("status"))
	switch r.Status = Status(status); {
	case slices.Contains(statuses, r.Status):
	case status != "":
		return unreadable("its status is not known", strconv.Quote(d.text("status")))
	case r.Foreign:
		return unreadable("it has neither executionId nor status", fmt.Sprintf("%d attributes", len(i)))
	default:
		r.Status = InProgress // until the sets say otherwise
	}
	r.Foreign = r.Foreign || len(r.Destinations) == 0 || !isBucket(r.SourceBucket)
	for _, b := range r.Destinations {
		if !isBucket(b) {
			r.Foreign = true
			d.leave("destinationBuckets", "names a bucket %.40q, where nothing can be sent", b)
		}
	}
	r.complete(d)
	if r.Status == Failed && len(r.Destinations) > 0 && len(r.Unfinished()) > 0 {
		r.Status = r.unsuccessful() // a cancelled one of before there was a status for it
	}
	r.Odd, r.mended = d.odd, d.mended
	return r, nil
}

// read takes results and landings of the destinations out of an item.
func (d *reader) read(r *Record, results map[string]*reader) {
	landings := d.each("landings")
	for _, bucket := range r.Destinations {
		if v, ok := results[bucket]; ok {
			r.Results[bucket] = v.result()
			d.take(v, bucket)
		}
		if v, ok := landings[bucket]; ok {
			r.Landings[bucket] = v.landing()
			d.take(v, bucket)
		}
	}
	d.mended = d.mended || len(results) != len(r.Results) || len(landings) != len(r.Landings)
}

func (d *reader) landing() Landing {
	return Landing{Agent: d.text("agent"), UploadID: d.text("uploadId"), ExecutionID: d.text("executionId")}
}

func (d *reader) result() Result {
	return Result{
		Success:   d.bool("success"),
		Timestamp: d.instant("timestamp"),
		ETag:      d.text("etag"),
		Bytes:     d.number("bytes", 0, maxSize),
		Seconds:   d.float("seconds", maxSeconds),
		Region:    d.text("region"),
		Agent:     d.text("agent"),
		SHA256:    d.text("sha256"),
		Error:     d.text("error"),
		Final:     d.bool("final"),
	}
}

// complete fills in what follows from the rest of an item.
func (r *Record) complete(d *reader) {
	known := func(s []string) []string { return without(s, without(s, r.Destinations)) }
	successful, failed := known(r.Successful), without(known(r.Failed), r.Successful)
	d.mended = d.mended || len(successful) != len(r.Successful) || len(failed) != len(r.Failed)
	r.Successful, r.Failed = successful, failed
	switch {
	case r.Foreign && r.Status == Completed && len(r.Successful) == 0:
		r.Successful = r.Destinations
	case r.Foreign && r.Status == Failed && len(r.Failed) == 0:
		r.Failed = r.Unfinished()
	case !r.Foreign && r.Status == InProgress:
		r.settle(cmp.Or(r.CompletedAt, r.StartTime)) // the status follows from the sets
		d.mended = d.mended || r.Status != InProgress
	}
	// add counts on these.
	for name, n := range map[string]int{"successfulCopies": len(r.Successful), "failedCopies": len(r.Failed), "version": int(r.Version)} {
		v, ok := d.item[name].(*types.AttributeValueMemberN)
		d.mended = d.mended || !ok || v.Value != strconv.Itoa(n)
	}
	if r.StartTime.IsZero() {
		r.StartTime = executionid.Time(r.ExecutionID)
	}
	if r.ExecutionID == "" {
		r.StartTime = cmp.Or(r.StartTime, r.CompletedAt)
		r.ExecutionID = madeUp(r.Key, r.StartTime)
	}
}

// isBucket reports whether a bucket can be called so: S3's own rule since 2018.
func isBucket(name string) bool {
	return len(name) >= 3 && len(name) <= 63 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") == ""
}

// madeUp is the id under which an item without one is shown: it sorts by its time and
// is the same every time.
func madeUp(k Key, t time.Time) string {
	var id ulid.ULID
	sum := sha256.Sum256([]byte(k.FileKey + "\x00" + k.SourceBucket))
	copy(id[6:], sum[:])
	if !t.IsZero() {
		_ = id.SetTime(ulid.Timestamp(t)) // instant has bounded it
	}
	return id.String()
}

// reader takes an item apart, remembers the first thing in it that it had to leave
// out, and whether anything was in another form than encode's.
type reader struct {
	item
	now    time.Time
	odd    string
	mended bool
}

// leave notes an attribute that is left out.
func (d *reader) leave(name, format string, args ...any) {
	d.mended = true
	if d.odd == "" {
		d.odd = name + " " + fmt.Sprintf(format, args...)
	}
}

// take notes what was wrong within an attribute.
func (d *reader) take(inner *reader, bucket string) {
	d.mended = d.mended || inner.mended
	if d.odd == "" && inner.odd != "" {
		d.odd = bucket + ": " + inner.odd
	}
}

// whole is a text as it is, however long.
func (d *reader) whole(name string) string {
	v, _ := d.item[name].(*types.AttributeValueMemberS)
	if v == nil {
		return ""
	}
	return v.Value
}

// plain is an attribute that is a text or a number, as text.
func (d *reader) plain(name string) (s string, isNumber bool) {
	switch v := d.item[name].(type) {
	case nil:
	case *types.AttributeValueMemberNULL:
		d.mended = true
	case *types.AttributeValueMemberS:
		return v.Value, false
	case *types.AttributeValueMemberN:
		return v.Value, true
	default:
		d.leave(name, "is %s", kind(v))
	}
	return "", false
}

// text is an attribute's text, which no valid one has longer than maxErrorLength.
func (d *reader) text(name string) string {
	s, isNumber := d.plain(name)
	d.mended = d.mended || isNumber
	if cut := cutText(strings.ToValidUTF8(s, "\uFFFD")); cut != s {
		d.mended = true
		return cut
	}
	return s
}

func cutText(s string) string {
	if len(s) <= maxErrorLength {
		return s
	}
	s = s[:maxErrorLength]
	for !utf8.ValidString(s) { // cut within a character
		s = s[:len(s)-1]
	}
	return s
}

// texts is a set of names of buckets.
func (d *reader) texts(name string) []string {
	var out []string
	switch v := d.item[name].(type) {
	case nil:
	case *types.AttributeValueMemberSS:
		out = v.Value
	case *types.AttributeValueMemberNULL:
		d.mended = true
	case *types.AttributeValueMemberS:
		d.mended = true
		out = strings.FieldsFunc(v.Value, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
	case *types.AttributeValueMemberL:
		d.mended = true
		for _, e := range v.Value {
			if s, ok := e.(*types.AttributeValueMemberS); ok {
				out = append(out, s.Value)
			} else {
				d.leave(name, "holds %s", kind(e))
			}
		}
	default:
		d.leave(name, "is %s", kind(v))
	}
	return sorted(d.names(name, out))
}

// names leaves out what no bucket was ever called.
func (d *reader) names(attribute string, all []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool {
		bad := s == "" || len(s) > maxBucketName || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) })
		if bad {
			d.leave(attribute, "names a bucket %.40q", s)
		}
		return bad
	})
}

// headers are the source object's; nil when they are not there.
func (d *reader) headers() map[string]string {
	a, ok := d.item["headers"]
	if !ok {
		return nil
	}
	v, ok := a.(*types.AttributeValueMemberM)
	if !ok {
		d.leave("headers", "is %s", kind(a))
		return nil
	}
	bytes := 0
	out := make(map[string]string, min(len(v.Value), 100))
	for name, inner := range v.Value {
		s, ok := inner.(*types.AttributeValueMemberS)
		if !ok {
			d.leave("headers", "holds %s", kind(inner))
			return nil
		}
		if bytes += len(name) + len(s.Value); bytes > maxHeaders {
			d.leave("headers", "has more than %d bytes", maxHeaders)
			return nil
		}
		out[name] = s.Value
	}
	return out
}

// high is whether the priority is; what nobody knows is normal.
func (d *reader) high() bool {
	switch p := d.text("priority"); {
	case strings.EqualFold(p, highPriority):
		d.mended = d.mended || p != highPriority
		return true
	case p == "":
	case strings.EqualFold(p, "normal"):
		d.mended = true
	default:
		d.leave("priority", "is %.40q", p)
	}
	return false
}

func (d *reader) bool(name string) bool {
	if v, ok := d.item[name].(*types.AttributeValueMemberBOOL); ok {
		return v.Value
	}
	s, _ := d.plain(name)
	d.mended = d.mended || s != ""
	return strings.EqualFold(s, "true") || s == "1"
}

// float is a number of at least 0 and at most limit.
func (d *reader) float(name string, limit float64) float64 {
	s, isNumber := d.plain(name)
	if s == "" {
		return 0
	}
	d.mended = d.mended || !isNumber
	n, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || !(n >= 0 && n <= limit) { // not a NaN either
		d.leave(name, "is %.40q", s)
		return 0
	}
	return n
}

// number is a whole number of at least least and at most limit.
func (d *reader) number(name string, least, limit int64) int64 {
	s, isNumber := d.plain(name)
	if s == "" {
		return 0
	}
	d.mended = d.mended || !isNumber
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil { // 12.0, 1e3
		var f float64
		if f, err = strconv.ParseFloat(strings.TrimSpace(s), 64); err == nil && math.Abs(f) <= maxVersion && f == math.Trunc(f) {
			n = int64(f)
		} else {
			err = strconv.ErrRange
		}
	}
	if err != nil || n < least || n > limit {
		d.leave(name, "is %.40q", s)
		return 0
	}
	return n
}

// layouts are RFC 3339 and what Python's isoformat and str write, in UTC.
var layouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999", time.DateOnly}

// instant is a time: text, or seconds, milliseconds, microseconds or nanoseconds since
// 1970.
func (d *reader) instant(name string) time.Time {
	s, isNumber := d.plain(name)
	if s == "" {
		return time.Time{}
	}
	if !isNumber {
		for i, layout := range layouts {
			if t, err := time.Parse(layout, s); err == nil {
				d.mended = d.mended || i > 0
				return d.bounded(name, t.UTC())
			}
		}
	}
	d.mended = true
	n, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || !(n >= 0) {
		d.leave(name, "is %.40q", s)
		return time.Time{}
	}
	for range 3 { // from nanoseconds at most: what is longer is no time
		if n >= 1e11 { // the year 5138 in seconds, 1973 in milliseconds
			n /= 1000
		}
	}
	if !(n < 1e11) {
		d.leave(name, "is %.40q", s)
		return time.Time{}
	}
	whole, part := math.Modf(n)
	return d.bounded(name, time.Unix(int64(whole), int64(part*1e9)).UTC())
}

// bounded leaves out a time before 1970 or of the future.
func (d *reader) bounded(name string, t time.Time) time.Time {
	if err := executionid.CheckTime(t, d.now); err != nil {
		d.leave(name, "%v", err)
		return time.Time{}
	}
	if t.Unix() < 0 {
		d.leave(name, "is before 1970: %s", t.Format(time.RFC3339))
		return time.Time{}
	}
	return t
}

// each returns the maps inside a map by bucket, or those of a list that say which
// bucket they are of.
func (d *reader) each(name string) map[string]*reader {
	out := make(map[string]*reader)
	add := func(bucket string, v types.AttributeValue) {
		m, ok := v.(*types.AttributeValueMemberM)
		if !ok {
			d.leave(name, "holds %s", kind(v))
			return
		}
		inner := &reader{item: m.Value, now: d.now}
		if bucket == "" {
			bucket = cmp.Or(inner.text("bucket"), inner.text("destinationBucket"), inner.text("bucketName"))
		}
		out[bucket] = inner
	}
	switch v := d.item[name].(type) {
	case nil:
		d.mended = true // add and SetLanding write below it
	case *types.AttributeValueMemberNULL:
		d.mended = true
	case *types.AttributeValueMemberM:
		for bucket, inner := range v.Value {
			add(bucket, inner)
		}
	case *types.AttributeValueMemberL:
		d.mended = true
		for _, inner := range v.Value {
			add("", inner)
		}
	default:
		d.leave(name, "is %s", kind(v))
	}
	return out
}

// kind names the type of an attribute as DynamoDB does.
func kind(v types.AttributeValue) string {
	return strings.TrimPrefix(fmt.Sprintf("of type %T", v), "of type *types.AttributeValueMember")
}
