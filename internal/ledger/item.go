package ledger

import (
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// item is a record as DynamoDB has it.
type item map[string]types.AttributeValue

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func number(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

func instant(t time.Time) types.AttributeValue { return text(t.UTC().Format(time.RFC3339Nano)) }

// set stores v, or removes the attribute when v is nil.
func (i item) set(name string, v types.AttributeValue) {
	if v == nil {
		delete(i, name)
		return
	}
	i[name] = v
}

// texts is a string set; DynamoDB has no empty ones, so that is nil.
func texts(s []string) types.AttributeValue {
	if len(s) == 0 {
		return nil
	}
	return &types.AttributeValueMemberSS{Value: s}
}

func (k Key) item() item {
	return item{"fileKey": text(k.FileKey), "sourceBucket": text(k.SourceBucket)}
}

// encode writes the record over what was read, so that attributes of others
// stay.
func (r *Record) encode() item {
	i := maps.Clone(r.item)
	if i == nil {
		i = item{}
	}
	maps.Copy(i, r.Key.item())
	i["executionId"] = text(r.ExecutionID)
	i["status"] = text(string(r.Status))
	i["startTime"] = instant(r.StartTime)
	i["totalBuckets"] = number(int64(len(r.Destinations)))
	i["successfulCopies"] = number(int64(len(r.Successful)))
	i["failedCopies"] = number(int64(len(r.Failed)))
	i["size"] = number(r.Size)
	i["sourceEtag"] = text(r.SourceETag)
	i["version"] = number(r.Version)
	i.set("destinationBuckets", texts(r.Destinations))
	i.set("successfulBuckets", texts(r.Successful))
	i.set("failedBuckets", texts(r.Failed))
	for name, value := range map[string]string{"infohash": r.InfoHash, "sha256": r.SHA256} {
		i.set(name, nil)
		if value != "" {
			i[name] = text(value)
		}
	}
	i.set("headers", nil)
	if r.Headers != nil {
		headers := make(item, len(r.Headers))
		for name, value := range r.Headers {
			headers[name] = text(value)
		}
		i["headers"] = &types.AttributeValueMemberM{Value: headers}
	}
	i.set("sourceModified", nil)
	if !r.SourceModified.IsZero() {
		i["sourceModified"] = instant(r.SourceModified)
	}
	i.set("completedAt", nil)
	if !r.CompletedAt.IsZero() {
		i["completedAt"] = instant(r.CompletedAt)
	}
	results := make(item, len(r.Results))
	for bucket, result := range r.Results {
		results[bucket] = result.encode()
	}
	i["copyResults"] = &types.AttributeValueMemberM{Value: results}
	landings := make(item, len(r.Landings))
	for bucket, l := range r.Landings {
		landings[bucket] = &types.AttributeValueMemberM{Value: item{
			"agent": text(l.Agent), "uploadId": text(l.UploadID), "executionId": text(l.ExecutionID),
		}}
	}
	i["landings"] = &types.AttributeValueMemberM{Value: landings}
	return i
}

func (r Result) encode() types.AttributeValue {
	i := item{
		"success":   &types.AttributeValueMemberBOOL{Value: r.Success},
		"timestamp": instant(r.Timestamp),
		"bytes":     number(r.Bytes),
		"seconds":   &types.AttributeValueMemberN{Value: strconv.FormatFloat(r.Seconds, 'f', 3, 64)},
	}
	for name, value := range map[string]string{
		"etag": r.ETag, "region": r.Region, "agent": r.Agent, "sha256": r.SHA256, "error": r.Error,
	} {
		if value != "" {
			i[name] = text(value)
		}
	}
	return &types.AttributeValueMemberM{Value: i}
}

// reader takes an item apart and remembers the first thing that is wrong.
type reader struct {
	item
	err error
}

func decode(i item) (*Record, error) {
	d := &reader{item: i}
	r := &Record{
		Key:          Key{d.text("fileKey"), d.text("sourceBucket")},
		ExecutionID:  d.text("executionId"),
		Status:       Status(d.text("status")),
		StartTime:    d.instant("startTime"),
		CompletedAt:  d.instant("completedAt"),
		Destinations: d.texts("destinationBuckets"),
		Successful:   d.texts("successfulBuckets"),
		Failed:       d.texts("failedBuckets"),
		Results:      map[string]Result{},
		Landings:     map[string]Landing{},
		Size:         d.number("size"),
		SourceETag:   d.text("sourceEtag"),
		InfoHash:     d.text("infohash"),
		SHA256:       d.text("sha256"),
		Headers:      d.headers(),
		Version:      d.number("version"),
		item:         i,

		SourceModified: d.instant("sourceModified"),
	}
	for bucket, v := range d.each("copyResults") {
		r.Results[bucket] = Result{
			Success:   v.bool("success"),
			Timestamp: v.instant("timestamp"),
			ETag:      v.text("etag"),
			Bytes:     v.number("bytes"),
			Seconds:   v.float("seconds"),
			Region:    v.text("region"),
			Agent:     v.text("agent"),
			SHA256:    v.text("sha256"),
			Error:     v.text("error"),
		}
		d.note(v.err)
	}
	for bucket, v := range d.each("landings") {
		r.Landings[bucket] = Landing{v.text("agent"), v.text("uploadId"), v.text("executionId")}
		d.note(v.err)
	}
	if len(r.Destinations) > maxDestinations {
		d.note(fmt.Errorf("%d destination buckets", len(r.Destinations)))
	}
	if r.Size < 0 {
		d.note(fmt.Errorf("size %d", r.Size))
	}
	if d.err != nil {
		return nil, fmt.Errorf("item of %q: %w", r.FileKey, d.err)
	}
	return r, nil
}

func (d *reader) note(err error) {
	if d.err == nil {
		d.err = err
	}
}

// value returns an attribute as a T; its zero value when it is absent. An
// attribute of another type is an error.
func value[T types.AttributeValue](d *reader, name string) (v T) {
	a, ok := d.item[name]
	if !ok {
		return v
	}
	if v, ok = a.(T); !ok {
		d.note(fmt.Errorf("attribute %s is a %T", name, a))
	}
	return v
}

func (d *reader) text(name string) string {
	if v := value[*types.AttributeValueMemberS](d, name); v != nil {
		return v.Value
	}
	return ""
}

func (d *reader) texts(name string) []string {
	if v := value[*types.AttributeValueMemberSS](d, name); v != nil {
		return sorted(v.Value)
	}
	return nil
}

func (d *reader) bool(name string) bool {
	v := value[*types.AttributeValueMemberBOOL](d, name)
	return v != nil && v.Value
}

func (d *reader) float(name string) float64 {
	v := value[*types.AttributeValueMemberN](d, name)
	if v == nil {
		return 0
	}
	n, err := strconv.ParseFloat(v.Value, 64)
	d.note(err)
	return n
}

func (d *reader) number(name string) int64 {
	v := value[*types.AttributeValueMemberN](d, name)
	if v == nil {
		return 0
	}
	n, err := strconv.ParseInt(v.Value, 10, 64)
	d.note(err)
	return n
}

func (d *reader) instant(name string) time.Time {
	s := d.text(name)
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	d.note(err)
	return t
}

// headers returns the map of that name; nil when it is absent.
func (d *reader) headers() map[string]string {
	v := value[*types.AttributeValueMemberM](d, "headers")
	if v == nil {
		return nil
	}
	in := &reader{item: v.Value}
	out := make(map[string]string, len(v.Value))
	for name := range v.Value {
		out[name] = in.text(name)
	}
	d.note(in.err)
	return out
}

// each returns the maps inside a map.
func (d *reader) each(name string) map[string]*reader {
	v := value[*types.AttributeValueMemberM](d, name)
	if v == nil {
		return nil
	}
	out := make(map[string]*reader, len(v.Value))
	for k, inner := range v.Value {
		m, ok := inner.(*types.AttributeValueMemberM)
		if !ok {
			d.note(fmt.Errorf("%s of %s is a %T", name, k, inner))
			continue
		}
		out[k] = &reader{item: m.Value}
	}
	return out
}
