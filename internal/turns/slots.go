package turns

import (
	"context"
	"slices"
	"sync"
)

// Slots lets so many do something at a time. Who goes first gets the next slot that is
// given back, before all who wait otherwise; else first come, first served.
type Slots struct {
	size int

	mu     sync.Mutex // never held over a call
	taken  int
	first  []chan struct{} // one for each who waits, closed when he has a slot
	others []chan struct{}
}

// NewSlots returns so many slots, at least 1.
func NewSlots(size int) *Slots { return &Slots{size: size} }

// Size is how many there are.
func (s *Slots) Size() int { return s.size }

// Taken is how many are taken now.
func (s *Slots) Taken() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// Waiting is how many wait for one.
func (s *Slots) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.first) + len(s.others)
}

// TryTake takes a slot that is free; false for none.
func (s *Slots) TryTake() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken == s.size {
		return false
	}
	s.taken++
	return true
}

// Take waits for a slot, which is to be given back. The error is that of ctx.
func (s *Slots) Take(ctx context.Context, first bool) error {
	s.mu.Lock()
	if s.taken < s.size {
		s.taken++
		s.mu.Unlock()
		return nil
	}
	line := &s.others
	if first {
		line = &s.first
	}
	mine := make(chan struct{})
	*line = append(*line, mine)
	s.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(*line, mine); i >= 0 {
		*line = slices.Delete(*line, i, i+1)
	} else {
		s.give() // it came at the same moment
	}
	return ctx.Err()
}

// Give gives a slot back.
func (s *Slots) Give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.give()
}

func (s *Slots) give() {
	for _, line := range []*[]chan struct{}{&s.first, &s.others} {
		if len(*line) > 0 {
			close((*line)[0])
			*line = (*line)[1:]
			return
		}
	}
	s.taken--
}
