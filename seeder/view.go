package seeder

import (
	"maps"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// page returns executions, newest first: those older than after (all when
// empty) whose key and id match, at most limit, and where to go on.
func (x *index) page(limit int, after string, match func(key, id string) bool) ([]api.Execution, string) {
	out, next := []api.Execution{}, ""
	var sent []func() int64
	x.backwards(after, func(p packed) bool {
		key := ""
		if p.isPacked() {
			key = p.key()
		} else {
			key = x.byID[string(p)].record.FileKey
		}
		if !match(key, p.id()) {
			return true
		}
		if len(out) == limit {
			next = out[len(out)-1].ExecutionID
			return false
		}
		e := x.at(p.id())
		out, sent = append(out, x.view(e)), append(sent, e.live.sent)
		return true
	})
	for i, sent := range sent {
		out[i].SentBytes = bytesOf(sent)
	}
	return out, next
}

// bytesOf asks the engine, which has a lock of its own: not to be called under x.mu.
func bytesOf(sent func() int64) int64 {
	if sent == nil {
		return 0
	}
	return sent()
}

// one returns an execution as HTTP shows it.
func (x *index) one(id string) (api.Execution, bool) {
	x.mu.Lock()
	e := x.at(id)
	if e == nil {
		x.mu.Unlock()
		return api.Execution{}, false
	}
	v, sent := x.view(e), e.live.sent
	x.mu.Unlock()
	v.SentBytes = bytesOf(sent)
	return v, true
}

// countByStatus is for the metrics.
func (x *index) countByStatus() map[ledger.Status]int {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := map[ledger.Status]int{ledger.InProgress: 0, ledger.Completed: 0, ledger.Failed: 0, ledger.Cancelled: 0}
	maps.Copy(out, x.counts)
	return out
}

// view is an execution without the bytes sent.
func (x *index) view(e *execution) api.Execution {
	r := e.record
	v := api.Execution{
		ExecutionID:  r.ExecutionID,
		Status:       string(r.Status),
		Phase:        e.live.phase,
		Key:          r.FileKey,
		SourceBucket: r.SourceBucket,
		Size:         r.Size,
		Priority:     api.Priority(r.High),
		SourceETag:   r.SourceETag,
		SHA256:       r.SHA256,
		InfoHash:     r.InfoHash,
		PulledBytes:  e.live.pulled,
		StartTime:    r.StartTime.UTC(),
		Destinations: []api.Destination{},
	}
	v.TakenUpAt = utc(e.live.takenUp)
	v.PullBeganAt, v.PulledAt, v.AnnouncedAt = utc(e.live.began), utc(e.live.whole), utc(e.live.announced)
	v.CompletedAt = utc(r.CompletedAt)
	if e.live.err != nil {
		v.Error = e.live.err.Error()
		v.RetryAt = utc(e.live.retryAt)
	}
	for _, bucket := range r.Destinations {
		v.Destinations = append(v.Destinations, x.destination(e, bucket))
	}
	return v
}

// utc is nil for a time that has not come.
func utc(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func (x *index) destination(e *execution, bucket string) api.Destination {
	d := api.Destination{Bucket: bucket, State: api.StateQueued}
	result := e.record.Results[bucket]
	if slices.Contains(e.record.Successful, bucket) {
		d.State, d.VerifiedBytes, d.LandedBytes = api.StateLanded, e.record.Size, e.record.Size
		d.Region, d.Agent, d.Seconds, d.ETag = result.Region, result.Agent, result.Seconds, result.ETag
		d.ArrivedAt = utc(result.Timestamp)
		if r, ok := e.reports[bucket][result.Agent]; ok {
			d.Took = r.took()
		}
		return d
	}
	failed := slices.Contains(e.record.Failed, bucket)
	if failed {
		d.State, d.Error = api.StateFailed, result.Error
		if e.record.Cancelled(bucket) {
			d.State = api.StateCancelled
		}
	} else if x.served[bucket].IsZero() && e.live.phase == api.PhaseDistributing {
		d.State, d.Error = api.StateUnserved, served{why: x.distrust}.whyNot(bucket)
	}
	// Of several agents of one bucket the furthest is shown.
	for node, r := range e.reports[bucket] {
		ahead := r.Verified + r.Landed - d.VerifiedBytes - d.LandedBytes
		if time.Since(r.at) > progressAge || ahead < 0 || ahead == 0 && d.Agent != "" && node > d.Agent {
			continue
		}
		d.Region, d.Agent, d.VerifiedBytes, d.LandedBytes = r.region, node, r.Verified, r.Landed
		if failed && !r.moved.After(result.Timestamp) {
			continue // it may arrive after all, but nothing says so yet
		}
		d.State, d.Error, d.Rate, d.Took = r.State, r.Error, r.DownRate, r.took()
		d.RetryAt = nil
		if r.Error != "" && r.RetryIn > 0 {
			// To the second: the same time said again is not news.
			d.RetryAt = utc(r.at.Add(time.Duration(r.RetryIn) * time.Millisecond).Round(time.Second))
		}
		if r.State == api.StateLanded {
			// The agent's word; the table has not been read yet.
			d.State = api.StateLanding
		}
	}
	if why := x.elsewhere[bucket]; why != "" {
		d.Error = why
	}
	return d
}

func (r *report) took() *api.Took {
	return &api.Took{
		Queued:    float64(r.Took[0]) / 1000,
		Swarm:     float64(r.Took[1]) / 1000,
		Landing:   float64(r.Took[2]) / 1000,
		Recording: float64(r.Took[3]) / 1000,
	}
}
