package clustertest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/seeder/client"
)

type values = map[string]types.AttributeValue

func str(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
func num(s string) types.AttributeValue { return &types.AttributeValueMemberN{Value: s} }
func list(l ...string) types.AttributeValue {
	v := &types.AttributeValueMemberL{}
	for _, s := range l {
		v.Value = append(v.Value, str(s))
	}
	return v
}

// write puts an item into the table as another program would.
func (c *Cluster) write(key, source string, more values) {
	c.t.Helper()
	i := values{"fileKey": str(key), "sourceBucket": str(source)}
	for name, v := range more {
		i[name] = v
	}
	_, err := c.cloud.DynamoDB.PutItem(c.t.Context(), &dynamodb.PutItemInput{TableName: aws.String(c.cfg.Table), Item: i})
	if err != nil {
		c.t.Fatal(err)
	}
}

// status is the HTTP status of an answer that is no success.
func status(t *testing.T, err error) int {
	t.Helper()
	var answer *client.StatusError
	if !errors.As(err, &answer) {
		t.Fatalf("no answer of HTTP: %v", err)
	}
	return answer.Code
}

func TestTableWithItemsOfOthers(t *testing.T) {
	log := &lines{}
	c := Start(t, cloud, Options{Regions: 2, Log: log, Before: func(c *Cluster) {
		// Sent by the system before, and still in the bucket.
		c.Put("old.zip", content(1, 100), nil)
		c.write("old.zip", c.Global, values{"status": str("COMPLETED"), "startTime": num("1700000000"), "destinationBuckets": list(c.Bucket(0), c.Bucket(1))})
		c.write("running.zip", c.Global, values{"status": str("IN_PROGRESS"), "destinationBuckets": list(c.Bucket(0))})
		c.write("bare.zip", c.Global, nil)
		c.write("lease", "lease:x", values{"holder": str("me"), "term": num("3")})
		c.write("bad.zip", "x-builds", values{"executionId": str("01K0Z4V5QW8TQ0H6Q9M3N7R2XD"), "status": str("DONE"), "size": str("12")})
		c.write("far.zip", c.Global, values{"executionId": str("7ZZZZZZZZZZZZZZZZZZZZZZZZZ"), "status": str("IN_PROGRESS"), "destinationBuckets": list(c.Bucket(0))})
		c.write("shouting.zip", c.Global, values{"executionId": str("01K0Z4V5QW8TQ0H6Q9M3N7R2XE"), "status": str("IN_PROGRESS"), "destinationBuckets": list("s3://BUCKET")})
		c.write("negative.zip", c.Global, values{"executionId": str("01K0Z4V5QW8TQ0H6Q9M3N7R2XF"), "status": str("COMPLETED"), "destinationBuckets": list(c.Bucket(0)), "size": num("-5")})
		for range 50 {
			c.write(content16(), c.Global, nil)
		}
	}})
	page, err := c.Seeder.Executions(t.Context(), 0, "")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]api.Execution)
	for _, e := range page.Executions {
		found[e.Key] = e
	}
	if len(found) != 4 || page.SkippedItems != 54 || found["old.zip"].Status != "COMPLETED" || found["old.zip"].Destinations[1].State != api.StateLanded ||
		found["running.zip"].Phase != api.PhaseEnded || found["negative.zip"].Size != 0 {
		t.Errorf("the list is %+v", page)
	}
	named := make(map[any]bool)
	for _, line := range log.of("item of the table is skipped") {
		named[line["key"]] = true
	}
	// One in fifty lines of one reason can be of any item.
	if !named["bad.zip"] || !named["far.zip"] || len(named) > 2+10 {
		t.Errorf("skipped items that are named: %v", named)
	}
	if lines := log.of("item of the table is read in part"); len(lines) != 2 || lines[0]["key"] == lines[1]["key"] {
		t.Errorf("read in part: %v", lines)
	}
	for _, change := range []func(id string) error{
		func(id string) error { _, err := c.Seeder.Cancel(t.Context(), id); return err },
		func(id string) error { _, err := c.Seeder.Retry(t.Context(), id); return err },
	} {
		if err := change(found["running.zip"].ExecutionID); err == nil || status(t, err) != http.StatusConflict {
			t.Errorf("changing another system's item: %v", err)
		}
	}
	// What was sent before is not sent again by itself; what is new under its key is.
	b := content(2, 12345)
	for _, key := range []string{"bare.zip", "far.zip", "running.zip", "shouting.zip"} {
		c.Publish(key, b)
		c.Holds(key, b)
	}
	if e := c.Record("far.zip"); e.ExecutionID >= "7" {
		t.Errorf("the new id is %s", e.ExecutionID)
	}
	if got, _ := c.Object(c.Bucket(0), "old.zip"); got != nil {
		t.Error("old.zip was sent again")
	}
	c.Put("old.zip", b, nil)
	c.Until("old.zip arrives", func() bool {
		e, err := c.Seeder.ByKey(t.Context(), "old.zip")
		return err == nil && e.Status == "COMPLETED" && e.Size == int64(len(b))
	})
	c.Holds("old.zip", b)
	c.Restart()
	if page, err := c.Seeder.Executions(t.Context(), 0, ""); err != nil || page.SkippedItems != 52 || len(page.Executions) != 6 {
		t.Errorf("after a restart: %+v, %v", page, err)
	}
}

// An execution that a newer version has begun, by a scheme that this one does not know, is
// shown with the reason and otherwise left as it is; sent again its build is another
// execution. One of an older version, whose item says no scheme, is taken up.
func TestUnknownScheme(t *testing.T) {
	const newer, older = "01K0Z4V5QW8TQ0H6Q9M3N7R2XD", "01K0Z4V5QW8TQ0H6Q9M3N7R2XE"
	log, b := &lines{}, content(1, 12345)
	c := Start(t, cloud, Options{Regions: 1, Log: log, Before: func(c *Cluster) {
		for key, more := range map[string]values{
			"newer.zip": {"executionId": str(newer), "scheme": str("waves"), "term": num("3")},
			"older.zip": {"executionId": str(older)},
		} {
			c.Put(key, b, nil)
			head, err := c.cloud.S3.HeadObject(c.t.Context(), &s3.HeadObjectInput{Bucket: aws.String(c.Global), Key: aws.String(key)})
			if err != nil {
				c.t.Fatal(err)
			}
			maps.Copy(more, values{
				"status": str("IN_PROGRESS"), "owner": str(c.Global), "size": num("12345"), "version": num("1"), "sourceEtag": str(*head.ETag),
				"destinationBuckets": &types.AttributeValueMemberSS{Value: []string{c.Bucket(0)}},
			})
			c.write(key, c.Global, more)
		}
	}})
	c.Await(older, "COMPLETED")
	if r := c.Record("older.zip"); r.Scheme != "" {
		t.Errorf("the older one's scheme is %q now", r.Scheme)
	}
	const reason = `scheme "waves", which this version does not know`
	if line := log.await(c, "execution is shown and not taken up"); line["key"] != "newer.zip" || !strings.Contains(fmt.Sprint(line["reason"]), reason) {
		t.Errorf("the log says %v", line)
	}
	e, err := c.Seeder.Execution(t.Context(), newer)
	if err != nil || e.Status != "IN_PROGRESS" || !strings.Contains(e.Error, reason) {
		t.Errorf("it is shown as %+v, %v", e, err)
	}
	if _, err := c.Seeder.Retry(t.Context(), newer); err == nil || status(t, err) != http.StatusConflict || !strings.Contains(err.Error(), reason) {
		t.Errorf("sent again: %v", err)
	}
	if r := c.Record("newer.zip"); r.ExecutionID != newer || r.Status != ledger.InProgress || r.Version != 1 || r.Scheme != "waves" || r.Term != 3 {
		t.Errorf("the item is %+v", r)
	}
	if got, _ := c.Object(c.Bucket(0), "newer.zip"); got != nil {
		t.Error("its build was sent")
	}
	id := c.Deploy("newer.zip").ExecutionID
	if id == newer {
		t.Fatal("a publish has joined what nobody carries")
	}
	c.Await(id, "COMPLETED")
	c.Holds("newer.zip", b)
	if r := c.Record("newer.zip"); r.Scheme != string(manifest.Ramp) || r.Term != 0 {
		t.Errorf("the item is %+v", r)
	}
}

// A copy of an item under another key does not stand in for it: both keys can be sent,
// and are two executions then.
func TestCopiedItem(t *testing.T) {
	log := &lines{}
	c := Start(t, cloud, Options{Regions: 1, Log: log, Before: func(c *Cluster) {
		for _, key := range []string{"one.zip", "two.zip"} {
			c.write(key, c.Global, values{"executionId": str("01K0Z4V5QW8TQ0H6Q9M3N7R2XD"), "status": str("FAILED"), "destinationBuckets": list(c.Bucket(0))})
		}
	}})
	c.Until("the table is read", func() bool { return len(log.of("table read")) == 1 })
	page, err := c.Seeder.Executions(t.Context(), 0, "")
	if err != nil || len(page.Executions) != 1 || page.SkippedItems != 1 {
		t.Fatalf("%+v, %v", page, err)
	}
	if said := log.of("item of the table is skipped"); len(said) != 1 || said[0]["reason"] != "its executionId is another item's" {
		t.Errorf("said: %v", said)
	}
	b := content(1, 1000)
	for _, key := range []string{"one.zip", "two.zip"} {
		c.Publish(key, b)
		c.Holds(key, b)
	}
	for range 2 {
		page, err = c.Seeder.Executions(t.Context(), 0, "")
		if err != nil || len(page.Executions) != 2 || page.Executions[0].ExecutionID == page.Executions[1].ExecutionID {
			t.Errorf("%+v, %v", page, err)
		}
		c.Restart() // the table says the same
		c.Until("the table is read again", func() bool { return len(log.of("table read")) >= 2 })
	}
}

var contents atomic.Int64

// content16 is another key each time.
func content16() string { return "note-" + string(rune('a'+contents.Add(1))) }

// Two seeders with global buckets of their own may share a table.
func TestSharedTable(t *testing.T) {
	const timeout = 100 * time.Millisecond
	table := cloud.Table(t)
	prod := Start(t, cloud, Options{Regions: 1, Unserved: 1, Table: table})
	prod.Put("build.bin", content(1, 100), nil)
	waiting := prod.Deploy("build.bin").ExecutionID
	log := &lines{}
	staging := Start(t, cloud, Options{Regions: 1, Unserved: 1, Table: table, ArrivalTimeout: timeout, Log: log, SourceBuckets: []string{prod.Global}})
	staging.Put("build.bin", content(2, 200), nil)
	staging.Await(staging.Deploy("build.bin").ExecutionID, "FAILED") // in its own time
	page, err := staging.Seeder.Executions(t.Context(), 0, "")
	if err != nil || len(page.Executions) != 1 || page.Executions[0].SourceBucket != staging.Global || page.SkippedItems != 0 {
		t.Errorf("the second seeder lists %+v, %v", page, err)
	}
	if r := prod.Record("build.bin"); r.ExecutionID != waiting || r.Status != "IN_PROGRESS" || r.Owner != prod.Global {
		t.Errorf("the first one's execution is %+v", r)
	}
	_, err = staging.Seeder.Deploy(t.Context(), api.DeployRequest{SourceBucket: prod.Global, SourceKey: "build.bin"})
	if err == nil || status(t, err) != http.StatusConflict || !strings.Contains(err.Error(), "seeder of "+prod.Global) {
		t.Errorf("sending what another seeder sends: %v", err)
	}
	for name, l := range map[string]*Cluster{"first": prod, "second": staging} {
		l.Restart()
		if page, err := l.Seeder.Executions(t.Context(), 0, ""); err != nil || len(page.Executions) != 1 || page.Executions[0].SourceBucket != l.Global {
			t.Errorf("the %s seeder lists %+v after a restart, %v", name, page, err)
		}
	}
}

// refusingScans answers the first scans of the table with an error.
type refusingScans struct {
	refuse, seen atomic.Int64
}

func (r *refusingScans) RoundTrip(req *http.Request) (*http.Response, error) {
	if strings.HasSuffix(req.Header.Get("X-Amz-Target"), ".Scan") && r.seen.Add(1) <= r.refuse.Load() {
		body := `{"__type":"com.amazonaws.dynamodb.v20120810#AccessDeniedException","message":"no scan today"}`
		return &http.Response{
			StatusCode: http.StatusBadRequest, Header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}}, Request: req,
			Body: io.NopCloser(bytes.NewBufferString(body)), ContentLength: int64(len(body)),
		}, nil
	}
	return http.DefaultTransport.RoundTrip(req)
}

// A table that cannot be read at the start is tried again, and nothing else stops.
func TestTableNotReadAtTheStart(t *testing.T) {
	scans := &refusingScans{}
	scans.refuse.Store(2)
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: scans}
	log := &lines{}
	c := Start(t, cloud, Options{Regions: 1, AWS: &cfg, Log: log, NoServices: true}) // whose table is scanned, too
	if n := len(log.of("table not read, trying again")); n != 2 || scans.seen.Load() != 3 {
		t.Errorf("%d lines for %d scans", n, scans.seen.Load())
	}
	b := content(1, 100)
	c.Publish("build.zip", b)
	c.Holds("build.zip", b)
}
