package bucket

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/manifest"
)

const (
	// streamPart is the part length of an uploaded stream. A part is held in
	// memory while it is sent, since a stream cannot be read again.
	streamPart = 16 << 20
	// streamParallel is the number of parts under way, beside the one that is
	// being read: three of them are 48 MiB, whatever the length of the stream.
	streamParallel = 2
	// maxUploadMemory bounds in bytes what all streams under way hold together, however
	// many there are: 16 of them with one part each, which is all that a stream needs.
	maxUploadMemory = 16 * streamPart
	// streamStart is what a stream holds until so much of it has come: one that sends
	// next to nothing takes no part's room.
	streamStart = 1 << 20
	// MaxUpload is the longest stream that Upload takes, in bytes (156.25 GiB):
	// S3 allows 10,000 parts, and memory bounds a part.
	MaxUpload = manifest.MaxParts * streamPart
	// abortTimeout bounds the clearing away of an upload whose own context may
	// be over.
	abortTimeout = 10 * time.Second
)

// Upload stores what r gives until io.EOF as the object of the key, with bounded
// memory. size is the length promised, which r must keep, or -1 if unknown; more
// than MaxUpload is ErrTooLarge. ErrBusy when too many streams are under way. Any other end of r leaves neither an object nor
// an upload. When ctx ends, a Read of r that is under way is waited for.
//
// The transfer manager of the SDK is not used: it does not hold a reader to its
// promise and writes to the standard logger.
func (b *Bucket) Upload(ctx context.Context, key string, r io.Reader, size int64, h Headers) (*Object, error) {
	return b.UploadIf(ctx, key, r, size, h, Condition{})
}

// UploadIf is Upload under a condition, whose errors are those of CompleteUpload. A
// condition that does not hold at the beginning is found out before r is read.
func (b *Bucket) UploadIf(ctx context.Context, key string, r io.Reader, size int64, h Headers, c Condition) (*Object, error) {
	s := &stream{r: r, size: size}
	if size > MaxUpload {
		return nil, fmt.Errorf("uploading %s to %s: %w", key, b.name, s.tooLarge())
	}
	if err := b.Holds(ctx, key, c); err != nil {
		return nil, err
	}
	buf, held, err := b.first(s)
	defer func() { b.uploads.release(held) }()
	if err != nil {
		return nil, fmt.Errorf("uploading %s to %s: %w", key, b.name, err)
	}
	var etag string
	if s.ended {
		etag, err = b.put(ctx, key, buf, h, c)
	} else {
		etag, err = b.uploadParts(ctx, key, s, buf, h, c)
	}
	if err != nil {
		return nil, err
	}
	return &Object{Key: key, ETag: etag, Size: s.read, Headers: h.With(nil)}, nil
}

// Holds reports, before a body is read, whether a condition holds now; its
// errors are those of CompleteUpload.
func (b *Bucket) Holds(ctx context.Context, key string, c Condition) error {
	if c == (Condition{}) {
		return nil
	}
	o, err := b.Head(ctx, key)
	switch {
	case errors.Is(err, ErrNotFound) && c.IfNoneMatch:
		return nil
	case err != nil:
		return err
	case c.IfNoneMatch || o.ETag != c.IfMatch && o.ETag != `"`+c.IfMatch+`"`:
		return fmt.Errorf("uploading %s to %s: %w: it has ETag %s", key, b.name, ErrExists, o.ETag)
	}
	return nil
}

// first reads the first part, and returns how much of the memory it holds: a little until
// more has come.
func (b *Bucket) first(s *stream) (buf []byte, held int64, err error) {
	whole := int64(streamPart)
	if s.size >= 0 {
		whole = min(whole, s.size+1) // one more, to see the end
	}
	for _, length := range []int64{min(whole, streamStart), whole} {
		if s.ended || length == held {
			break
		}
		if !b.uploads.reserve(length - held) {
			return nil, held, ErrBusy
		}
		grown := make([]byte, length)
		copy(grown, buf)
		have := len(buf)
		held = length
		rest, err := s.fill(grown[have:])
		if err != nil {
			return nil, held, err
		}
		buf = grown[:have+len(rest)]
	}
	return buf, held, nil
}

func (b *Bucket) uploadParts(ctx context.Context, key string, s *stream, first []byte, h Headers, c Condition) (etag string, err error) {
	id, err := b.CreateUpload(ctx, key, h)
	if err != nil {
		return "", err
	}
	defer func() {
		if err == nil {
			return
		}
		if abort := b.AbortAlways(ctx, key, id); abort != nil {
			err = errors.Join(err, abort)
		}
	}()
	parts, err := b.sendStream(ctx, key, id, s, first)
	if err != nil {
		return "", err
	}
	return b.CompleteUpload(ctx, key, id, parts, c)
}

// sendStream uploads first and then the rest of s. It returns when nothing is
// under way any more.
func (b *Bucket) sendStream(ctx context.Context, key, id string, s *stream, first []byte) ([]Part, error) {
	group, ctx := errgroup.WithContext(ctx)
	free := make(chan []byte, streamParallel+1)
	more := streamParallel // buffers beside the first that may still be made
	var held int64
	defer func() { b.uploads.release(held) }()
	var sent []*Part
	send := func(buf []byte) {
		sum := sha256.Sum256(buf)
		p := &Part{Number: len(sent), SHA256: sum[:], Size: int64(len(buf))}
		sent = append(sent, p)
		group.Go(func() (err error) {
			p.ETag, err = b.UploadPart(ctx, key, id, p.Number, bytes.NewReader(buf), p.Size, p.SHA256)
			free <- buf[:cap(buf)]
			return err
		})
	}
	send(first)
	for !s.ended && ctx.Err() == nil {
		var buf []byte
		select {
		case buf = <-free:
		default:
			// Where there is no memory for another, the first is waited for.
			if more > 0 && b.uploads.reserve(streamPart) {
				more--
				held += streamPart
				buf = make([]byte, streamPart)
				break
			}
			select {
			case buf = <-free:
			case <-ctx.Done():
				continue
			}
		}
		buf, err := s.fill(buf)
		if err != nil {
			group.Go(func() error { return fmt.Errorf("uploading %s to %s: %w", key, b.name, err) })
			break
		}
		if len(buf) > 0 {
			send(buf)
		}
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil && !s.ended {
		return nil, err
	}
	parts := make([]Part, len(sent))
	for i, p := range sent {
		parts[i] = *p
	}
	return parts, nil
}

// memory counts what streams hold of maxUploadMemory.
type memory struct {
	mu   sync.Mutex
	used int64
}

// reserve takes so many bytes; false when there are not so many.
func (m *memory) reserve(n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.used+n > maxUploadMemory {
		return false
	}
	m.used += n
	return true
}

func (m *memory) release(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used -= n
}

// stream reads r in parts and holds it to its promised size.
type stream struct {
	r     io.Reader
	size  int64 // -1 if unknown
	read  int64
	ended bool
}

// fill reads until buf is full or the stream has ended, which io.ReadFull would
// not tell from a body that was cut short.
func (s *stream) fill(buf []byte) ([]byte, error) {
	n := 0
	for n < len(buf) {
		m, err := s.r.Read(buf[n:])
		n += m
		s.read += int64(m)
		switch {
		case s.read > MaxUpload:
			return nil, s.tooLarge()
		case s.size >= 0 && s.read > s.size:
			return nil, fmt.Errorf("more than the %d bytes promised", s.size)
		}
		if err == io.EOF {
			s.ended = true
			if s.size >= 0 && s.read < s.size {
				return nil, fmt.Errorf("%d of %d bytes: %w", s.read, s.size, io.ErrUnexpectedEOF)
			}
			break
		}
		if err != nil {
			return nil, fmt.Errorf("after %d bytes: %w", s.read, err)
		}
	}
	return buf[:n], nil
}

func (s *stream) tooLarge() error {
	return fmt.Errorf("%w: more than %d bytes (%d GiB); put it into the bucket with a tool that reads files, such as the AWS CLI",
		ErrTooLarge, int64(MaxUpload), int64(MaxUpload)>>30)
}
