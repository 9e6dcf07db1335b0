package agent

import "time"

// stage is a point on a build's way here.
type stage int

const (
	turn     stage = iota // its turn has come
	whole                 // every piece is verified
	complete              // the object is complete in the bucket
	recorded              // the arrival is in the table
	stages
)

// times are when a build first reached each stage; zero where it has not, or went
// past it.
type times [stages]time.Time

// reach notes that a build has come so far. Once it is past a stage that is too late: a
// standby's download may end after another agent has landed the build.
func (t *times) reach(s stage, now time.Time) {
	for _, later := range t[s:] {
		if !later.IsZero() {
			return
		}
	}
	t[s] = now
}

// took is the time spent on the way to each stage so far. What was not passed took
// nothing: a build that the bucket held already has been in no swarm.
func (t *times) took(started, now time.Time) [stages]time.Duration {
	var out [stages]time.Duration
	since, next := started, 0
	for s, at := range t {
		if !at.IsZero() {
			out[s], since, next = at.Sub(since), at, s+1
		}
	}
	if next < len(out) {
		out[next] = now.Sub(since) // under way
	}
	return out
}
