package limits

import (
	"context"
	"io"
)

// Reader reads from r no faster than the limit, until ctx ends.
func (l *Limiter) Reader(ctx context.Context, r io.Reader) io.Reader {
	return reader{ctx, l, r}
}

// ReadCloser is Reader for what has to be closed.
func (l *Limiter) ReadCloser(ctx context.Context, r io.ReadCloser) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{reader{ctx, l, r}, r}
}

// ReadSeeker is Reader for what can be read again: what is, counts again.
func (l *Limiter) ReadSeeker(ctx context.Context, r io.ReadSeeker) io.ReadSeeker {
	return struct {
		io.Reader
		io.Seeker
	}{reader{ctx, l, r}, r}
}

type reader struct {
	ctx context.Context
	l   *Limiter
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:min(len(p), r.l.Slice())])
	if n > 0 {
		if ended := r.l.Take(r.ctx, n); ended != nil {
			return 0, ended
		}
	}
	return n, err
}
