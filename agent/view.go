package agent

import (
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/swarm"
)

// progress is what the seeders are told; false when there is nothing to tell.
func (b *build) progress() (gossip.BuildProgress, bool) {
	v := b.view(nil)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == api.StateLanded || b.state == api.StateFailed {
		if b.reports == 0 {
			return gossip.BuildProgress{}, false
		}
		b.reports--
	}
	now := time.Now()
	var took [stages]int64
	for s, d := range b.times.took(b.started, now) {
		took[s] = d.Milliseconds()
	}
	return gossip.BuildProgress{
		ExecutionID: v.ExecutionID,
		State:       v.State,
		Verified:    v.VerifiedBytes,
		Landed:      v.LandedBytes,
		DownRate:    v.DownRate,
		UpRate:      v.UpRate,
		Peers:       len(v.Peers),
		Error:       v.Error,
		RetryIn:     max(0, b.retryAt.Sub(now).Milliseconds()),
		Took:        took,
	}, true
}

// links is what the seeders are told of who sent the build; nil when nothing came
// from anybody.
func (b *build) links(names map[[20]byte]gossip.Member) []gossip.Link {
	b.mu.Lock()
	d := b.download
	b.mu.Unlock()
	if d == nil {
		return nil
	}
	return d.links(names)
}

// view is the build as GET /status shows it; names maps peer ids to members.
func (b *build) view(names map[[20]byte]gossip.Member) api.Build {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := api.Build{
		Key:          b.ann.Key,
		SourceBucket: b.ann.SourceBucket,
		ExecutionID:  b.ann.ExecutionID,
		InfoHash:     b.ann.InfoHash.String(),
		Size:         b.ann.Size,
		State:        b.state,
		LandedBytes:  b.landed,
		Recording:    b.state == api.StateLanding && !b.times[complete].IsZero() && b.times[recorded].IsZero(),
		SourceBytes:  b.fromSource.Load(),
		Peers:        []api.Peer{},
	}
	if b.err != nil {
		v.Error = b.err.Error()
	}
	if b.err != nil && b.retryAt.After(time.Now()) {
		at := b.retryAt.UTC()
		v.RetryAt = &at
	}
	if !b.landedAt.IsZero() {
		at := b.landedAt.UTC()
		v.LandedAt = &at
	}
	if b.state == api.StateLanded {
		v.VerifiedBytes = b.ann.Size // found present, there was no download
	}
	stats := b.traffic
	if b.download != nil {
		stats = b.download.torrent.Stats()
		v.VerifiedBytes = stats.VerifiedBytes
		v.DownRate, v.UpRate = b.download.rates()
	}
	v.DownloadedBytes, v.UploadedBytes = stats.DownloadedBytes, stats.UploadedBytes
	for _, p := range stats.Peers {
		v.Peers = append(v.Peers, peerView(p, names))
	}
	return v
}

func peerView(p swarm.Peer, names map[[20]byte]gossip.Member) api.Peer {
	v := api.Peer{
		Name:            p.Addr,
		Addr:            p.Addr,
		Pieces:          p.Has,
		DownloadedBytes: p.Downloaded,
		UploadedBytes:   p.Uploaded,
		DownRate:        p.DownRate,
	}
	if m, ok := names[p.ID]; ok {
		v.Name, v.Region, v.Role = m.Name, m.Region, string(m.Role)
	}
	return v
}
