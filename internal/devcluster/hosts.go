package devcluster

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"

	"github.com/landfall-dist/landfall/internal/host"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/release"
)

// Hosts says which machines there are beside the members; the zero value is none.
type Hosts struct {
	// PerRegion is how many each region with an agent has.
	PerRegion int
	// Services are what all of them run.
	Services []string
	// Hooks say what a switch does; Dir, Service and Logger are not looked at.
	Hooks release.Config
	// Streams returns the address where the i-th region's agent has its hosts' streams; nil
	// for any port of loopback.
	Streams func(i int) string
	// HTTP returns the address of the i-th host, over all regions; nil for none.
	HTTP func(i int) string
}

// hostsDir is where hosts have their directories.
const hostsDir = "hosts"

// HostOf is the name of a region's n-th host, from 1.
func HostOf(region string, n int) string { return fmt.Sprintf("%s-%d", region, n) }

// HostDir is a host's directory: DIR/SERVICE/current is what a service runs.
func (cfg Config) HostDir(name string) string { return filepath.Join(cfg.Dir, hostsDir, name) }

// identityOfHost is beside what the host itself keeps.
func (cfg Config) identityOfHost(name string) string {
	return filepath.Join(cfg.HostDir(name), ".identity")
}

// certifyHosts gives each host a new certificate, of an authority for its region that it
// makes where there is none.
func certifyHosts(cfg Config, authority *ca.Dir) error {
	if cfg.Hosts.PerRegion == 0 {
		return nil
	}
	for _, region := range cfg.Regions {
		_, err := ca.OpenRegion(authority.RegionDir(region), authority.Cluster(), region, nil)
		if errors.Is(err, fs.ErrNotExist) {
			err = authority.AddRegion(region)
		}
		if err != nil {
			return err
		}
		for n := range cfg.Hosts.PerRegion {
			id := identity.ID{Cluster: authority.Cluster(), Kind: identity.Host, Region: region, Name: HostOf(region, n+1)}
			if err := certify(authority, id, cfg.identityOfHost(id.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// newHosts opens the hosts of all regions that have an agent.
func (c *Cluster) newHosts() error {
	for r, region := range c.cfg.Regions[:len(c.cfg.Regions)-c.cfg.Unserved] {
		for n := range c.cfg.Hosts.PerRegion {
			addr := ""
			if c.cfg.Hosts.HTTP != nil {
				addr = c.cfg.Hosts.HTTP(r*c.cfg.Hosts.PerRegion + n)
			}
			m, err := c.host(region, HostOf(region, n+1), addr)
			if err != nil {
				return err
			}
			c.members = append(c.members, m)
		}
	}
	return nil
}

// host opens one host; addr is of its HTTP side, empty for none.
func (c *Cluster) host(region, name, addr string) (_ member, err error) {
	hc := host.Config{
		Name: name, Region: region, Agents: c.FleetURLs[region], Dir: c.cfg.HostDir(name),
		Services: c.cfg.Hosts.Services, Hooks: c.cfg.Hosts.Hooks, Trust: c.Trust, Limits: limits.New(false),
		Version: c.cfg.Version, Logger: c.cfg.Logger.With("node", name),
	}
	if err := hc.Limits.Change(c.cfg.memberLimits()); err != nil {
		return member{}, err
	}
	if c.cfg.secured() {
		if hc.Identity, err = identity.Open(identity.FilesIn(c.cfg.identityOfHost(name)), nil); err != nil {
			return member{}, err
		}
		hc.TLS = identity.Require
	}
	if hc.Peers, err = listenOn(""); err != nil {
		return member{}, err
	}
	if addr != "" {
		if hc.HTTP, err = listenOn(addr); err != nil {
			return member{}, errors.Join(err, hc.Peers.Close())
		}
	}
	h, err := host.New(hc)
	if err != nil {
		for _, l := range []net.Listener{hc.Peers, hc.HTTP} {
			if l != nil {
				err = errors.Join(err, l.Close())
			}
		}
		return member{}, err
	}
	c.Hosts = append(c.Hosts, h)
	return member{h.Run, h.Close}, nil
}
