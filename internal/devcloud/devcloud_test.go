package devcloud

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"go.uber.org/goleak"
)

// childDir names the environment variable that makes the test binary serve a
// cloud on the directory in it, until it is killed.
const childDir = "DEVCLOUD_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		serveChild(dir)
	}
	goleak.VerifyTestMain(m)
}

func serveChild(dir string) {
	c, err := New(Config{Listen: "127.0.0.1:0", Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(c.URL())
	fmt.Fprintln(os.Stderr, c.Run(context.Background()))
	os.Exit(1)
}

// clients of a cloud.
type clients struct {
	s3 *s3.Client
	db *dynamodb.Client
}

// start serves a cloud on dir until the test ends or the returned func is
// called. Clouds change the working directory, so tests do not run in parallel.
func start(t *testing.T, dir string) (clients, func()) {
	t.Helper()
	c, err := New(Config{Listen: "127.0.0.1:0", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	stop := serve(t, c)
	return connect(t, c.URL()), stop
}

// serve runs c until the test ends or the returned func is called.
func serve(t *testing.T, c *Cloud) func() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func connect(t *testing.T, url string) clients {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	cfg := aws.Config{
		Region:           "us-east-1",
		Credentials:      credentials.NewStaticCredentialsProvider("test", "test", ""),
		BaseEndpoint:     &url,
		HTTPClient:       &http.Client{Transport: transport},
		RetryMaxAttempts: 1,
	}
	return clients{
		s3: s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true }),
		db: dynamodb.NewFromConfig(cfg),
	}
}

func TestPortTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dir := t.TempDir()
	if _, err := New(Config{Listen: ln.Addr().String(), Dir: dir}); err == nil || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Fatalf("error %v does not name %s", err, ln.Addr())
	}
	// What the failed attempt took is free again.
	start(t, dir)
}

func TestDirInUse(t *testing.T) {
	dir := t.TempDir()
	start(t, dir)
	if _, err := New(Config{Listen: "127.0.0.1:0", Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Fatalf("error %v, want ErrInUse", err)
	}
}

func TestDirRequired(t *testing.T) {
	if _, err := New(Config{Listen: "127.0.0.1:0"}); err == nil {
		t.Fatal("no error")
	}
}

func TestRelativeDirAndWorkingDirectory(t *testing.T) {
	base := t.TempDir()
	t.Chdir(base)
	_, stop := start(t, "cloud")
	if _, err := os.Stat(filepath.Join(base, "cloud", "s3")); err != nil {
		t.Error(err)
	}
	stop()
	if wd, err := os.Getwd(); err != nil || wd != base {
		t.Errorf("working directory %s after Run, want %s (%v)", wd, base, err)
	}
}

func TestRunEndsWithConnectionsOpen(t *testing.T) {
	c, err := New(Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	// One connection that never sends anything, one in the middle of a header.
	for _, sent := range []string{"", "GET / HTTP/1.1\r\nHost: x"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.URL(), "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte(sent)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	// A third one, answered and then kept alive, proves that Run serves.
	if _, err := connect(t, c.URL()).s3.ListBuckets(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(4 * shutdownGrace):
		t.Fatal("Run does not end")
	}
}

func TestRunWithEndedContextReleases(t *testing.T) {
	dir := t.TempDir()
	c, err := New(Config{Listen: "127.0.0.1:0", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Fatal(err)
	}
	start(t, dir)
}

func TestDataSurviveRestart(t *testing.T) {
	dir := t.TempDir()
	c, stop := start(t, dir)
	fill(t, c)
	stop()
	c, _ = start(t, dir)
	checkFilled(t, c)
}

func TestDataSurviveKill(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	url, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	fill(t, connect(t, strings.TrimSpace(url)))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child ended by itself")
	}
	// The torn line that a kill in the middle of a write leaves.
	journal, err := os.OpenFile(filepath.Join(dir, "dynamodb", "journal"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := journal.WriteString(`{"target":"PutItem","bo`); err != nil {
		t.Fatal(err)
	}
	if err := journal.Close(); err != nil {
		t.Fatal(err)
	}
	c, stop := start(t, dir)
	checkFilled(t, c)
	// Writing goes on where the torn line was.
	put(t, c, "arrivals", entry("second", nil))
	stop()
	c, _ = start(t, dir)
	if get(t, c, "arrivals", "second") == nil {
		t.Error("an item written after the torn line is lost")
	}
}

// fill makes an object, a half-done upload and an item.
func fill(t *testing.T, c clients) {
	t.Helper()
	ctx := t.Context()
	if _, err := c.s3.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("builds")}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.s3.PutObject(ctx, &s3.PutObjectInput{
		Bucket: aws.String("builds"), Key: aws.String("build.zip"),
		Body: strings.NewReader("content"), Metadata: map[string]string{"commit": "abc123"},
	}); err != nil {
		t.Fatal(err)
	}
	up, err := c.s3.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: aws.String("builds"), Key: aws.String("big.zip"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.s3.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: aws.String("builds"), Key: aws.String("big.zip"), UploadId: up.UploadId,
		PartNumber: aws.Int32(1), Body: strings.NewReader("part"),
	}); err != nil {
		t.Fatal(err)
	}
	createTable(t, c, "arrivals")
	put(t, c, "arrivals", entry("first", map[string]types.AttributeValue{
		"status": &types.AttributeValueMemberS{Value: "IN_PROGRESS"},
	}))
}

func checkFilled(t *testing.T, c clients) {
	t.Helper()
	ctx := t.Context()
	head, err := c.s3.HeadObject(ctx, &s3.HeadObjectInput{Bucket: aws.String("builds"), Key: aws.String("build.zip")})
	if err != nil {
		t.Fatal(err)
	}
	if *head.ContentLength != int64(len("content")) || head.Metadata["commit"] != "abc123" {
		t.Errorf("object has %d bytes and metadata %v", *head.ContentLength, head.Metadata)
	}
	uploads, err := c.s3.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: aws.String("builds")})
	if err != nil {
		t.Fatal(err)
	}
	if len(uploads.Uploads) != 1 {
		t.Fatalf("%d uploads, want 1", len(uploads.Uploads))
	}
	parts, err := c.s3.ListParts(ctx, &s3.ListPartsInput{
		Bucket: aws.String("builds"), Key: aws.String("big.zip"), UploadId: uploads.Uploads[0].UploadId,
	})
	if err != nil || len(parts.Parts) != 1 {
		t.Errorf("parts of the upload: %+v, %v", parts, err)
	}
	if s, ok := get(t, c, "arrivals", "first")["status"].(*types.AttributeValueMemberS); !ok || s.Value != "IN_PROGRESS" {
		t.Errorf("item has status %v", s)
	}
}
