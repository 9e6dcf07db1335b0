package agent

import (
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// progress is what the seeders are told.
func (s *shown) progress() gossip.BuildProgress {
	v, now := s.view(nil), time.Now()
	var took [stages]int64
	for stage, d := range s.times.took(s.started, now) {
		took[stage] = d.Milliseconds()
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
		RetryIn:     max(0, s.retryAt.Sub(now).Milliseconds()),
		Took:        took,
	}
}

// view is the build as GET /status shows it; names maps peer ids to members.
func (s *shown) view(names map[[20]byte]gossip.Member) api.Build {
	v := api.Build{
		Key:          s.ann.Key,
		SourceBucket: s.ann.SourceBucket,
		ExecutionID:  s.ann.ExecutionID,
		InfoHash:     firstInfoHash(s.ann),
		Size:         s.ann.Size,
		Priority:     api.Priority(s.ann.High),
		State:        s.state,
		LandedBytes:  s.landed,
		Recording:    s.state == api.StateLanding && !s.times[complete].IsZero() && s.times[recorded].IsZero(),
		Waiting:      s.waits && s.state != api.StateLanded && s.state != api.StateFailed,
		SourceBytes:  s.fromSource,
		Peers:        []api.Peer{},
	}
	if s.err != nil {
		v.Error = s.err.Error()
	}
	if at := s.retryAt.UTC(); s.err != nil && at.After(time.Now()) {
		v.RetryAt = &at
	}
	if at := s.landedAt.UTC(); !at.IsZero() {
		v.LandedAt = &at
	}
	if s.state == api.StateLanded {
		v.VerifiedBytes = s.ann.Size // found present, there was no download
	}
	stats := s.traffic
	if s.member != nil {
		stats = s.member.stats()
		v.VerifiedBytes = stats.VerifiedBytes
		v.DownRate, v.UpRate = s.member.rates()
	}
	v.DownloadedBytes, v.UploadedBytes = stats.DownloadedBytes, stats.UploadedBytes
	for _, p := range stats.Peers {
		peer := api.Peer{
			Name:            p.Addr,
			Addr:            p.Addr,
			Pieces:          p.Has,
			DownloadedBytes: p.Downloaded,
			UploadedBytes:   p.Uploaded,
			DownRate:        p.DownRate,
		}
		if m, ok := names[p.ID]; ok {
			peer.Name, peer.Region, peer.Role = m.Name, m.Region, string(m.Role)
		}
		v.Peers = append(v.Peers, peer)
	}
	return v
}

// firstInfoHash is that of a build's first segment; zeros for 0 bytes.
func firstInfoHash(ann *announce.Announcement) string {
	if ann.InfoHashes.Len() == 0 {
		return manifest.InfoHash{}.String()
	}
	return ann.InfoHashes.At(0).String()
}
