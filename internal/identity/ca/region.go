package ca

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/landfall-dist/landfall/internal/fresh"
	"github.com/landfall-dist/landfall/internal/identity"
)

const (
	// regionWarn is how long before its end a region's authority is warned of, and
	// regionWarnInterval the time between two warnings.
	regionWarn         = 30 * 24 * time.Hour
	regionWarnInterval = 24 * time.Hour
	// regionPoll is how often its end is looked at, and its certificate.
	regionPoll = time.Minute
)

// RegionDir is the directory of the authority of a region's hosts, which may be a copy at
// the region's agents. It is read again when its certificate changes: one whose key is not
// here yet is tried again. It is safe for concurrent use.
type RegionDir struct {
	region    string
	clock     identity.Clock
	authority *fresh.Value[*Authority]
}

// OpenRegionDir opens it. Errors are those of OpenRegion; where there is no certificate they
// wrap fs.ErrNotExist.
func OpenRegionDir(path, cluster, region string, clock identity.Clock) (*RegionDir, error) {
	a, err := fresh.Open(func() (*Authority, error) { return OpenRegion(path, cluster, region, clock) }, filepath.Join(path, certFile))
	if err != nil {
		return nil, fmt.Errorf("the authority of the hosts of %s: %w", region, err)
	}
	return &RegionDir{region, clock, a}, nil
}

// RenewFor is Authority.RenewFor of the authority as it was read last.
func (d *RegionDir) RenewFor(p identity.Peer, request []byte) ([]byte, error) {
	return d.authority.Load().RenewFor(p, request)
}

// Expires is when the authority ends, and with it every certificate that it has made.
func (d *RegionDir) Expires() time.Time { return d.authority.Load().cert.NotAfter }

// Run reads the authority again when it has changed, and warns when it ends soon, until ctx
// ends.
func (d *RegionDir) Run(ctx context.Context, logger *slog.Logger) {
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
			return
		case <-ticker.C:
		}
		d.Refresh(logger)
	}
}

// Refresh reads the authority again if it is another one than before, and reports whether it
// is. Where that fails the one read before stays in force.
func (d *RegionDir) Refresh(logger *slog.Logger) (changed bool) {
	changed, err := d.authority.Refresh()
	if err != nil {
		logger.Warn("the authority of the region's hosts was not read again, the one read before stays in force", "region", d.region, "error", err)
	} else if changed {
		logger.Info("the authority of the region's hosts was read again", "region", d.region, "expires", stamp(d.Expires()))
	}
	return changed
}

// warn says that the authority ends soon, or has ended. It reports whether it did.
func (d *RegionDir) warn(logger *slog.Logger) bool {
	const mend = "`seeder ca renew --regions` makes the next one, which --host-authority is given a copy of"
	end := d.Expires()
	left := end.Sub(d.clock.Now())
	switch {
	case left <= 0:
		logger.Error("the authority of the region's hosts has expired, and with it their certificates; "+mend, "region", d.region, "expired", stamp(end))
	case left < regionWarn:
		logger.Warn("the authority of the region's hosts ends soon, and with it their certificates; "+mend, "region", d.region, "expires", stamp(end))
	default:
		return false
	}
	return true
}
