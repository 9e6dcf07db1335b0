package answers

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// service answers every request.
type service func(r *http.Request) (*http.Response, error)

func (f service) Do(r *http.Request) (*http.Response, error) { return f(r) }

func (f service) config() aws.Config {
	return aws.Config{
		Region:       "us-east-1",
		BaseEndpoint: aws.String("http://service.invalid"),
		Credentials:  credentials.NewStaticCredentialsProvider("test", "test", ""),
		HTTPClient:   f,
	}
}

func (f service) s3() *s3.Client {
	return s3.NewFromConfig(f.config(), func(o *s3.Options) { o.HTTPClient, o.UsePathStyle = S3(o.HTTPClient), true })
}

func (f service) dynamoDB() *dynamodb.Client {
	return dynamodb.NewFromConfig(f.config(), func(o *dynamodb.Options) { o.HTTPClient = DynamoDB(o.HTTPClient) })
}

// body is an answer's, and ends with the request.
type body struct {
	io.Reader
	ctx context.Context
}

func (b body) Close() error { return nil }

func answer(r *http.Request, body io.ReadCloser) *http.Response {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: body, ContentLength: -1, Request: r}
}

// drops gives a byte at a time, each after a pause.
type drops struct {
	ctx   context.Context
	pause time.Duration
}

func (d drops) Read(p []byte) (int, error) {
	select {
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	case <-time.After(d.pause):
		p[0] = ' '
		return 1, nil
	}
}

func hang(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func hangInBody(r *http.Request) (*http.Response, error) {
	return answer(r, body{io.MultiReader(strings.NewReader("<"), drops{r.Context(), time.Hour}), r.Context()}), nil
}

func trickle(r *http.Request) (*http.Response, error) {
	return answer(r, body{drops{r.Context(), time.Second}, r.Context()}), nil
}

// A service that sends nothing, at once or in the middle of its answer, or next to
// nothing, is not waited for; and the call is made once.
func TestStalledAnswers(t *testing.T) {
	calls := map[string]func(ctx context.Context, f service) error{
		"GetObject": func(ctx context.Context, f service) error {
			out, err := f.s3().GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("b"), Key: aws.String("k")})
			if err != nil {
				return err
			}
			defer out.Body.Close()
			_, err = io.Copy(io.Discard, out.Body)
			return err
		},
		"ListObjectsV2": func(ctx context.Context, f service) error {
			_, err := f.s3().ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String("b")})
			return err
		},
		"HeadObject": func(ctx context.Context, f service) error {
			_, err := f.s3().HeadObject(ctx, &s3.HeadObjectInput{Bucket: aws.String("b"), Key: aws.String("k")})
			return err
		},
		"UploadPart": func(ctx context.Context, f service) error {
			_, err := f.s3().UploadPart(ctx, &s3.UploadPartInput{Bucket: aws.String("b"), Key: aws.String("k"),
				UploadId: aws.String("u"), PartNumber: aws.Int32(1), Body: bytes.NewReader(make([]byte, 1000))})
			return err
		},
		"CompleteMultipartUpload": func(ctx context.Context, f service) error {
			_, err := f.s3().CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: aws.String("b"), Key: aws.String("k"), UploadId: aws.String("u")})
			return err
		},
		"Scan": func(ctx context.Context, f service) error {
			_, err := f.dynamoDB().Scan(ctx, &dynamodb.ScanInput{TableName: aws.String("t")})
			return err
		},
	}
	for _, c := range []struct {
		fault string
		do    service
		calls []string
	}{
		{"no head", hang, []string{"GetObject", "ListObjectsV2", "HeadObject", "UploadPart", "CompleteMultipartUpload", "Scan"}},
		{"half a body", hangInBody, []string{"GetObject", "ListObjectsV2", "CompleteMultipartUpload", "Scan"}},
		{"a trickle", trickle, []string{"GetObject", "ListObjectsV2"}},
	} {
		for _, name := range c.calls {
			t.Run(c.fault+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					made := 0
					err := calls[name](t.Context(), func(r *http.Request) (*http.Response, error) { made++; return c.do(r) })
					if !errors.Is(err, ErrStalled) || made != 1 {
						t.Errorf("after %d calls: %v", made, err)
					}
				})
			})
		}
	}
}

// Whoever reads slowly, or sends slowly, is not taken for a service that is.
func TestSlowIsNotStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 200 << 10
		var f service = func(r *http.Request) (*http.Response, error) {
			// As fast as leastBytes in readTimeout, and a little.
			return answer(r, body{io.LimitReader(drops{r.Context(), readTimeout / (leastBytes + 100)}, size), r.Context()}), nil
		}
		out, err := f.s3().GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("b"), Key: aws.String("k")})
		if err != nil {
			t.Fatal(err)
		}
		defer out.Body.Close()
		for left := size; left > 0; {
			n, err := out.Body.Read(make([]byte, 1000))
			if err != nil {
				t.Fatalf("with %d bytes left: %v", left, err)
			}
			if left -= n; left == size/2 {
				time.Sleep(2 * readTimeout) // the disk is slow
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var f service = func(r *http.Request) (*http.Response, error) {
			for buf := make([]byte, 10); ; {
				time.Sleep(writeTimeout / 2)
				if _, err := r.Body.Read(buf); err == io.EOF {
					return answer(r, http.NoBody), nil
				} else if err != nil || r.Context().Err() != nil {
					return nil, errors.Join(err, r.Context().Err())
				}
			}
		}
		_, err := f.s3().PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("b"), Key: aws.String("k"), Body: bytes.NewReader(make([]byte, 100))})
		if err != nil {
			t.Error(err)
		}
	})
}

// repeat gives a text for ever, and counts.
type repeat struct {
	text string
	n    *int64
}

func (r repeat) Read(p []byte) (int, error) {
	n := 0
	for n+len(r.text) <= len(p) {
		n += copy(p[n:], r.text)
	}
	if n == 0 {
		n = copy(p, r.text)
	}
	*r.n += int64(n)
	return n, nil
}

func TestEndlessAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		begin, text string
		status      int
		most        int64
		call        func(ctx context.Context, f service) error
	}{
		"listing": {"<ListBucketResult>", "<Contents><Key>a</Key></Contents>", 200, maxAnswer, func(ctx context.Context, f service) error {
			_, err := f.s3().ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String("b")})
			return err
		}},
		"one element": {"<ListBucketResult><Contents><Key>", "aaaaaaaaaaaaaaaa", 200, maxAnswer, func(ctx context.Context, f service) error {
			_, err := f.s3().ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String("b")})
			return err
		}},
		"an object's error": {"<Error><Message>", "aaaaaaaaaaaaaaaa", 403, maxAnswer, func(ctx context.Context, f service) error {
			_, err := f.s3().GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("b"), Key: aws.String("k")})
			return err
		}},
		"table": {`{"Items":[`, `{"fileKey":{"S":"a"}},`, 200, maxTableAnswer, func(ctx context.Context, f service) error {
			_, err := f.dynamoDB().Scan(ctx, &dynamodb.ScanInput{TableName: aws.String("t")})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var read int64
			err := c.call(t.Context(), func(r *http.Request) (*http.Response, error) {
				res := answer(r, body{io.MultiReader(strings.NewReader(c.begin), repeat{c.text, &read}), r.Context()})
				res.StatusCode = c.status
				return res, nil
			})
			if !errors.Is(err, ErrTooLong) || read > c.most+1 {
				t.Errorf("after %d bytes: %v", read, err)
			}
		})
	}
}

// A caller that has gone hears that, not that the service was slow.
func TestCallerGone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var f service = func(r *http.Request) (*http.Response, error) { cancel(); return hang(r) }
	_, err := f.s3().HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String("b")})
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrStalled) {
		t.Errorf("ended with %v", err)
	}
}
