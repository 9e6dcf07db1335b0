//go:build linux

package chaos

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/landfall-dist/landfall/internal/ledger"
)

// watchInterval is the pause between two looks at a bucket or the table: what is
// wrong there stays until the next landing.
const watchInterval = 200 * time.Millisecond

// watch looks at every regional bucket and at the table as long as the world
// stands: whatever is visible is whole and verified, at every moment.
type watch struct {
	w      *World
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// arrived are the arrivals that were checked, by execution and bucket.
	arrived map[[2]string]bool
}

func startWatch(w *World) *watch {
	v := &watch{w: w, arrived: make(map[[2]string]bool)}
	v.ctx, v.cancel = context.WithCancel(context.Background())
	for _, b := range w.Buckets {
		seen := make(map[string]bool)
		v.every(func() { v.bucket(b, seen) })
	}
	v.every(v.table)
	return v
}

func (v *watch) end() {
	v.cancel()
	v.wg.Wait()
}

// every calls f again and again until the end.
func (v *watch) every(f func()) {
	v.wg.Go(func() {
		for v.ctx.Err() == nil {
			f()
			select {
			case <-v.ctx.Done():
			case <-time.After(watchInterval):
			}
		}
	})
}

// keys are those that were ever published.
func (w *World) keys() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	keys := make([]string, 0, len(w.builds))
	for k := range w.builds {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// published is the version of a key with a digest; nil when there is none.
func (w *World) published(key, digest string) *Version {
	w.mu.Lock()
	defer w.mu.Unlock()
	h, ok := w.builds[key]
	if !ok {
		return nil
	}
	return h.versions[digest]
}

// embeddedTemporary is in the names of files that the embedded S3 is about to
// rename to an object's, and lists for that moment.
const embeddedTemporary = ".sgwtmp."

// bucket checks every object that was put there since the last look.
func (v *watch) bucket(bucket string, seen map[string]bool) {
	list, err := v.w.S3.ListObjectsV2(v.ctx, &s3.ListObjectsV2Input{Bucket: &bucket})
	if err != nil {
		if v.ctx.Err() == nil {
			v.w.owner.Errorf("listing %s: %v", bucket, err)
		}
		return
	}
	for _, o := range list.Contents {
		key := aws.ToString(o.Key)
		name := fmt.Sprint(key, aws.ToString(o.ETag), aws.ToTime(o.LastModified))
		if seen[name] || strings.Contains(key, embeddedTemporary) {
			continue
		}
		if err := v.w.whole(v.ctx, bucket, key); err != nil {
			if v.ctx.Err() == nil {
				v.w.owner.Errorf("%s shows %s, which is %v", bucket, key, err)
			}
			continue
		}
		seen[name] = true
	}
}

// whole reads an object and says what is wrong with it.
func (w *World) whole(ctx context.Context, bucket, key string) error {
	out, err := w.S3.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return fmt.Errorf("not readable: %w", err)
	}
	defer out.Body.Close()
	h := sha256.New()
	n, err := io.Copy(h, out.Body)
	if err != nil {
		return fmt.Errorf("not readable after %d bytes: %w", n, err)
	}
	sum := hex.EncodeToString(h.Sum(nil))
	switch v := w.published(key, sum); {
	case v == nil:
		return fmt.Errorf("%d bytes that nobody published (SHA-256 %s, metadata %v)", n, sum, out.Metadata)
	case out.Metadata["landfall-sha256"] != "" && out.Metadata["landfall-sha256"] != sum:
		return fmt.Errorf("said to have the SHA-256 %q and has %s", out.Metadata["landfall-sha256"], sum)
	case out.Metadata["landfall-execution"] == "" || out.Metadata["build-host"] != "chaos" && !v.foreign:
		return fmt.Errorf("without its metadata: %v", out.Metadata)
	}
	return nil
}

// table checks every item: it is in agreement with itself, and for every arrival
// the object is there.
func (v *watch) table() {
	err := v.w.Ledger.Scan(v.ctx, ledger.Scan{Record: func(r *ledger.Record) {
		v.w.agrees(r)
		for _, b := range r.Successful {
			if name := [2]string{r.ExecutionID, b}; !v.arrived[name] {
				v.arrived[name] = true
				v.arrival(r, b)
			}
		}
	}})
	if err != nil && v.ctx.Err() == nil {
		v.w.owner.Errorf("reading the table: %v", err)
	}
}

// arrival checks that what the table calls arrived is in the bucket. Between the
// two looks a newer execution may have begun; then the object may be its.
func (v *watch) arrival(r *ledger.Record, bucket string) {
	digest := r.Results[bucket].SHA256
	head, err := v.w.S3.HeadObject(v.ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: &r.FileKey, ChecksumMode: types.ChecksumModeEnabled})
	if err == nil && v.w.sumOf(r.FileKey, head) == digest {
		return
	}
	again := v.w.Record(r.FileKey)
	if v.ctx.Err() != nil || again == nil || again.ExecutionID != r.ExecutionID {
		return
	}
	found := "nothing"
	if err == nil {
		found = "SHA-256 " + v.w.sumOf(r.FileKey, head) + " of execution " + head.Metadata["landfall-execution"]
	} else if missing := (*types.NotFound)(nil); !errors.As(err, &missing) {
		found = err.Error()
	}
	v.w.owner.Errorf("%s of execution %s has arrived in %s with SHA-256 %s, says the table; there is %s", r.FileKey, r.ExecutionID, bucket, digest, found)
}

// sumOf is the SHA-256 of an object as it says itself: in its metadata, where it was known
// when the landing began, or by the composite of its parts.
func (w *World) sumOf(key string, head *s3.HeadObjectOutput) string {
	if sum := head.Metadata["landfall-sha256"]; sum != "" {
		return sum
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for digest, v := range w.history(key).versions {
		if sum := v.Build.Composite(); sum != "" && sum == aws.ToString(head.ChecksumSHA256) {
			return digest
		}
	}
	return ""
}

// agrees checks an item against itself.
func (w *World) agrees(r *ledger.Record) {
	if r.ExecutionID == "" {
		return // only an upload stands there
	}
	var wrong []string
	expect := func(ok bool, what string) {
		if !ok {
			wrong = append(wrong, what)
		}
	}
	status := ledger.InProgress
	switch {
	case len(r.Successful) == len(r.Destinations):
		status = ledger.Completed
	case len(r.Successful)+len(r.Failed) == len(r.Destinations):
		status = ledger.Failed
		if !slices.ContainsFunc(r.Failed, func(b string) bool { return !r.Cancelled(b) }) {
			status = ledger.Cancelled
		}
	}
	expect(r.Status == status, fmt.Sprintf("status %s, expected %s", r.Status, status))
	expect(r.SourceBucket == w.Global, "another source bucket")
	for _, b := range slices.Concat(r.Successful, r.Failed) {
		result, ok := r.Results[b]
		expect(ok, "no result for "+b)
		expect(slices.Contains(r.Destinations, b), b+" is no destination")
		expect(result.Success == slices.Contains(r.Successful, b), "wrong result for "+b)
		expect(result.Success || result.Error != "", b+" failed without a reason")
		expect(!result.Success || result.SHA256 == r.SHA256 && result.Bytes == r.Size, "another build has arrived in "+b)
	}
	for _, b := range r.Successful {
		expect(!slices.Contains(r.Failed, b), b+" is in both sets")
	}
	expect(len(r.Results) == len(r.Successful)+len(r.Failed), "results of others")
	if len(wrong) > 0 {
		w.owner.Errorf("item of %s, execution %s: %s", r.FileKey, r.ExecutionID, strings.Join(wrong, "; "))
	}
}
