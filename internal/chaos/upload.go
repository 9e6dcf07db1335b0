//go:build linux

package chaos

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/time/rate"

	"github.com/landfall-dist/landfall/seeder/client"
)

// pace is how many bytes a paced body gives at a time.
const pace = 64 << 10

// Upload sends a new content through the seeder, within about so long a time, and returns
// what that has answered. A client whose ctx ends is gone in the middle. Whether the key has
// the content, the global bucket says in the end: an answer can be lost.
func (w *World) Upload(ctx context.Context, v *Version, takes time.Duration) error {
	body := &paced{ctx: ctx, limit: rate.NewLimiter(rate.Limit(float64(max(v.Size, 1))/takes.Seconds()), pace)}
	return w.upload(ctx, v, func(content io.Reader) io.Reader {
		body.Reader = content
		return body
	})
}

// upload sends a content in the way that body gives it.
func (w *World) upload(ctx context.Context, v *Version, body func(content io.Reader) io.Reader) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	w.mu.Lock()
	content := v.Content()
	v.foreign = true
	w.history(v.Key).uploaded = true
	w.register(v, content)
	w.mu.Unlock()
	to := &client.Client{URL: w.Seeder.URL, Token: w.Seeder.Token, HTTP: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	_, err := to.Upload(ctx, v.Key, body(strings.NewReader(string(content))), int64(v.Size), "application/zip")
	if err == nil {
		w.mu.Lock()
		w.history(v.Key).answered = true
		w.mu.Unlock()
	}
	return err
}

// paced is a body that comes at a rate.
type paced struct {
	io.Reader
	ctx   context.Context
	limit *rate.Limiter
}

func (p *paced) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b[:min(len(b), pace)])
	if n > 0 {
		if wait := p.limit.WaitN(p.ctx, n); wait != nil {
			return 0, wait
		}
	}
	return n, err
}

// found looks at which content a key that was uploaded has in the global bucket, nil for
// none, and says what is not as it should be; empty for nothing.
func (w *World) found(key string) (v *Version, wrong string) {
	head, err := w.S3.HeadObject(context.Background(), &s3.HeadObjectInput{Bucket: &w.Global, Key: &key})
	missing := (*types.NotFound)(nil)
	if err != nil && !errors.As(err, &missing) {
		return nil, err.Error()
	}
	w.mu.Lock()
	h := w.history(key)
	now := h.now
	w.mu.Unlock()
	switch {
	case err == nil && now != nil && now.ETag == aws.ToString(head.ETag):
		v = now
	case err == nil:
		if v, err = w.stored(key, aws.ToString(head.ETag)); err != nil {
			return nil, err.Error()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if h.now = v; v == nil && h.answered {
		return nil, "its upload was answered with success, and there is no object"
	}
	return v, ""
}

// stored reads which content is in the global bucket.
func (w *World) stored(key, etag string) (*Version, error) {
	out, err := w.S3.GetObject(context.Background(), &s3.GetObjectInput{Bucket: &w.Global, Key: &key, IfMatch: &etag})
	if err != nil {
		return nil, err
	}
	defer out.Body.Close()
	h := sha256.New()
	if _, err := io.Copy(h, out.Body); err != nil {
		return nil, err
	}
	v := w.published(key, hex.EncodeToString(h.Sum(nil)))
	if v == nil {
		return nil, fmt.Errorf("the global bucket has %s with bytes that nobody sent", key)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	v.ETag = etag
	return v, nil
}

// nowhere checks that nothing is to be seen of a key whose uploads were all broken off.
func (w *World) nowhere(key string) {
	for _, b := range w.Buckets {
		_, err := w.S3.HeadObject(context.Background(), &s3.HeadObjectInput{Bucket: &b, Key: &key})
		if missing := (*types.NotFound)(nil); !errors.As(err, &missing) {
			w.t().Errorf("%s was never uploaded whole, and is in %s (%v)", key, b, err)
		}
	}
}

// leftToALifecycleRule reports whether nobody can know an upload into the global bucket,
// since the seeder has ended before it could tell the table of it, or the seeder has said
// that it may not remove it.
func (w *World) leftToALifecycleRule(key, uploadID string) bool {
	if !w.Seeder.Gate.Noted(uploadID) {
		return true
	}
	log, err := os.ReadFile(w.Seeder.log())
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "a lifecycle rule for unfinished uploads does it") && strings.Contains(line, key) {
			return true
		}
	}
	return false
}
