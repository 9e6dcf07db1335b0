//go:build linux

package chaos

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/landfall-dist/landfall/internal/ledger"
)

const (
	// settleTimeout bounds the time from the end of all faults to the end of
	// all executions. The members' own waits go up to a minute (the seeder's,
	// after a failed pull or write), with a push/pull of 15 s and the like on
	// top.
	settleTimeout = 150 * time.Second
	// calmTimeout bounds the time until nothing is left lying about.
	calmTimeout = 60 * time.Second

	// A process may have more goroutines and files than when it was idle: the
	// engine's and the cache's for each build kept, and some for connections
	// that end by themselves, to the stores and to peers.
	goroutinesPerBuild, goroutineSlack = 6, 60
	filesPerBuild, fileSlack           = 2, 40
)

// Settle ends all faults, starts who is down, waits until every execution has
// ended as it should and checks all that must hold then.
func (w *World) Settle() {
	w.t().Helper()
	began := time.Now()
	w.heal()
	for _, m := range w.Members() {
		m.Run()
	}
	w.ready()
	ready := seconds(began)
	keys := w.keys()
	var left []string
	settled := w.within(settleTimeout, func() bool {
		left = nil
		for _, key := range keys {
			if why := w.unsettled(key); why != "" {
				left = append(left, key+": "+why)
			}
		}
		return len(left) == 0
	})
	if !settled {
		w.t().Fatalf("not in %s after the last fault:\n%s", settleTimeout, strings.Join(left, "\n"))
	}
	ended := seconds(began)
	for _, key := range keys {
		w.landed(key)
	}
	if !w.within(calmTimeout, func() bool { left = w.restless(); return len(left) == 0 }) {
		w.t().Errorf("left over after %s:\n%s", calmTimeout, strings.Join(left, "\n"))
	}
	w.t().Logf("everyone is ready after %.1f s, all has ended after %.1f s, is calm after %.1f s", ready, ended, seconds(began))
}

// unsettled says what a key waits for; empty when nothing.
func (w *World) unsettled(key string) string {
	w.mu.Lock()
	h := *w.history(key)
	w.mu.Unlock()
	if h.uploaded {
		now, wrong := w.found(key)
		if wrong != "" {
			return wrong
		}
		h.now = now
	}
	r := w.Record(key)
	switch {
	case r != nil && r.Upload != nil:
		return "an upload stands beside its execution"
	case h.uploaded && h.now == nil && (r == nil || r.ExecutionID == ""):
		return "" // broken off
	case r == nil && h.loose:
		return "" // deleted before it was seen
	case r == nil:
		return "no item"
	case r.Status == ledger.InProgress:
		return fmt.Sprintf("in progress, version %d; arrived: %v, failed: %v", r.Version, r.Successful, r.Failed)
	case h.now == nil:
		return ""
	case r.SourceETag != h.now.ETag:
		return "the table has an older object"
	case (r.Status == ledger.Failed || r.Status == ledger.Cancelled) && !h.loose:
		return fmt.Sprintf("failed: %v", r.Results)
	}
	return ""
}

// landed checks what is in the buckets in the end, and the item.
func (w *World) landed(key string) {
	w.mu.Lock()
	h := *w.history(key)
	w.mu.Unlock()
	r := w.Record(key)
	if h.uploaded && h.now == nil {
		w.nowhere(key)
	}
	if r == nil || r.ExecutionID == "" {
		return
	}
	w.agrees(r)
	w.counts(key)
	for _, b := range r.Destinations {
		if !slices.Contains(r.Successful, b) {
			continue // whatever is there was found whole by the watch
		}
		if err := w.whole(context.Background(), b, key); err != nil {
			w.t().Errorf("%s in %s: %v", key, b, err)
			continue
		}
		head, err := w.S3.HeadObject(context.Background(), &s3.HeadObjectInput{Bucket: &b, Key: &key, ChecksumMode: s3types.ChecksumModeEnabled})
		if err != nil {
			w.t().Errorf("%s in %s: %v", key, b, err)
			continue
		}
		if got := w.sumOf(key, head); got != r.SHA256 || h.now != nil && got != h.now.SHA256 {
			w.t().Errorf("%s in %s has SHA-256 %s, the table %s", key, b, got, r.SHA256)
		}
	}
}

// counts checks the item's numbers, which its readers never look at.
func (w *World) counts(key string) {
	out, err := w.dynamo.GetItem(context.Background(), &dynamodb.GetItemInput{
		TableName: aws.String(w.Ledger.Table()), ConsistentRead: aws.Bool(true),
		Key: map[string]types.AttributeValue{
			"fileKey":      &types.AttributeValueMemberS{Value: key},
			"sourceBucket": &types.AttributeValueMemberS{Value: w.Global},
		},
	})
	if err != nil {
		w.t().Error(err)
		return
	}
	for count, set := range map[string]string{
		"totalBuckets": "destinationBuckets", "successfulCopies": "successfulBuckets", "failedCopies": "failedBuckets",
	} {
		number, _ := out.Item[count].(*types.AttributeValueMemberN)
		members, _ := out.Item[set].(*types.AttributeValueMemberSS)
		n := 0
		if members != nil {
			n = len(members.Value)
		}
		if number == nil || number.Value != strconv.Itoa(n) {
			w.t().Errorf("item of %s: %s does not count %s: %v", key, count, set, out.Item)
		}
	}
}

// restless says what is still lying about or busy.
func (w *World) restless() (left []string) {
	for _, b := range append([]string{w.Global}, w.Buckets...) {
		out, err := w.S3.ListMultipartUploads(context.Background(), &s3.ListMultipartUploadsInput{Bucket: &b})
		if err != nil {
			return []string{err.Error()}
		}
		for _, u := range out.Uploads {
			if b == w.Global && w.leftToALifecycleRule(aws.ToString(u.Key), aws.ToString(u.UploadId)) {
				continue
			}
			left = append(left, fmt.Sprintf("%s: upload %s of %s", b, aws.ToString(u.UploadId), aws.ToString(u.Key)))
		}
	}
	for _, m := range w.Members() {
		left = append(left, m.strange()...)
		left = append(left, m.grown()...)
	}
	return left
}

// known are the files that a member may have.
var known = regexp.MustCompile(`^(name|audit\.jsonl(\.[1-7])?|members\.json|tables\.json|arrivals|cache/lock|cache/pulls/[0-9A-Z]{26}\.segments|cache/[0-9a-f]{40}/(info|have|data|build))$`)

// strange returns the files of a member that should not be there.
func (m *Member) strange() (left []string) {
	_ = filepath.WalkDir(m.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // went while it was looked at
		}
		name, _ := filepath.Rel(m.Dir, path)
		if !d.IsDir() && !known.MatchString(name) {
			left = append(left, m.Name+": file "+name)
		}
		return nil
	})
	return left
}

// grown says where a process has more than it should.
func (m *Member) grown() (left []string) {
	idle, ok := m.w.idle[m]
	if !ok {
		return nil
	}
	now, err := m.Levels()
	if err != nil {
		return []string{err.Error()}
	}
	n := m.cached()
	if most := idle.Goroutines + goroutinesPerBuild*n + goroutineSlack; now.Goroutines > most {
		left = append(left, fmt.Sprintf("%s: %d goroutines with %d builds, at most %d expected", m.Name, now.Goroutines, n, most))
	}
	if most := idle.Files + filesPerBuild*n + fileSlack; now.Files > most {
		left = append(left, fmt.Sprintf("%s: %d open files with %d builds, at most %d expected", m.Name, now.Files, n, most))
	}
	return left
}
