package ledger

import (
	"maps"
	"slices"
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
	i.set("priority", nil)
	if r.High {
		i["priority"] = text(highPriority)
	}
	i.begunAs(r.Scheme, r.Term)
	i.set("retries", nil)
	if r.Retries > 0 {
		i["retries"] = number(r.Retries)
	}
	i.set("owner", nil)
	if r.Owner != "" {
		i["owner"] = text(r.Owner)
	}
	i.set("pending", nil)
	if r.Upload != nil {
		i["pending"] = r.Upload.encode()
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
		landings[bucket] = l.encode()
	}
	i["landings"] = &types.AttributeValueMemberM{Value: landings}
	return i
}

// begunAs notes how an execution was begun. Where an older version has, an item does not say.
func (i item) begunAs(scheme string, term int64) {
	i.set("scheme", nil)
	i.set("term", nil)
	if scheme != "" {
		i["scheme"] = text(scheme)
	}
	if scheme != "" || term > 0 {
		i["term"] = number(term)
	}
}

func (l Landing) encode() types.AttributeValue {
	return &types.AttributeValueMemberM{Value: item{
		"agent": text(l.Agent), "uploadId": text(l.UploadID), "executionId": text(l.ExecutionID),
	}}
}

func (r Result) encode() types.AttributeValue {
	i := item{
		"success":   &types.AttributeValueMemberBOOL{Value: r.Success},
		"timestamp": instant(r.Timestamp),
		"bytes":     number(r.Bytes),
		"seconds":   &types.AttributeValueMemberN{Value: strconv.FormatFloat(r.Seconds, 'f', 3, 64)},
	}
	if r.Final {
		i["final"] = &types.AttributeValueMemberBOOL{Value: true}
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

// ours are the attributes that encode writes.
var ours = []string{
	"fileKey", "sourceBucket", "executionId", "status", "startTime", "completedAt", "destinationBuckets", "totalBuckets",
	"successfulBuckets", "failedBuckets", "successfulCopies", "failedCopies", "copyResults", "landings", "size",
	"sourceEtag", "infohash", "sha256", "version", "owner", "headers", "sourceModified", "pending",
	"priority", "retries", "scheme", "term",
}

// highPriority is the only value of priority that is written; one that is normal has none.
const highPriority = "high"

// foreign returns the attributes of an item that are not ours.
func (i item) foreign() item {
	out := maps.Clone(i)
	maps.DeleteFunc(out, func(name string, _ types.AttributeValue) bool { return slices.Contains(ours, name) })
	return out
}

// unchanged is the condition that the table's item still has the execution and the
// version of this one, in whatever form.
func (i item) unchanged() (condition string, values item) {
	// Names that DynamoDB reserves would need aliases; these are free.
	condition, values = "attribute_exists(fileKey)", item{}
	for _, name := range []string{"executionId", "version"} {
		if v, ok := i[name]; ok {
			condition += " AND " + name + " = :" + name
			values[":"+name] = v
		} else {
			condition += " AND attribute_not_exists(" + name + ")"
		}
	}
	return condition, values
}
