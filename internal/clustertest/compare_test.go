package clustertest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/api"
)

// named is a store that names the parts of the objects that it has, as S3 does and the
// embedded one does not: those of parts of 5 MiB.
type named struct {
	asked atomic.Int64
	// forget: it does not name them.
	forget atomic.Bool
}

func (n *named) config() *aws.Config {
	cfg := cloud.AWS.Copy()
	next := cfg.HTTPClient.(*http.Client).Transport
	cfg.HTTPClient = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if !r.URL.Query().Has("attributes") || n.forget.Load() {
			return next.RoundTrip(r)
		}
		n.asked.Add(1)
		answer, err := partsOf(next, r)
		if err != nil {
			return nil, err
		}
		return &http.Response{StatusCode: http.StatusOK, Request: r, Header: make(http.Header), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Body: io.NopCloser(strings.NewReader(answer)), ContentLength: int64(len(answer))}, nil
	})}
	return &cfg
}

// partsOf answers GetObjectAttributes from the object's bytes, three parts a page.
func partsOf(next http.RoundTripper, r *http.Request) (string, error) {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	out, err := cloud.S3.GetObject(r.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return "", err
	}
	defer out.Body.Close()
	content, err := io.ReadAll(out.Body)
	if err != nil {
		return "", err
	}
	first, _ := strconv.Atoi(r.Header.Get("X-Amz-Part-Number-Marker"))
	total := (len(content) + part - 1) / part
	end := min(first+3, total)
	var answer strings.Builder
	fmt.Fprintf(&answer, "<GetObjectAttributesResponse><ETag>%s</ETag><ObjectParts><IsTruncated>%v</IsTruncated><NextPartNumberMarker>%d</NextPartNumberMarker><PartsCount>%d</PartsCount>",
		strings.Trim(aws.ToString(out.ETag), `"`), end < total, end, total)
	for i := first; i < end; i++ {
		b := content[i*part : min((i+1)*part, len(content))]
		sum := sha256.Sum256(b)
		fmt.Fprintf(&answer, "<Part><PartNumber>%d</PartNumber><Size>%d</Size><ChecksumSHA256>%s</ChecksumSHA256></Part>", i+1, len(b), base64.StdEncoding.EncodeToString(sum[:]))
	}
	return answer.String() + "</ObjectParts></GetObjectAttributesResponse>", nil
}

// A build that is uploaded once more is not fetched by a region whose bucket has it: its
// parts are compared with the segments as they become known. From the first part on that
// differs, another one of the same size is.
func TestPresentIsComparedBeforeTheSeal(t *testing.T) {
	store := &named{}
	c := Start(t, cloud, Options{Regions: 1, AWS: store.config()})
	want := content(1, 6*part+1)
	g := c.upload("build.zip", len(want))
	g.send(want)
	if err := g.ends(); err != nil {
		t.Fatal(err)
	}
	c.Await(g.answer.ExecutionID, "COMPLETED")
	_, before := c.Object(c.Bucket(0), "build.zip")

	// Its bytes are not here any more, for they would not be fetched anyway.
	c.Stop()
	c.cfg.Dir = t.TempDir()
	c.start()
	again := c.upload("build.zip", len(want))
	again.send(want[:5*part+1])
	id := ""
	c.Until("the agent waits for the rest", func() bool {
		e := again.execution()
		id = e.ExecutionID
		b := c.atFirst(id)
		return e.Phase == api.PhaseUploading && e.PulledBytes >= 5*part && b.State == api.StateQueued && b.Waiting
	})
	if asked := store.asked.Load(); asked == 0 {
		t.Error("the store was not asked for the parts")
	}
	again.send(want[5*part+1:])
	if err := again.ends(); err != nil {
		t.Fatal(err)
	}
	c.Await(id, "COMPLETED")
	if b := c.atFirst(id); b.DownloadedBytes > 0 {
		t.Errorf("%d bytes were downloaded of what was there: %+v", b.DownloadedBytes, b)
	}
	if _, o := c.Object(c.Bucket(0), "build.zip"); aws.ToString(o.ETag) != aws.ToString(before.ETag) || !o.LastModified.Equal(*before.LastModified) {
		t.Error("it has landed once more")
	}
	c.Holds("build.zip", want)

	other := bytes.Clone(want)
	other[4*part]++
	third := c.upload("build.zip", len(want))
	third.send(other[:4*part])
	c.Until("the agent waits for what differs", func() bool {
		e := third.execution()
		id = e.ExecutionID
		b := c.atFirst(id)
		return e.Phase == api.PhaseUploading && e.PulledBytes >= 3*part && b.State == api.StateQueued && b.Waiting && b.DownloadedBytes == 0
	})
	third.send(other[4*part:])
	if err := third.ends(); err != nil {
		t.Fatal(err)
	}
	c.Await(id, "COMPLETED")
	c.Holds("build.zip", other)
	if b := c.atFirst(id); b.DownloadedBytes < int64(len(other)) {
		t.Errorf("%d bytes of another build were downloaded: %+v", b.DownloadedBytes, b)
	}

	// Where the store names no parts, it is fetched.
	store.forget.Store(true)
	fourth := c.upload("build.zip", len(other))
	fourth.send(other[:3*part+1])
	fourth.landed(2 * part)
	fourth.send(other[3*part+1:])
	if err := fourth.ends(); err != nil {
		t.Fatal(err)
	}
	c.Await(fourth.answer.ExecutionID, "COMPLETED")
	c.Holds("build.zip", other)
}

// atFirst is an execution's at the first agent.
func (c *Cluster) atFirst(id string) api.Build {
	s, err := c.Agents[0].AgentStatus(c.t.Context())
	if err != nil {
		return api.Build{}
	}
	for _, b := range s.Builds {
		if b.ExecutionID == id {
			return b
		}
	}
	return api.Build{}
}
