// Package ledgertest is a table of many executions that answers at once, to measure
// what reading it costs.
package ledgertest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/oklog/ulid/v2"
)

// pageItems is about what DynamoDB puts into its page of 1 MiB.
const pageItems = 800

// Table answers Scan, and nothing else, with items that have ended, of two
// destinations each, as an agent and a seeder leave them. Their keys are in the order
// of a hash, as DynamoDB's are.
type Table struct {
	Items int
	// Source and Owner are the items' sourceBucket and owner.
	Source, Owner string
}

// Client speaks to the table.
func (t Table) Client() *dynamodb.Client {
	return dynamodb.New(dynamodb.Options{
		Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		HTTPClient: &http.Client{Transport: t}, RetryMaxAttempts: 1,
	})
}

// RoundTrip answers a Scan; the place to go on from is the number of a key.
func (t Table) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	first, last := 0, 0
	if _, after, ok := strings.Cut(string(body), `"fileKey":{"S":"releases/`); ok {
		if _, err := fmt.Sscanf(after, "%d", &first); err != nil {
			return nil, err
		}
		first++
	}
	var b bytes.Buffer
	b.WriteString(`{"Items":[`)
	for last = first; last < min(first+pageItems, t.Items); last++ {
		if last > first {
			b.WriteByte(',')
		}
		t.item(&b, last)
	}
	fmt.Fprintf(&b, `],"Count":%d,"ScannedCount":%d`, last-first, last-first)
	if last < t.Items {
		fmt.Fprintf(&b, `,"LastEvaluatedKey":{"fileKey":{"S":%q},"sourceBucket":{"S":%q}}`, key(last-1), t.Source)
	}
	b.WriteByte('}')
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}}, Request: r,
		Body: io.NopCloser(&b), ContentLength: int64(b.Len()),
	}, nil
}

func key(n int) string { return fmt.Sprintf("releases/%07d/build-%016x.zip", n, hash(n)) }

// hash spreads the times of the items over a year.
func hash(n int) uint64 { return uint64(n+1) * 0x9E3779B97F4A7C15 }

// begin is when the first execution began.
var begin = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

func (t Table) item(b *bytes.Buffer, n int) {
	h := hash(n)
	start := begin.Add(time.Duration(h % uint64(365*24*time.Hour)))
	var id ulid.ULID
	_ = id.SetTime(ulid.Timestamp(start)) // of this century
	for i := 6; i < len(id); i++ {
		id[i] = byte(h >> (i % 8 * 8))
	}
	at := func(after time.Duration) string { return start.Add(after).Format(time.RFC3339Nano) }
	fmt.Fprintf(b, `{"fileKey":{"S":%q},"sourceBucket":{"S":%q},"executionId":{"S":%q},"status":{"S":"COMPLETED"},"startTime":{"S":%q},"completedAt":{"S":%q},`,
		key(n), t.Source, id, at(0), at(90*time.Second))
	if t.Owner != "" {
		fmt.Fprintf(b, `"owner":{"S":%q},`, t.Owner)
	}
	fmt.Fprintf(b, `"destinationBuckets":{"SS":["region-a-builds","region-b-builds"]},"successfulBuckets":{"SS":["region-a-builds","region-b-builds"]},`+
		`"totalBuckets":{"N":"2"},"successfulCopies":{"N":"2"},"failedCopies":{"N":"0"},"version":{"N":"6"},"size":{"N":"%d"},`+
		`"sourceEtag":{"S":"\"%032x-64\""},"infohash":{"S":"%040x"},"sha256":{"S":"%064x"},"sourceModified":{"S":%q},`+
		`"headers":{"M":{"content-type":{"S":"application/zip"}}},"landings":{"M":{}},"copyResults":{"M":{`,
		1<<20+h%(8<<30), h, h, h, at(-time.Minute))
	for i, region := range []string{"region-a", "region-b"} {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(b, `"%s-builds":{"M":{"success":{"BOOL":true},"timestamp":{"S":%q},"bytes":{"N":"%d"},"seconds":{"N":"%.3f"},`+
			`"etag":{"S":"\"%032x-128\""},"region":{"S":%q},"agent":{"S":"agent-%s-01hzx"},"sha256":{"S":"%064x"}}}`,
			region, at(time.Duration(30+i)*time.Second), 1<<20+h%(8<<30), float64(h%60000)/1000, h+1, region, region, h)
	}
	b.WriteString("}}}")
}
