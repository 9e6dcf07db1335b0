// Package bucket is one S3 bucket: the calls that Landfall makes of it, and what
// their errors mean. It works against AWS and against servers that speak the S3
// API behind an endpoint of their own.
//
// It knows nothing of builds, executions or parts that are ready; what is sent
// when, and under which condition, is decided by its callers.
package bucket

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/landfall-dist/landfall/internal/answers"
	"github.com/landfall-dist/landfall/internal/awserr"
	"github.com/landfall-dist/landfall/internal/limits"
)

const (
	// defaultRegion is where buckets without a location constraint are, and the
	// region whose endpoint can be asked about any bucket.
	defaultRegion = "us-east-1"
	// regionHeader tells a bucket's region in answers of every status.
	regionHeader = "X-Amz-Bucket-Region"
)

// Object is one object of a bucket.
type Object struct {
	// Key is carried byte for byte.
	Key string
	// ETag is as S3 gives it, quotes included.
	ETag string
	// Size is in bytes.
	Size int64
	// Headers are empty in a listing.
	Headers
	// Composite is the SHA-256 of its parts' SHA-256 in base64, and their number, as S3
	// has it of an upload whose parts have one; empty in a listing, and where it keeps none.
	Composite string
	// LastModified is zero in the answer to an upload.
	LastModified time.Time
	// Checksum is what the store says of the bytes; only Head asks for it.
	Checksum Checksum

	md5 Checksum // the ETag, where it can be one
}

// Options are the choices that Open leaves to its caller.
type Options struct {
	// Region is the AWS region of the bucket. Empty means what HeadBucket
	// answers, then that of the aws.Config.
	Region string
}

// Bucket is a bucket that was found. It is safe for concurrent use.
type Bucket struct {
	client *s3.Client
	name   string
	region string
	// uploads is what the streams under way hold of memory.
	uploads memory
	etags   etags
	// reads is the limit of what GetRange reads; nil for none.
	reads atomic.Pointer[limits.Limiter]
}

// Open finds the bucket and its region with HeadBucket. Addresses are path-style
// whenever an endpoint is set, in cfg or by AWS_ENDPOINT_URL or
// AWS_ENDPOINT_URL_S3. A bucket that does not exist is ErrNoBucket.
func Open(ctx context.Context, cfg aws.Config, name string, o Options) (*Bucket, error) {
	region := cmp.Or(o.Region, cfg.Region, defaultRegion)
	b := &Bucket{client: newClient(cfg, region), name: name, region: region}
	answered, err := b.head(ctx)
	if o.Region == "" && answered != "" && answered != region {
		// Asked in the wrong place, S3 answers 301 or 400 and says the right one.
		b.region, b.client = answered, newClient(cfg, answered)
		if err != nil {
			_, err = b.head(ctx)
		}
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Create makes the bucket in the region unless the caller's account has it
// already: then created is false. An empty region is that of cfg, else
// us-east-1.
func Create(ctx context.Context, cfg aws.Config, name, region string) (created bool, err error) {
	region = cmp.Or(region, cfg.Region, defaultRegion)
	_, err = Open(ctx, cfg, name, Options{})
	if !errors.Is(err, ErrNoBucket) {
		return false, err
	}
	in := &s3.CreateBucketInput{Bucket: &name}
	if region != defaultRegion {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{
			LocationConstraint: types.BucketLocationConstraint(region),
		}
	}
	_, err = newClient(cfg, region).CreateBucket(ctx, in)
	if owned := (*types.BucketAlreadyOwnedByYou)(nil); errors.As(err, &owned) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("creating bucket %s in %s: %w", name, region, awserr.Explain(err, "bucket "+name))
	}
	return true, nil
}

func newClient(cfg aws.Config, region string) *s3.Client {
	return s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.Region = region
		o.UsePathStyle = o.BaseEndpoint != nil
		o.HTTPClient = answers.S3(o.HTTPClient)
		// Only ranges are read, which carry no checksum that could be verified;
		// what was read is compared with that of the whole object (see Checksum).
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})
}

// LimitReads has what is read by GetRange come no faster than a limit; nil for none.
func (b *Bucket) LimitReads(l *limits.Limiter) { b.reads.Store(l) }

// Name is the bucket's name.
func (b *Bucket) Name() string { return b.name }

// Region is the AWS region of the bucket, which need not be the region that
// Landfall's users speak of.
func (b *Bucket) Region() string { return b.region }

// Check asks whether the bucket is there and may be used.
func (b *Bucket) Check(ctx context.Context) error {
	_, err := b.head(ctx)
	return err
}

// Clock is the time that the bucket's server says it is, to the second; where it says
// none, as the embedded one does, that of this host.
func (b *Bucket) Clock(ctx context.Context) (time.Time, error) {
	out, err := b.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &b.name})
	if err != nil {
		return time.Time{}, b.wrap("looking for bucket", "", err, nil)
	}
	if at, ok := awsmiddleware.GetServerTime(out.ResultMetadata); ok && !at.IsZero() {
		return at, nil
	}
	return time.Now(), nil
}

// head calls HeadBucket. The region may be known even when the call failed.
func (b *Bucket) head(ctx context.Context) (region string, err error) {
	in := &s3.HeadBucketInput{Bucket: &b.name}
	out, err := b.client.HeadBucket(ctx, in)
	if awserr.Skewed(err) {
		// An answer to HEAD has no code by which the SDK would try again; from its time the
		// client knows by now how far this host's clock is off.
		out, err = b.client.HeadBucket(ctx, in)
	}
	if err == nil {
		return aws.ToString(out.BucketRegion), nil
	}
	var response *awshttp.ResponseError
	if errors.As(err, &response) && response.Response != nil {
		region = response.Response.Header.Get(regionHeader)
	}
	if awserr.Status(err) == http.StatusNotFound {
		return region, fmt.Errorf("%w: %s (`seeder init` makes missing buckets)", ErrNoBucket, b.name)
	}
	return region, b.wrap("looking for bucket", "", err, nil)
}

// Head returns the object of that key, or ErrNotFound.
func (b *Bucket) Head(ctx context.Context, key string) (*Object, error) {
	in := &s3.HeadObjectInput{Bucket: &b.name, Key: &key, ChecksumMode: types.ChecksumModeEnabled}
	out, err := b.client.HeadObject(ctx, in)
	if awserr.Status(err) == http.StatusNotImplemented { // a store that knows no checksums
		in.ChecksumMode = ""
		out, err = b.client.HeadObject(ctx, in)
	}
	if err != nil {
		return nil, b.wrap("looking for", key, b.reason(ctx, key, err), nil)
	}
	return &Object{
		Key:          key,
		ETag:         aws.ToString(out.ETag),
		Size:         aws.ToInt64(out.ContentLength),
		Headers:      headersOf(out),
		Composite:    compositeOf(aws.ToString(out.ChecksumSHA256)),
		LastModified: aws.ToTime(out.LastModified),
		Checksum:     checksumOf(out),
		md5:          md5Of(out),
	}, nil
}

// compositeOf is a checksum that is one of parts.
func compositeOf(sum string) string {
	if !strings.Contains(sum, "-") {
		return ""
	}
	return sum
}

// reason asks once more for an object that HEAD has refused, by a GET of one byte: the
// answer to a HEAD has no body that could say why.
func (b *Bucket) reason(ctx context.Context, key string, refused error) error {
	if s := awserr.Status(refused); s != http.StatusBadRequest && s != http.StatusForbidden {
		return refused
	}
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key, Range: aws.String("bytes=0-0")})
	if err == nil {
		out.Body.Close()
		return refused
	}
	if s := awserr.Status(err); s != http.StatusBadRequest && s != http.StatusForbidden {
		return refused
	}
	return err
}

// List calls fn for every object whose key begins with prefix, in the order of
// S3 (ListObjectsV2), page by page. The first error of fn ends it and is
// returned as it is.
func (b *Bucket) List(ctx context.Context, prefix string, fn func(Object) error) error {
	in := &s3.ListObjectsV2Input{
		Bucket: &b.name,
		Prefix: &prefix,
		// XML cannot hold every character that a key may have.
		EncodingType: types.EncodingTypeUrl,
	}
	var so pages
	for {
		out, err := b.client.ListObjectsV2(ctx, in)
		if err != nil {
			return b.wrap("listing", prefix, err, nil)
		}
		for _, o := range out.Contents {
			key, err := decodeKey(aws.ToString(o.Key), out.EncodingType)
			if err != nil {
				return fmt.Errorf("listing %s: %w", b.name, err)
			}
			if err := fn(Object{
				Key:          key,
				ETag:         aws.ToString(o.ETag),
				Size:         aws.ToInt64(o.Size),
				LastModified: aws.ToTime(o.LastModified),
			}); err != nil {
				return err
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return nil
		}
		next := aws.ToString(out.NextContinuationToken)
		if err := so.next(next, len(out.Contents)); err != nil {
			return fmt.Errorf("listing %s: %w", b.name, err)
		}
		in.ContinuationToken = &next
	}
}

// decodeKey undoes the url encoding of a listing. A server that does not know it
// does not name it in its answer.
func decodeKey(key string, encoding types.EncodingType) (string, error) {
	if encoding != types.EncodingTypeUrl {
		return key, nil
	}
	return url.QueryUnescape(key) // S3 writes a space as +
}

// GetRange reads length bytes from offset of the object that has the ETag; any
// when the ETag is empty. ErrChanged says that the key has another object now,
// ErrNotFound that it has none. The reader gives at most length bytes, and an
// error when the connection breaks earlier.
func (b *Bucket) GetRange(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, error) {
	if length == 0 {
		return http.NoBody, nil // HTTP has no empty range
	}
	bytes := fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
	in := &s3.GetObjectInput{Bucket: &b.name, Key: &key, Range: &bytes}
	if etag != "" {
		in.IfMatch = &etag
	}
	out, err := b.client.GetObject(ctx, in)
	if err != nil {
		return nil, b.wrap("reading", key, err, ErrChanged)
	}
	got, start := aws.ToInt64(out.ContentLength), fmt.Sprintf("bytes %d-", offset)
	if got != length || !strings.HasPrefix(aws.ToString(out.ContentRange), start) {
		out.Body.Close()
		return nil, fmt.Errorf("reading %s in %s: asked for %s, got %d bytes of range %q",
			key, b.name, bytes, got, aws.ToString(out.ContentRange))
	}
	return b.reads.Load().ReadCloser(ctx, out.Body), nil
}
