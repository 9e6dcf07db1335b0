// Package host is the daemon of a machine that runs services: it has a stream to one of its
// region's agents (link.go), keeps the goals that come over it, brings the builds that they
// name and serves them to others (stock.go), and switches each service to what its goal
// says when it has leave (service.go). How bytes come is for package fetch, how a release is
// put into place and switched to for package release, and who switches when for the agents.
//
// A host decides nothing by itself: without an agent, and without a seeder, everything stays
// as it is.
package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/fetch"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/private"
	"github.com/landfall-dist/landfall/internal/release"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/seldom"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/internal/web"
)

const (
	// stateDir is below Dir, beside the services' own directories, of which none begins
	// with a dot.
	stateDir = ".landfall"
	// sameLine is how often the same complaint is logged, of maxLines different ones.
	sameLine, maxLines = time.Minute, 100
	// maxRegionFile bounds the file with the region's name in bytes.
	maxRegionFile = 256
)

// Config says what a host is and runs.
type Config struct {
	// Name does not change, and is nobody else's in the region; with TLS it is the
	// certificate's.
	Name string
	// Region is the certificate's; empty without one: then an agent says it.
	Region string
	Zone   string
	Labels map[string]string
	// Agents are URLs of agents of the region, where they take hosts' streams. Others are
	// learned from them.
	Agents []string
	// Dir is for the services' releases, and what the host keeps; it must be absolute.
	Dir string
	// Services are their names.
	Services []string
	// Hooks say what each does when it switches, unless HooksOf has something else under its
	// name: its Dir, too, where that is not empty. Otherwise Dir, Service and Logger of both are
	// not looked at.
	Hooks   release.Config
	HooksOf map[string]release.Config
	// Trust has the keys of the seeders whose goals count.
	Trust *signing.Trust
	// Peers is where the swarm listens, and PeerPort the port at which others reach it; 0
	// for the listener's own. HTTP is where it says how it is; nil for nowhere. Both are
	// closed by the host.
	Peers    net.Listener
	PeerPort uint16
	HTTP     net.Listener
	// AllowHosts are names that the HTTP side answers to, beside loopback's and addresses.
	AllowHosts []string
	// TLS says with whom it is spoken; empty or identity.Off for nobody. Else Identity is
	// the host's.
	TLS      identity.Mode
	Identity *identity.Source
	// Limits are how fast bytes may pass; nil for none.
	Limits  *limits.Limits
	Version string
	Logger  *slog.Logger

	// again is when what has failed here is tried again; the zero value for the usual.
	again retry.Policy
	// health is how often what runs is asked whether it is healthy; 0 for the usual.
	health time.Duration
	// rejoin bounds the wait before another agent is asked for a stream when one has ended,
	// home the time until the first is tried again; 0 for the usual. Tests shorten them.
	rejoin, home time.Duration
}

// Host is the daemon.
type Host struct {
	cfg      Config
	start    string // a ULID
	shelf    *goal.Shelf
	fetch    *fetch.Fetcher
	services map[string]*service
	link     *link
	stock    *stock
	metrics  *metrics
	region   atomic.Pointer[string]
	lines    *seldom.Lines
	closing  sync.Once
}

// New opens what a host keeps, and takes up what was interrupted once it runs. On error
// nothing is left open but the listeners.
func New(cfg Config) (_ *Host, err error) {
	if cfg.rejoin <= 0 {
		cfg.rejoin = usualRejoin
	}
	if cfg.home <= 0 {
		cfg.home = usualHome
	}
	if cfg.again.First <= 0 {
		cfg.again = fetch.DefaultAgain
	}
	if cfg.health <= 0 {
		cfg.health = healthInterval
	}
	if cfg.Limits == nil {
		cfg.Limits = limits.New(false)
	}
	h := &Host{cfg: cfg, start: ulid.Make().String(), services: make(map[string]*service), lines: seldom.New(sameLine, maxLines), metrics: newMetrics()}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.closeParts())
		}
	}()
	state := filepath.Join(cfg.Dir, stateDir)
	if err := private.MkdirAll(state); err != nil {
		return nil, fmt.Errorf("what the host keeps: %w", err)
	}
	for _, name := range cfg.Services {
		opened, err := release.Open(cfg.hooksOf(name))
		if err != nil {
			return nil, err
		}
		h.services[name] = newService(h, name, opened)
	}
	var odd error
	if h.shelf, odd = goal.OpenShelf(filepath.Join(state, "goals"), cfg.Trust, cfg.Services...); h.shelf == nil {
		return nil, odd
	} else if odd != nil {
		cfg.Logger.Warn("some goals on the disk are of no use, an agent has newer ones", "error", odd)
	}
	if err := h.readRegion(); err != nil {
		return nil, err
	}
	h.fetch, err = fetch.New(fetch.Config{
		Dir: filepath.Join(state, "builds"), Limit: fetch.DefaultLimit, Listener: cfg.Peers, Name: hostwire.NameOf(cfg.Name, h.start),
		Region: cfg.Region, TLS: cfg.TLS, Identity: cfg.Identity, Limits: cfg.Limits, Again: cfg.again, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	h.link, h.stock = newLink(h), newStock(h)
	for _, s := range h.services {
		s.publish() // what is known before the first step
	}
	return h, nil
}

func (cfg Config) check() error {
	if err := goal.CheckName("host", cfg.Name); err != nil {
		return err
	}
	switch {
	case len(cfg.Services) == 0:
		return errors.New("a host needs a service to run")
	case len(cfg.Services) > hostwire.MaxServices:
		return fmt.Errorf("%d services, a host may have %d", len(cfg.Services), hostwire.MaxServices)
	case len(cfg.Agents) == 0:
		return errors.New("a host needs the URL of an agent of its region")
	case !filepath.IsAbs(cfg.Dir):
		return fmt.Errorf("directory %s must be absolute", cfg.Dir)
	}
	for i, s := range cfg.Services {
		if err := goal.CheckService(s); err != nil {
			return err
		}
		if slices.Contains(cfg.Services[:i], s) {
			return fmt.Errorf("service %s is named twice", s)
		}
		if err := checkHooks(cfg.hooksOf(s)); err != nil {
			return fmt.Errorf("service %s: %w", s, err)
		}
	}
	_, err := hostwire.Encode(&hostwire.Hello{Version: hostwire.Version, Host: cfg.Name, Start: ulid.Make().String(), Zone: cfg.Zone, Labels: cfg.Labels, Program: cfg.Version})
	return err
}

// Run runs the host until ctx ends. A switch under way is left to the next start.
func (h *Host) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range h.services {
		group.Go(func() error { s.run(ctx); return nil })
	}
	group.Go(func() error { h.stock.run(ctx); return nil })
	group.Go(func() error { h.link.run(ctx); return nil })
	group.Go(func() error {
		h.cfg.Trust.Watch(ctx, h.trustChanged, func(err error) {
			h.cfg.Logger.Error("trusted keys not read again, those of before hold", "error", err)
		})
		return nil
	})
	if own := h.cfg.Identity; own != nil {
		renewer := call.Renewer{Source: own, Client: hostwire.NewRenewals(own), Seeders: h.link.addrs, Logger: h.cfg.Logger}
		group.Go(func() error { return renewer.Run(ctx) })
	}
	if h.cfg.HTTP != nil {
		group.Go(func() error { return web.Serve(ctx, h.cfg.HTTP, h.handler(), h.cfg.Logger) })
	}
	up := []any{"host", h.cfg.Name, "services", strings.Join(h.cfg.Services, ","), "dir", h.cfg.Dir, "peers", h.cfg.Peers.Addr().String()}
	if h.cfg.HTTP != nil {
		up = append(up, "http", h.cfg.HTTP.Addr().String())
	}
	h.cfg.Logger.Info("host is up", up...)
	return group.Wait()
}

// trustChanged takes other rules of trust: what is signed by nobody who is trusted any more is
// dropped. What runs goes on, until somebody who is trusted says otherwise; an agent is asked for
// all it has, since some of it may have been refused before.
func (h *Host) trustChanged() {
	h.cfg.Logger.Info("trusted keys changed", "keys", h.cfg.Trust.IDs())
	for _, name := range h.shelf.Recheck() {
		h.cfg.Logger.Warn("goal dropped: its key is not trusted any more", "service", name)
	}
	h.link.forgetNewer()
	h.link.another()
	h.wake()
}

// Close closes what New has opened; Run must have ended. Again it does nothing.
func (h *Host) Close() (err error) {
	h.closing.Do(func() {
		err = h.closeParts()
		if h.cfg.HTTP != nil {
			_ = h.cfg.HTTP.Close() // Serve has closed it, if it ran
		}
	})
	return err
}

func (h *Host) closeParts() (err error) {
	if h.fetch != nil {
		err = h.fetch.Close()
	}
	for _, s := range h.services {
		err = errors.Join(err, s.release.Close())
	}
	return err
}

// where is the host's region; empty before anybody has said it.
func (h *Host) where() string {
	if r := h.region.Load(); r != nil {
		return *r
	}
	return ""
}

func (h *Host) regionFile() string { return filepath.Join(h.cfg.Dir, stateDir, "region") }

func (h *Host) readRegion() error {
	if h.cfg.Region != "" {
		h.region.Store(&h.cfg.Region)
		return nil
	}
	text, err := private.Read(h.regionFile(), maxRegionFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	region := strings.TrimSpace(string(text))
	if err == nil {
		err = goal.CheckName("region", region)
	}
	if err != nil {
		return fmt.Errorf("the host's region: %w", err)
	}
	h.region.Store(&region)
	return nil
}

// toldRegion takes the region that an agent has said. One that its certificate contradicts
// is an error; without certificates the last one counts, as hosts may be moved.
func (h *Host) toldRegion(region string) error {
	if err := goal.CheckName("region", region); err != nil {
		return err
	}
	switch known := h.where(); {
	case known == region:
		return nil
	case h.cfg.Region != "":
		return fmt.Errorf("the agent serves %s, this host is in %s", region, h.cfg.Region)
	case known != "":
		h.cfg.Logger.Warn("agent of another region than before, its goals count from now on", "region", region, "before", known)
	}
	if err := private.Replace(h.regionFile(), []byte(region+"\n")); err != nil {
		return fmt.Errorf("keeping the region: %w", err)
	}
	h.region.Store(&region)
	return nil
}

// wake has all look at what has changed.
func (h *Host) wake() {
	for _, s := range h.services {
		ask(s.wake)
	}
	ask(h.stock.wake)
}

// warn logs what may come again and again, once in a while.
func (h *Host) warn(message string, args ...any) {
	if omitted, due := h.lines.Pass(message); due {
		if omitted > 0 {
			args = append(args, "omitted", omitted)
		}
		h.cfg.Logger.Warn(message, args...)
	}
}

// peerPort is the port at which others reach the swarm.
func (h *Host) peerPort() uint16 {
	if h.cfg.PeerPort != 0 {
		return h.cfg.PeerPort
	}
	a, err := netip.ParseAddrPort(h.cfg.Peers.Addr().String())
	if err != nil {
		return 0
	}
	return a.Port()
}

// ask leaves a value in c, unless one is there already.
func ask(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
