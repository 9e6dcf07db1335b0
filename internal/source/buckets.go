package source

import (
	"context"
	"fmt"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// maxBuckets bounds the source buckets kept open.
const maxBuckets = 64

// Buckets are the buckets that builds come from: the global one, and others that
// somebody named. It is safe for concurrent use.
type Buckets struct {
	aws  aws.Config
	mu   sync.Mutex
	open map[string]*bucket.Bucket
}

// NewBuckets finds buckets by the SDK's settings; those that are open already can
// be given.
func NewBuckets(cfg aws.Config, open ...*bucket.Bucket) *Buckets {
	s := &Buckets{aws: cfg, open: make(map[string]*bucket.Bucket)}
	for _, b := range open {
		s.open[b.Name()] = b
	}
	return s
}

// Get opens a bucket, or returns it when it is open. Errors are bucket.Open's.
func (s *Buckets) Get(ctx context.Context, name string) (*bucket.Bucket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.open[name]; ok {
		return b, nil
	}
	if len(s.open) >= maxBuckets {
		return nil, fmt.Errorf("source bucket %s: %d others are open already", name, maxBuckets)
	}
	b, err := bucket.Open(ctx, s.aws, name, bucket.Options{})
	if err != nil {
		return nil, err
	}
	s.open[name] = b
	return b, nil
}
