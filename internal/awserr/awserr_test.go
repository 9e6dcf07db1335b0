package awserr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/answers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// innards are what nobody who reads an error can use.
var innards = []string{"RequestID", "HostID", "request id", "operation error", "https response error", "StatusCode", "attempts", "\n", "REQUEST123", "HOST456"}

// settings are those of a server that answers at url, or nowhere.
func settings(url string) aws.Config {
	return aws.Config{
		Region: "us-east-1", BaseEndpoint: &url, HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		Retryer:     func() aws.Retryer { return aws.NopRetryer{} },
	}
}

func headBucket(ctx context.Context, cfg aws.Config) error {
	_, err := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true }).HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String("builds")})
	return err
}

func list(ctx context.Context, cfg aws.Config) error {
	_, err := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true }).ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String("builds")})
	return err
}

func scan(ctx context.Context, cfg aws.Config) error {
	_, err := dynamodb.NewFromConfig(cfg).Scan(ctx, &dynamodb.ScanInput{TableName: aws.String("Copies")})
	return err
}

// TestAnswers explains what servers say.
func TestAnswers(t *testing.T) {
	s3Error := func(status int, code, message string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Amz-Request-Id", "REQUEST123")
			w.Header().Set("X-Amz-Id-2", "HOST456")
			w.WriteHeader(status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message><RequestId>REQUEST123</RequestId><HostId>HOST456</HostId></Error>", code, message)
		}
	}
	dynamoError := func(status int, code, message string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Amzn-Requestid", "REQUEST123")
			w.Header().Set("Content-Type", "application/x-amz-json-1.0")
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"__type":"com.amazon.coral.service#%s","message":%q}`, code, message)
		}
	}
	bare := func(status int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
		}
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		call   func(context.Context, aws.Config) error
		want   []string
	}{
		"denied, listing":        {s3Error(403, "AccessDenied", "Access Denied"), list, []string{"access denied by S3", "s3:ListBucket on bucket builds", "README.md"}},
		"denied, HEAD":           {bare(403), headBucket, []string{"access denied by S3", "s3:ListBucket on bucket builds"}},
		"denied, table":          {dynamoError(400, "AccessDeniedException", "User: arn:aws:iam::1:user/x is not authorized to perform: dynamodb:Scan"), scan, []string{"dynamodb:Scan on table Copies", "not authorized"}},
		"archived, not denied":   {s3Error(403, "InvalidObjectState", "The operation is not valid for the object's storage class"), list, []string{"S3 refuses it: InvalidObjectState: The operation is not valid"}},
		"expired":                {s3Error(400, "ExpiredToken", "The provided token has expired."), list, []string{"credentials have expired", "AWS_SESSION_TOKEN"}},
		"expired, table":         {dynamoError(400, "ExpiredTokenException", "The security token included in the request is expired"), scan, []string{"credentials have expired"}},
		"unknown key":            {s3Error(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."), list, []string{"does not know these AWS credentials", "AWS_ACCESS_KEY_ID"}},
		"unknown key, table":     {dynamoError(400, "UnrecognizedClientException", "The security token included in the request is invalid."), scan, []string{"DynamoDB does not know these AWS credentials"}},
		"clock":                  {s3Error(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."), list, []string{"clock", "NTP"}},
		"clock, table":           {dynamoError(400, "InvalidSignatureException", "Signature expired: 20260101T000000Z is now earlier than 20260102T000000Z"), scan, []string{"clock"}},
		"clock, HEAD":            {bare(403, "Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)), headBucket, []string{"clock"}},
		"another region":         {s3Error(301, "PermanentRedirect", "The bucket you are attempting to access must be addressed using the specified endpoint."), list, []string{"another AWS region", "--source-region"}},
		"another, HEAD":          {bare(301, "X-Amz-Bucket-Region", "eu-west-1"), headBucket, []string{"bucket builds is in AWS region eu-west-1", "--bucket-region"}},
		"throttled":              {s3Error(503, "SlowDown", "Please reduce your request rate."), list, []string{"throttling", "SlowDown"}},
		"throttled, table":       {dynamoError(400, "ProvisionedThroughputExceededException", "slower"), scan, []string{"DynamoDB is throttling requests to table Copies"}},
		"out of order":           {s3Error(500, "InternalError", "We encountered an internal error. (Service: Amazon S3; Request ID: REQUEST123)"), list, []string{"S3 answers 500", "InternalError", "internal error"}},
		"out of order, HEAD":     {bare(502), headBucket, []string{"S3 answers 502"}},
		"another refusal":        {s3Error(400, "InvalidArgument", "Many\nlines, request id: REQUEST123, host id: HOST456 "), list, []string{"S3 refuses it: InvalidArgument: Many lines"}},
		"an endless one":         {s3Error(400, "InvalidArgument", strings.Repeat("word ", 10_000)), list, []string{"InvalidArgument", "…"}},
		"a table that is not so": {dynamoError(400, "ValidationException", "One or more parameter values were invalid"), scan, []string{"DynamoDB refuses it: ValidationException: One or more"}},
		"not what was asked":     {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html") }, list, []string{"answer of S3 cannot be read"}}, //nolint:errcheck // the client's error shows it
		"without end": {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.Repeat("<a>", 3<<20)) }, func(ctx context.Context, cfg aws.Config) error {
			cfg.HTTPClient = answers.S3(cfg.HTTPClient)
			return list(ctx, cfg)
		}, []string{"S3: the answer is too long: more than"}}, //nolint:errcheck // as above
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(c.answer)
			defer server.Close()
			on := "bucket builds"
			if strings.Contains(name, "table") {
				on = "table Copies"
			}
			cause := c.call(t.Context(), settings(server.URL))
			check(t, cause, Explain(cause, on), c.want...)
			if got, want := Unreached(Explain(cause, on)), strings.HasPrefix(name, "throttled") || strings.HasPrefix(name, "out of order"); got != want {
				t.Errorf("unreached: %t, expected %t", got, want)
			}
		})
	}
}

// check looks for words, for none of the innards, and for the SDK's error in the chain.
func check(t *testing.T, cause, err error, want ...string) {
	t.Helper()
	if cause == nil || err == nil {
		t.Fatal("no error")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q lacks %q", err, w)
		}
	}
	for _, i := range innards {
		if strings.Contains(err.Error(), i) {
			t.Errorf("%q holds %q", err, i)
		}
	}
	if len(err.Error()) > 2*maxReason {
		t.Errorf("%d bytes", len(err.Error()))
	}
	if !errors.Is(err, cause) || Code(err) != Code(cause) || Status(err) != Status(cause) {
		t.Errorf("%v is not its cause any more", err)
	}
}

// TestNoAnswer explains why a server did not answer.
func TestNoAnswer(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + closed.Addr().String()
	closed.Close()
	t.Setenv("AWS_ENDPOINT_URL_S3", nobody)
	err = headBucket(t.Context(), settings(nobody))
	check(t, err, Explain(err, "bucket builds"), "nothing answers at "+nobody, "connection refused", "AWS_ENDPOINT_URL_S3")
	err = scan(t.Context(), settings(nobody))
	if check(t, err, Explain(err, "table Copies"), "nothing answers at "+nobody); strings.Contains(Explain(err, "").Error(), "AWS_ENDPOINT_URL_S3") {
		t.Error("S3's variable is named for DynamoDB")
	}
	if !Unreached(err) {
		t.Errorf("%v is an answer", err)
	}

	hung := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hung }))
	defer server.Close()
	defer close(hung)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	<-ctx.Done()
	err = list(ctx, settings(server.URL))
	check(t, err, Explain(err, "bucket builds"), "no answer in time")
	if err = Explain(err, ""); !errors.Is(err, context.DeadlineExceeded) || !Unreached(err) {
		t.Errorf("%v is no time-out any more", err)
	}
	cancelled, end := context.WithCancel(t.Context())
	end()
	if err = list(cancelled, settings(server.URL)); err == nil || Unreached(err) {
		t.Errorf("cancelled: %v", err)
	}

	lost := settings("http://nowhere.invalid")
	err = list(t.Context(), lost)
	check(t, err, Explain(err, "bucket builds"), "nowhere.invalid", "cannot be reached")

	nowhere := settings("")
	nowhere.Region, nowhere.BaseEndpoint = "", nil
	for _, call := range []func(context.Context, aws.Config) error{list, scan} {
		err = call(t.Context(), nowhere)
		check(t, err, Explain(err, "it"), "no AWS region is set", "AWS_REGION", "--table-region", "--bucket-region")
		if Unreached(err) {
			t.Errorf("without a region it was asked: %v", err)
		}
	}
}

// TestCredentials explains why there are none.
func TestCredentials(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"none":    {errors.New("failed to refresh cached credentials, no EC2 IMDS role found, operation error ec2imds: GetMetadata, exceeded maximum number of attempts"), "no AWS credentials were found"},
		"sso":     {errors.New("the SSO session has expired or is invalid: open token"), "have expired"},
		"late":    {fmt.Errorf("assume role: %w", context.DeadlineExceeded), "in time"},
		"another": {fmt.Errorf("refresh: %w", errors.New("profile builds: no such file")), "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := settings("http://127.0.0.1:1")
			cfg.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return aws.Credentials{}, c.err })
			err := list(t.Context(), cfg)
			check(t, err, Explain(err, "bucket builds"), c.want)
			if Unreached(err) {
				t.Errorf("without credentials it was asked: %v", err)
			}
		})
	}
}

// TestWhatDecidesStays: sentinels, types and retry decisions see through.
func TestWhatDecidesStays(t *testing.T) {
	if Explain(nil, "") != nil {
		t.Error("nil became an error")
	}
	if plain := errors.New("plain"); Explain(plain, "") != plain {
		t.Error("an error of nobody's call is changed")
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(400)
		io.WriteString(w, `{"__type":"x#ProvisionedThroughputExceededException","message":"slower"}`) //nolint:errcheck // the client's error shows it
	}))
	defer server.Close()
	err := Explain(scan(t.Context(), settings(server.URL)), "table Copies")
	if again := Explain(fmt.Errorf("reading: %w", err), "another"); again.Error() != "reading: "+err.Error() {
		t.Errorf("explained twice: %v", again)
	}
	var throttled *ddbtypes.ProvisionedThroughputExceededException
	if !errors.As(err, &throttled) || retry.IsErrorThrottles(retry.DefaultThrottles).IsErrorThrottle(err) != aws.TrueTernary {
		t.Errorf("%v is not throttling any more", err)
	}
	kind := errors.New("no such object")
	if both := As(kind, err); both.Error() != kind.Error() || !errors.Is(both, kind) || !errors.As(both, &throttled) {
		t.Errorf("%v", both)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Explain(scan(ctx, settings(server.URL)), ""); !errors.Is(err, context.Canceled) || err.Error() != "cancelled" {
		t.Errorf("%v", err)
	}
}

// TestLog: the SDK's own lines and its whole errors go to the log, at their levels.
func TestLog(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Amz-Request-Id", "REQUEST123")
		w.WriteHeader(403)
	}))
	defer server.Close()
	var out strings.Builder
	logger := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg := Log(settings(server.URL), logger)
	if err := headBucket(t.Context(), cfg); err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"level=DEBUG", `msg="call of AWS failed"`, "service=S3", "operation=HeadBucket", "REQUEST123"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("log lacks %s:\n%s", want, &out)
		}
	}
	cfg.Logger.Logf(logging.Warn, "no checksum,\n%d", 7)
	if !strings.Contains(out.String(), `level=WARN msg="AWS SDK" message="no checksum, 7"`) {
		t.Errorf("log:\n%s", &out)
	}
}
