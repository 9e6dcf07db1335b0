package devcloud

import (
	"context"
	"math"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3response"
)

// files is the posix backend with ListMultipartUploads mended: versitygw's own
// answers every page after the first with InvalidArgument.
type files struct{ *posix.Posix }

// ListMultipartUploads lists in the order of keys, then of upload ids, so that
// a page can begin after an upload that has been aborted since.
func (f files) ListMultipartUploads(ctx context.Context, in *s3.ListMultipartUploadsInput) (s3response.ListMultipartUploadsResult, error) {
	list, err := f.Posix.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{
		Bucket: in.Bucket, Prefix: in.Prefix, MaxUploads: aws.Int32(math.MaxInt32),
	})
	if err != nil {
		return list, err
	}
	list.KeyMarker = aws.ToString(in.KeyMarker)
	list.UploadIDMarker = aws.ToString(in.UploadIdMarker)
	list.Delimiter = aws.ToString(in.Delimiter)
	list.MaxUploads = int(aws.ToInt32(in.MaxUploads))

	uploads := slices.DeleteFunc(list.Uploads, func(u s3response.Upload) bool {
		if list.KeyMarker == "" || u.Key > list.KeyMarker {
			// A marker that is a common prefix stands for all keys below it.
			return list.Delimiter != "" && strings.HasSuffix(list.KeyMarker, list.Delimiter) && strings.HasPrefix(u.Key, list.KeyMarker)
		}
		return u.Key < list.KeyMarker || list.UploadIDMarker == "" || u.UploadID <= list.UploadIDMarker
	})
	slices.SortFunc(uploads, func(a, b s3response.Upload) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		return strings.Compare(a.UploadID, b.UploadID)
	})
	page, err := backend.ListMultipartUploads(uploads, list.Prefix, list.Delimiter, "", "", list.MaxUploads)
	if err != nil {
		return list, err
	}
	list.Uploads, list.CommonPrefixes = page.Uploads, page.CommonPrefixes
	list.IsTruncated, list.NextKeyMarker, list.NextUploadIDMarker = page.IsTruncated, page.NextKeyMarker, page.NextUploadIDMarker
	return list, nil
}
