package ca

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

const (
	// regionWarn is how long before its end a region's authority is warned of, and
	// regionWarnInterval the time between two warnings.
	regionWarn         = 30 * 24 * time.Hour
	regionWarnInterval = 24 * time.Hour
	// regionPoll is how often its end is looked at, and its files.
	regionPoll = time.Minute
)

// RegionDir is the directory of the authority of a region's hosts, which may be a copy at
// the region's agents. It is read again when its files change. It is safe for concurrent
// use.
type RegionDir struct {
	path, cluster, region string
	clock                 identity.Clock

	current atomic.Pointer[Authority]

	mu     sync.Mutex // reading the files; never held by who asks
	looked [2]fileStat
}

type fileStat struct {
	modified time.Time
	size     int64
}

// OpenRegionDir opens it, as OpenRegion does.
func OpenRegionDir(path, cluster, region string, clock identity.Clock) (*RegionDir, error) {
	d := &RegionDir{path: path, cluster: cluster, region: region, clock: clock}
	if err := d.reload(); err != nil {
		return nil, err
	}
	return d, nil
}

// RenewFor is Authority.RenewFor of the authority as it was read last.
func (d *RegionDir) RenewFor(p identity.Peer, request []byte) ([]byte, error) {
	return d.current.Load().RenewFor(p, request)
}

// Expires is when the authority ends, and with it every certificate that it has made.
func (d *RegionDir) Expires() time.Time { return d.current.Load().cert.NotAfter }

// Run reads the files again when they have changed, and warns when the authority ends soon,
// until ctx ends.
func (d *RegionDir) Run(ctx context.Context, logger *slog.Logger) error {
	ticker := time.NewTicker(regionPoll)
	defer ticker.Stop()
	var warned time.Time
	for {
		if now := d.clock.Now(); warned.IsZero() || now.Sub(warned) >= regionWarnInterval {
			if d.warn(logger) {
				warned = now
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		d.Reread(logger)
	}
}

// Reread reads the files again if they are other ones than before, and reports whether they
// are. Where that fails what was read before stays in force.
func (d *RegionDir) Reread(logger *slog.Logger) (changed bool) {
	d.mu.Lock()
	changed = d.looked != d.stats()
	d.mu.Unlock()
	if !changed {
		return false
	}
	if err := d.reload(); err != nil {
		logger.Warn("the authority of the region's hosts was not read again, the one read before stays in force", "error", err)
	} else {
		logger.Info("the authority of the region's hosts was read again", "expires", d.Expires().UTC().Format(time.RFC3339))
	}
	return true
}

// warn says that the authority ends soon, or has ended. It reports whether it did.
func (d *RegionDir) warn(logger *slog.Logger) bool {
	const mend = "`seeder ca renew --regions` makes the next one, which --host-authority is given a copy of"
	end := d.Expires()
	left := end.Sub(d.clock.Now())
	switch {
	case left <= 0:
		logger.Error("the authority of the region's hosts has expired, and with it their certificates; "+mend, "region", d.region, "expired", end.UTC().Format(time.RFC3339))
	case left < regionWarn:
		logger.Warn("the authority of the region's hosts ends soon, and with it their certificates; "+mend, "region", d.region, "expires", end.UTC().Format(time.RFC3339))
	default:
		return false
	}
	return true
}

func (d *RegionDir) reload() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looked = d.stats()
	a, err := OpenRegion(d.path, d.cluster, d.region, d.clock)
	if err != nil {
		return err
	}
	d.current.Store(a)
	return nil
}

func (d *RegionDir) stats() (all [2]fileStat) {
	for i, name := range []string{certFile, keyFile} {
		if info, err := os.Stat(filepath.Join(d.path, name)); err == nil {
			all[i] = fileStat{info.ModTime(), info.Size()}
		}
	}
	return all
}
