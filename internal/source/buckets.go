package source

import (
	"context"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/limits"
)

const (
	// maxBuckets bounds the source buckets kept open; beyond it the one goes that
	// was not asked for the longest, and is opened again when it is asked for.
	maxBuckets = 64
	// openTimeout bounds the opening of a bucket: two short calls. Whoever waits
	// for a bucket that does not answer waits alone.
	openTimeout = 30 * time.Second
)

// Buckets are the buckets that builds come from: the global one, and others that
// somebody named. It is safe for concurrent use.
type Buckets struct {
	aws   aws.Config
	reads *limits.Limiter // nil for no limit

	mu   sync.Mutex // never held over a call
	open map[string]*openBucket
}

// openBucket is a bucket and when it was last asked for.
type openBucket struct {
	*bucket.Bucket
	used  time.Time
	given bool // to NewBuckets: it stays
}

// NewBuckets finds buckets by the SDK's settings; those that are open already can
// be given.
func NewBuckets(cfg aws.Config, open ...*bucket.Bucket) *Buckets {
	s := &Buckets{aws: cfg, open: make(map[string]*openBucket)}
	for _, b := range open {
		s.open[b.Name()] = &openBucket{Bucket: b, given: true}
	}
	return s
}

// Limit has all reads of builds from these buckets, those given too, come no faster than
// a limit. It is to be called before Get.
func (s *Buckets) Limit(l *limits.Limiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads = l
	for _, b := range s.open {
		b.LimitReads(l)
	}
}

// Get opens a bucket, or returns it when it is open. Errors are bucket.Open's, which
// has half a minute. Two who ask for the same bucket at the same time may both open
// it; nobody waits for another's.
func (s *Buckets) Get(ctx context.Context, name string) (*bucket.Bucket, error) {
	if b := s.opened(name); b != nil {
		return b, nil
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	b, err := bucket.Open(ctx, s.aws, name, bucket.Options{})
	if err != nil {
		return nil, err
	}
	return s.keep(b), nil
}

func (s *Buckets) opened(name string) *bucket.Bucket {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.open[name]
	if b == nil {
		return nil
	}
	b.used = time.Now()
	return b.Bucket
}

// keep remembers a bucket, in place of the longest unused when there are too many.
// Whoever works with that one goes on to: a bucket holds nothing open.
func (s *Buckets) keep(b *bucket.Bucket) *bucket.Bucket {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.open[b.Name()]; other != nil {
		return other.Bucket // opened by another meanwhile
	}
	b.LimitReads(s.reads)
	if len(s.open) >= maxBuckets {
		var oldest *openBucket
		for _, o := range s.open {
			if !o.given && (oldest == nil || o.used.Before(oldest.used)) {
				oldest = o
			}
		}
		if oldest == nil {
			return b
		}
		delete(s.open, oldest.Name())
	}
	s.open[b.Name()] = &openBucket{Bucket: b, used: time.Now()}
	return b
}
