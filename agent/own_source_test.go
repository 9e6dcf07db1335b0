package agent

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/bucket"
)

// empty answers every request with a success.
type empty struct{}

func (empty) Do(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
}

// An agent whose bucket is the one that builds come from lands nothing there, and says
// why.
func TestBuildFromTheAgentsOwnBucket(t *testing.T) {
	b, err := bucket.Open(t.Context(), aws.Config{
		Region: "us-east-1", BaseEndpoint: aws.String("http://s3.invalid"), HTTPClient: empty{},
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
	}, "global-builds", bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := &Agent{cfg: Config{Bucket: b, Logger: slog.New(slog.NewTextHandler(&log, nil))}, builds: make(map[string]*build), running: ctx}
	a.announced(announce.Added{Announcement: &announce.Announcement{
		ExecutionID: "01K0Z4V5QW8TQ0H6Q9M3N7R2XD", Key: "build.zip", SourceBucket: "global-builds", Destinations: []string{"global-builds", "region-a-builds"},
	}})
	if len(a.builds) != 0 || !strings.Contains(log.String(), "announcement refused") {
		t.Errorf("%d builds begun, log: %s", len(a.builds), &log)
	}
}
