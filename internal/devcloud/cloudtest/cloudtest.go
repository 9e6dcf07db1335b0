// Package cloudtest gives tests a real S3 and DynamoDB: one devcloud for the
// whole test process, with a bucket or a table of its own for each test.
//
// It is one to a process because devcloud works in its own directory, which it
// makes the working directory of the process: tests open other files by
// absolute paths. Buckets and tables are not removed before the end.
//
// In a test package:
//
//	var cloud *cloudtest.Cloud
//
//	func TestMain(m *testing.M) { cloudtest.VerifyTestMain(m, &cloud) }
package cloudtest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/oklog/ulid/v2"
	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/devcloud"
	"github.com/landfall-dist/landfall/internal/gossip/gossiptest"
)

const (
	// maxBackoff bounds the wait between tries of a call, so that a test of a
	// fault is not mostly waiting.
	maxBackoff = 50 * time.Millisecond
	// maxIdleConns keeps the connections of tests with parallel uploads open;
	// the default of net/http is 2 to a host.
	maxIdleConns = 64
)

// Cloud is a running devcloud and clients of it. All may be used by several
// tests at once.
type Cloud struct {
	// URL is the endpoint of both services.
	URL string
	// AWS has the endpoint, region and credentials, and tries a call three
	// times in quick succession.
	AWS aws.Config
	// S3 addresses buckets by path.
	S3       *s3.Client
	DynamoDB *dynamodb.Client
}

// Start serves a cloud on a free port until stop is called, once; then no
// goroutine of it or of its clients is left and its directory is gone. It is
// meant for TestMain and panics when there is no cloud to be had.
func Start() (cloud *Cloud, stop func()) {
	dir, err := os.MkdirTemp("", "cloudtest-")
	if err != nil {
		panic(fmt.Sprintf("cloudtest: making a directory: %v", err))
	}
	served, err := devcloud.New(devcloud.Config{Listen: "127.0.0.1:0", Dir: dir})
	if err != nil {
		os.RemoveAll(dir)
		panic(fmt.Sprintf("cloudtest: starting: %v", err))
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- served.Run(ctx) }()

	transport := &http.Transport{MaxIdleConnsPerHost: maxIdleConns}
	c := &Cloud{
		URL: served.URL(),
		AWS: aws.Config{
			Region:       "us-east-1",
			Credentials:  credentials.NewStaticCredentialsProvider("test", "test", ""),
			BaseEndpoint: aws.String(served.URL()),
			HTTPClient:   &http.Client{Transport: transport},
			Retryer: func() aws.Retryer {
				return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxBackoff = maxBackoff })
			},
		},
	}
	c.S3 = s3.NewFromConfig(c.AWS, func(o *s3.Options) { o.UsePathStyle = true })
	c.DynamoDB = dynamodb.NewFromConfig(c.AWS)
	return c, func() {
		cancel()
		if err := <-ended; err != nil {
			panic(fmt.Sprintf("cloudtest: stopping: %v", err))
		}
		transport.CloseIdleConnections()
		if err := os.RemoveAll(dir); err != nil {
			panic(fmt.Sprintf("cloudtest: cleaning up: %v", err))
		}
	}
}

// VerifyTestMain runs the tests with a cloud in *cloud, and fails when they leave a
// goroutine behind; it is goleak's function of that name with the cloud around.
func VerifyTestMain(m *testing.M, cloud **Cloud) {
	goleak.VerifyTestMain(testMain{m, cloud}, gossiptest.Probes()...)
}

type testMain struct {
	*testing.M
	cloud **Cloud
}

// Run ends the cloud before goleak looks.
func (m testMain) Run() int {
	cloud, stop := Start()
	defer stop()
	*m.cloud = cloud
	return m.M.Run()
}

// Bucket makes a bucket and returns its name.
func (c *Cloud) Bucket(t testing.TB) string {
	t.Helper()
	name := "bucket-" + unique()
	if _, err := c.S3.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("creating bucket %s: %v", name, err)
	}
	return name
}

// Table makes a table keyed like FileCopyTracking (fileKey, then sourceBucket,
// both strings), paid by request, and returns its name.
func (c *Cloud) Table(t testing.TB) string {
	t.Helper()
	name := "table-" + unique()
	_, err := c.DynamoDB.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName:   &name,
		BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{
			{AttributeName: aws.String("fileKey"), AttributeType: types.ScalarAttributeTypeS},
			{AttributeName: aws.String("sourceBucket"), AttributeType: types.ScalarAttributeTypeS},
		},
		KeySchema: []types.KeySchemaElement{
			{AttributeName: aws.String("fileKey"), KeyType: types.KeyTypeHash},
			{AttributeName: aws.String("sourceBucket"), KeyType: types.KeyTypeRange},
		},
	})
	if err != nil {
		t.Fatalf("creating table %s: %v", name, err)
	}
	return name
}

// unique is a part of a name that S3 and DynamoDB both allow.
func unique() string { return strings.ToLower(ulid.Make().String()) }
