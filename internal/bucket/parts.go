package bucket

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/landfall-dist/landfall/internal/awserr"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// partsPage is how many parts S3 names in one answer at most.
const partsPage = 1000

// ObjectParts returns the parts that the object with the ETag was stored in, in order, with
// size and SHA-256 and without their ETags. None where it was not stored in parts that have
// one, or its store does not name them, or not to this caller (s3:GetObjectAttributes).
// ErrNotFound and ErrChanged say that the key has no object now, or another one.
func (b *Bucket) ObjectParts(ctx context.Context, key, etag string) ([]Part, error) {
	in := &s3.GetObjectAttributesInput{
		Bucket: &b.name, Key: &key, MaxParts: aws.Int32(partsPage),
		ObjectAttributes: []types.ObjectAttributes{types.ObjectAttributesEtag, types.ObjectAttributesObjectParts},
	}
	wrong := func(err error) ([]Part, error) {
		return nil, fmt.Errorf("asking for the parts of %s in %s: %w", key, b.name, err)
	}
	var parts []Part
	var so pages
	for {
		out, err := b.client.GetObjectAttributes(ctx, in)
		switch awserr.Status(err) {
		case http.StatusBadRequest, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusNotImplemented:
			return nil, nil
		}
		if err != nil {
			return nil, b.wrap("asking for the parts of", key, err, nil)
		}
		// Here S3 writes it without quotes.
		if got := aws.ToString(out.ETag); strings.Trim(got, `"`) != strings.Trim(etag, `"`) {
			return wrong(fmt.Errorf("%w: its ETag is %q now", ErrChanged, got))
		}
		if out.ObjectParts == nil {
			return nil, nil
		}
		for _, p := range out.ObjectParts.Parts {
			part := Part{Number: len(parts), Size: aws.ToInt64(p.Size), SHA256: decodeSum(p.ChecksumSHA256)}
			if part.SHA256 == nil || int(aws.ToInt32(p.PartNumber)) != part.Number+1 {
				return nil, nil // of another algorithm, or numbers were left out
			}
			parts = append(parts, part)
		}
		if len(parts) > manifest.MaxParts {
			return wrong(fmt.Errorf("the answer names more than the %d that there can be", manifest.MaxParts))
		}
		if !aws.ToBool(out.ObjectParts.IsTruncated) {
			if total := out.ObjectParts.TotalPartsCount; total != nil && int(*total) != len(parts) {
				return wrong(fmt.Errorf("the answer names %d of %d", len(parts), *total))
			}
			return parts, nil
		}
		if len(out.ObjectParts.Parts) == 0 {
			return wrong(errors.New("the answer goes on and names none"))
		}
		next := aws.ToString(out.ObjectParts.NextPartNumberMarker)
		if err := so.next(next, len(out.ObjectParts.Parts)); err != nil {
			return wrong(err)
		}
		in.PartNumberMarker = &next
	}
}
