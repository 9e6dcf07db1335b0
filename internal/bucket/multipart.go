package bucket

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// Condition is what must hold of the key's object for a write to take place. The
// zero Condition always holds; at most one field is to be set.
type Condition struct {
	// IfNoneMatch asks that there be no object.
	IfNoneMatch bool
	// IfMatch is the ETag that the object must have; empty asks nothing.
	IfMatch string
}

func (c Condition) headers() (ifMatch, ifNoneMatch *string) {
	if c.IfNoneMatch {
		ifNoneMatch = aws.String("*")
	}
	if c.IfMatch != "" {
		ifMatch = &c.IfMatch
	}
	return ifMatch, ifNoneMatch
}

// Part is one part of a multipart upload that S3 has.
type Part struct {
	// Number counts from 0; S3's own numbers begin at 1.
	Number int
	ETag   string
	// SHA256 is nil when S3 did not compute it.
	SHA256 []byte
	// Size is in bytes.
	Size int64
}

// CreateUpload begins a multipart upload whose parts carry SHA-256 digests and
// whose object gets the composite of them.
func (b *Bucket) CreateUpload(ctx context.Context, key string, h Headers) (uploadID string, err error) {
	out, err := b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket:             &b.name,
		Key:                &key,
		ContentType:        optional(h.ContentType),
		CacheControl:       optional(h.CacheControl),
		ContentEncoding:    optional(h.ContentEncoding),
		ContentDisposition: optional(h.ContentDisposition),
		ContentLanguage:    optional(h.ContentLanguage),
		Metadata:           h.Metadata,
		ChecksumAlgorithm:  types.ChecksumAlgorithmSha256,
		ChecksumType:       types.ChecksumTypeComposite,
	}, withExpires(h.Expires))
	if err != nil {
		return "", b.wrap("beginning upload of", key, err, ErrExists)
	}
	if aws.ToString(out.UploadId) == "" {
		return "", fmt.Errorf("beginning upload of %s in %s: the answer names no upload", key, b.name)
	}
	return *out.UploadId, nil
}

// UploadPart sends a part, numbered from 0, of length bytes. S3 refuses it with
// ErrDigest when the bytes do not have the SHA-256; that digest also signs the
// request, so the body is read once. ErrNoUpload says that the upload is gone.
func (b *Bucket) UploadPart(ctx context.Context, key, uploadID string, part int, body io.ReadSeeker, length int64, sum []byte) (etag string, err error) {
	out, err := b.client.UploadPart(ctx, &s3.UploadPartInput{
		Bucket:            &b.name,
		Key:               &key,
		UploadId:          &uploadID,
		PartNumber:        aws.Int32(int32(part + 1)),
		Body:              body,
		ContentLength:     &length,
		ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
		ChecksumSHA256:    encodeSum(sum),
	}, signWith(sum))
	if err != nil {
		return "", b.wrap("uploading a part of", key, err, nil)
	}
	return aws.ToString(out.ETag), nil
}

// signWith tells the signer the SHA-256 of the body. It has to be a middleware,
// since a call of the SDK begins by forgetting what its context says of it.
func signWith(sum []byte) func(*s3.Options) {
	payload := hex.EncodeToString(sum)
	return s3.WithAPIOptions(func(stack *middleware.Stack) error {
		return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("LandfallPayloadHash",
			func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
				return next.HandleInitialize(v4.SetPayloadHash(ctx, payload), in)
			}), middleware.After)
	})
}

// ListParts returns the parts that the upload has, by number, or ErrNoUpload.
func (b *Bucket) ListParts(ctx context.Context, key, uploadID string) ([]Part, error) {
	in := &s3.ListPartsInput{Bucket: &b.name, Key: &key, UploadId: &uploadID}
	var parts []Part
	var so pages
	for {
		out, err := b.client.ListParts(ctx, in)
		if err != nil {
			return nil, b.wrap("listing parts of", key, err, nil)
		}
		for _, p := range out.Parts {
			parts = append(parts, Part{
				Number: int(aws.ToInt32(p.PartNumber)) - 1,
				ETag:   aws.ToString(p.ETag),
				SHA256: decodeSum(p.ChecksumSHA256),
				Size:   aws.ToInt64(p.Size),
			})
		}
		if !aws.ToBool(out.IsTruncated) {
			return parts, nil
		}
		next := aws.ToString(out.NextPartNumberMarker)
		err = so.next(next, len(out.Parts))
		if err == nil && len(parts) > manifest.MaxParts {
			err = fmt.Errorf("more than the %d parts that there can be", manifest.MaxParts)
		}
		if err != nil {
			return nil, fmt.Errorf("listing parts of %s in %s: %w", key, b.name, err)
		}
		in.PartNumberMarker = &next
	}
}

// CompleteUpload makes the object of the parts, which are in order. A condition
// that does not hold is ErrExists, or ErrNotFound where IfMatch names an object
// and there is none; ErrNoUpload, ErrConflict and ErrPart as they say.
func (b *Bucket) CompleteUpload(ctx context.Context, key, uploadID string, parts []Part, c Condition) (etag string, err error) {
	out, err := b.complete(ctx, key, uploadID, parts, c)
	if err != nil {
		return "", err
	}
	return aws.ToString(out.ETag), nil
}

func (b *Bucket) complete(ctx context.Context, key, uploadID string, parts []Part, c Condition) (*s3.CompleteMultipartUploadOutput, error) {
	in := &s3.CompleteMultipartUploadInput{
		Bucket:          &b.name,
		Key:             &key,
		UploadId:        &uploadID,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: make([]types.CompletedPart, len(parts))},
		ChecksumType:    types.ChecksumTypeComposite,
	}
	in.IfMatch, in.IfNoneMatch = c.headers()
	for i, p := range parts {
		in.MultipartUpload.Parts[i] = types.CompletedPart{
			PartNumber:     aws.Int32(int32(p.Number + 1)),
			ETag:           aws.String(p.ETag),
			ChecksumSHA256: encodeSum(p.SHA256),
		}
	}
	out, err := b.client.CompleteMultipartUpload(ctx, in)
	if err != nil {
		return nil, b.wrap("completing upload of", key, err, ErrExists)
	}
	return out, nil
}

// AbortUpload ends an upload and frees its parts. One that is gone already is no
// error.
func (b *Bucket) AbortUpload(ctx context.Context, key, uploadID string) error {
	_, err := b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{
		Bucket: &b.name, Key: &key, UploadId: &uploadID,
	})
	if err == nil {
		return nil
	}
	if err = b.wrap("aborting upload of", key, err, nil); errors.Is(err, ErrNoUpload) || errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Uploads returns the unfinished uploads of exactly that key.
func (b *Bucket) Uploads(ctx context.Context, key string) ([]string, error) {
	in := &s3.ListMultipartUploadsInput{Bucket: &b.name, Prefix: &key, EncodingType: types.EncodingTypeUrl}
	var ids []string
	var so pages
	for {
		out, err := b.client.ListMultipartUploads(ctx, in)
		if err != nil {
			return nil, b.wrap("listing uploads of", key, err, nil)
		}
		for _, u := range out.Uploads {
			k, err := decodeKey(aws.ToString(u.Key), out.EncodingType)
			if err != nil {
				return nil, fmt.Errorf("listing uploads of %s in %s: %w", key, b.name, err)
			}
			if k == key {
				ids = append(ids, aws.ToString(u.UploadId))
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return ids, nil
		}
		nextKey, err := decodeKey(aws.ToString(out.NextKeyMarker), out.EncodingType)
		if err != nil {
			return nil, fmt.Errorf("listing uploads of %s in %s: %w", key, b.name, err)
		}
		nextID := aws.ToString(out.NextUploadIdMarker)
		err = so.next(nextKey+"\x00"+nextID, len(out.Uploads))
		if err == nil && len(ids) > maxUploads {
			err = fmt.Errorf("more than %d are unfinished; a lifecycle rule of the bucket can end them (AbortIncompleteMultipartUpload)", maxUploads)
		}
		if err != nil {
			return nil, fmt.Errorf("listing uploads of %s in %s: %w", key, b.name, err)
		}
		in.KeyMarker, in.UploadIdMarker = &nextKey, optional(nextID)
	}
}

// put stores a short object. Errors are those of CompleteUpload.
func (b *Bucket) put(ctx context.Context, key string, body []byte, h Headers, c Condition) (etag string, err error) {
	sum := sha256.Sum256(body)
	in := &s3.PutObjectInput{
		Bucket:             &b.name,
		Key:                &key,
		Body:               bytes.NewReader(body),
		ContentType:        optional(h.ContentType),
		CacheControl:       optional(h.CacheControl),
		ContentEncoding:    optional(h.ContentEncoding),
		ContentDisposition: optional(h.ContentDisposition),
		ContentLanguage:    optional(h.ContentLanguage),
		Metadata:           h.Metadata,
		ChecksumAlgorithm:  types.ChecksumAlgorithmSha256,
		ChecksumSHA256:     encodeSum(sum[:]),
	}
	in.IfMatch, in.IfNoneMatch = c.headers()
	out, err := b.client.PutObject(ctx, in, signWith(sum[:]), withExpires(h.Expires))
	if err != nil {
		return "", b.wrap("storing", key, err, ErrExists)
	}
	return aws.ToString(out.ETag), nil
}

// optional leaves a header out when there is nothing to say.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func encodeSum(sum []byte) *string {
	if len(sum) == 0 {
		return nil
	}
	return aws.String(base64.StdEncoding.EncodeToString(sum))
}

func decodeSum(s *string) []byte {
	sum, err := base64.StdEncoding.DecodeString(aws.ToString(s))
	if err != nil || len(sum) != sha256.Size {
		return nil
	}
	return sum
}
