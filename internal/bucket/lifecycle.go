package bucket

import (
	"context"
	"errors"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/landfall-dist/landfall/internal/awserr"
)

const (
	// abortDays is after how many days an upload is aborted that nobody has completed: as
	// long as an announcement holds.
	abortDays = 7
	// abortRule is the id of the lifecycle rule that does it.
	abortRule = "landfall-abort-unfinished-uploads"
)

// errNoLifecycle is of a store that cannot be told.
var errNoLifecycle = errors.New("its store has no lifecycle rules; remove such uploads by its own means")

// AbortDays is after how many days the bucket's lifecycle rules abort an upload that nobody
// has completed; 0 for never. The error says that it is not known, as of a store that has no
// lifecycle rules.
func (b *Bucket) AbortDays(ctx context.Context) (int, error) {
	rules, err := b.lifecycle(ctx)
	if err != nil {
		return 0, err
	}
	days := 0
	for _, r := range rules {
		if a := r.AbortIncompleteMultipartUpload; a != nil && r.Status == types.ExpirationStatusEnabled && ofAll(r) {
			if n := int(aws.ToInt32(a.DaysAfterInitiation)); n > 0 && (days == 0 || n < days) {
				days = n
			}
		}
	}
	return days, nil
}

// ofAll reports whether a rule is of every key.
func ofAll(r types.LifecycleRule) bool {
	//lint:ignore SA1019 older rules have it here
	if aws.ToString(r.Prefix) != "" {
		return false
	}
	f := r.Filter
	return f == nil || aws.ToString(f.Prefix) == "" && f.And == nil && f.Tag == nil && f.ObjectSizeGreaterThan == nil && f.ObjectSizeLessThan == nil
}

func (b *Bucket) lifecycle(ctx context.Context) ([]types.LifecycleRule, error) {
	out, err := b.client.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: &b.name})
	switch {
	case err == nil:
		return out.Rules, nil
	case awserr.Code(err) == "NoSuchLifecycleConfiguration":
		return nil, nil
	case awserr.Status(err) == http.StatusNotImplemented:
		return nil, errNoLifecycle
	}
	return nil, b.wrap("reading the lifecycle rules of", "", err, nil)
}

// AbortUnfinished has a lifecycle rule abort uploads that nobody has completed after seven
// days, unless one does so already. What other rules there are stays.
func (b *Bucket) AbortUnfinished(ctx context.Context) (made bool, err error) {
	rules, err := b.lifecycle(ctx)
	if err != nil {
		return false, err
	}
	if days, err := b.AbortDays(ctx); err != nil || days > 0 {
		return false, err
	}
	rules = append(rules, types.LifecycleRule{
		ID: aws.String(abortRule), Status: types.ExpirationStatusEnabled, Filter: &types.LifecycleRuleFilter{Prefix: aws.String("")},
		AbortIncompleteMultipartUpload: &types.AbortIncompleteMultipartUpload{DaysAfterInitiation: aws.Int32(abortDays)},
	})
	_, err = b.client.PutBucketLifecycleConfiguration(ctx, &s3.PutBucketLifecycleConfigurationInput{
		Bucket: &b.name, LifecycleConfiguration: &types.BucketLifecycleConfiguration{Rules: rules},
	})
	if err != nil {
		return false, b.wrap("setting a lifecycle rule of", "", err, nil)
	}
	return true, nil
}
