// Package answers holds the answers of S3, DynamoDB and build sources to bounds of time
// and size: what sends nothing, or next to nothing, or never ends, is an error and not
// something to wait for. It wraps an HTTP client, below the retries of the SDK.
package answers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
)

const (
	// readTimeout is how long a read may bring nothing, before its head as within
	// its body: S3 and DynamoDB begin to answer within a second, and the slowest
	// link worth using brings leastBytes in that time.
	readTimeout = 30 * time.Second
	leastBytes  = 4 << 10
	// writeTimeout is the same of a write, whose answer comes when the bytes are
	// safe: other stores than AWS's write them to a slow disk first.
	writeTimeout = 2 * time.Minute
	// completeTimeout is that of completing an upload: for thousands of parts S3
	// itself says minutes, and meanwhile sends white space; others send nothing.
	completeTimeout = 10 * time.Minute
	// buildTimeout is that of a build source, which may pack what it is asked for.
	buildTimeout = time.Minute

	// maxAnswer bounds an S3 answer that is not an object, in bytes: a page of
	// 1,000 keys of 1,024 bytes that are all escaped is 3.6 MB.
	maxAnswer = 5 << 20
	// maxTableAnswer bounds a DynamoDB answer, in bytes: a page holds 1 MB of
	// items, which JSON makes a few times as long.
	maxTableAnswer = 16 << 20
)

var (
	// ErrStalled says that a service sent nothing for too long. The SDK does not
	// try such a call again: whoever waits for it decides that.
	ErrStalled = errors.New("the service has stopped answering")
	// ErrTooLong says that an answer is longer than any right one.
	ErrTooLong = errors.New("the answer is too long")
)

// Client does one attempt of a call: *http.Client, or what the SDK makes of it.
type Client interface {
	Do(*http.Request) (*http.Response, error)
}

// limits are those of one call.
type limits struct {
	idle  time.Duration
	least int64 // bytes of the answer's body that count as a sign of life
	size  int64 // bytes of the answer's body; 0 for any
}

// limited is a Client whose calls keep to limits.
type limited struct {
	next Client
	of   func(operation string) limits
}

// S3 returns next with the limits of S3's operations.
func S3(next Client) Client { return limit(next, ofS3) }

// DynamoDB returns next with the limits of DynamoDB's operations.
func DynamoDB(next Client) Client {
	return limit(next, func(string) limits { return limits{readTimeout, 1, maxTableAnswer} })
}

// Builds returns next with the limits of a build source. Of any size: who reads it
// bounds that.
func Builds(next Client) Client {
	return limit(next, func(string) limits { return limits{buildTimeout, leastBytes, 0} })
}

func limit(next Client, of func(string) limits) Client {
	if l, ok := next.(*limited); ok {
		next = l.next
	}
	return &limited{next, of}
}

func ofS3(operation string) limits {
	switch operation {
	case "GetObject":
		return limits{readTimeout, leastBytes, 0}
	case "HeadObject", "HeadBucket", "ListObjectsV2", "ListParts", "ListMultipartUploads":
		return limits{readTimeout, leastBytes, maxAnswer}
	case "CompleteMultipartUpload":
		return limits{completeTimeout, 1, maxAnswer}
	}
	return limits{writeTimeout, 1, maxAnswer}
}

// Do is Client's.
func (l *limited) Do(r *http.Request) (*http.Response, error) {
	limits := l.of(awsmiddleware.GetOperationName(r.Context()))
	ctx, cancel := context.WithCancelCause(r.Context())
	w := &watch{limits: limits, left: limits.idle, cancel: cancel, ctx: ctx}
	w.timer = time.AfterFunc(limits.idle, func() {
		cancel(failure{fmt.Errorf("%w: nothing came for %s", ErrStalled, limits.idle)})
	})
	r = r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &sent{r.Body, w}
	}
	res, err := l.next.Do(r)
	w.answered.Store(true)
	w.timer.Stop()
	if err != nil {
		err = w.explain(err)
		cancel(nil)
		return res, err
	}
	if res.StatusCode/100 != 2 && w.size == 0 {
		w.size = maxAnswer // an error is no object
	}
	res.Body = &received{ReadCloser: res.Body, watch: w}
	return res, nil
}

// watch ends a call that makes no progress.
type watch struct {
	limits
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	// answered is set with the answer's head: what is still sent then says nothing.
	answered atomic.Bool
	// left is what is left of idle, came what has come since it was whole.
	left time.Duration
	came int64
}

// explain puts the reason for which the watch has ended a call in place of its end.
func (w *watch) explain(err error) error {
	if cause := (failure{}); errors.As(context.Cause(w.ctx), &cause) {
		return cause
	}
	return err
}

// failure is an error that the SDK does not try again.
type failure struct{ error }

func (f failure) Unwrap() error        { return f.error }
func (f failure) RetryableError() bool { return false }

// sent is a request's body. That the transport takes of it is progress.
type sent struct {
	io.ReadCloser
	watch *watch
}

func (s *sent) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if n > 0 && !s.watch.answered.Load() {
		s.watch.timer.Reset(s.watch.idle)
	}
	return n, err
}

// received is an answer's body. Only the time that its reader waits for bytes counts.
type received struct {
	io.ReadCloser
	watch *watch
	read  int64
	err   error // stays
}

func (b *received) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	w := b.watch
	if w.size > 0 {
		p = p[:min(int64(len(p)), w.size+1-b.read)]
	}
	begun := time.Now()
	w.timer.Reset(w.left)
	n, err := b.ReadCloser.Read(p)
	w.timer.Stop()
	w.left -= time.Since(begun)
	w.came += int64(n)
	if w.came >= w.least {
		w.left, w.came = w.idle, 0
	}
	b.read += int64(n)
	switch {
	case w.size > 0 && b.read > w.size:
		b.err = failure{fmt.Errorf("%w: more than %d bytes", ErrTooLong, w.size)}
		w.cancel(b.err)
		return 0, b.err
	case err != nil && err != io.EOF:
		err = w.explain(err)
	}
	b.err = err
	return n, err
}

func (b *received) Close() error {
	err := b.ReadCloser.Close()
	b.watch.cancel(nil)
	return err
}
