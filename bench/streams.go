//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// dialing is how many idle streams are opened at a time.
	dialing = 64
	// idleFor is how long idle streams are watched.
	idleFor = 30 * time.Second
	// rejoinWithin is the time in which hosts that have lost their agent come back, as real
	// ones do.
	rejoinWithin = 5 * time.Second
	// backWithin is how long all of that may take.
	backWithin = 2 * time.Minute
)

// dialAgain is when hosts dial again that were refused, or did not come through.
var dialAgain = retry.Policy{First: time.Second, Max: 30 * time.Second}

// idle is a host that has a stream and says nothing.
type idle struct {
	hello  *hostwire.Hello
	url    string
	tls    *tls.Config // nil for none
	ended  chan struct{}
	stream *hostwire.Stream
}

func (i *idle) dial(ctx context.Context) error {
	stream, err := hostwire.Dial(ctx, hostwire.DialConfig{URL: i.url, TLS: i.tls, Hello: i.hello})
	if err != nil {
		return err
	}
	i.stream, i.ended = stream, make(chan struct{})
	go func() {
		defer close(i.ended)
		for {
			if _, err := stream.Receive(); err != nil {
				return
			}
		}
	}()
	return nil
}

// idleHosts makes the first things that hosts say, and what TLS they speak with agents of
// the first region; nil for none.
func (s *fleetStack) idleHosts(n int) (hellos []*hostwire.Hello, secure []*tls.Config, err error) {
	secure = make([]*tls.Config, n)
	for i := range n {
		h := &hostwire.Hello{
			Version: hostwire.Version, Host: fmt.Sprint("host-", i), Start: ulid.Make().String(), PeerPort: 7000,
			Services: []hostwire.ServiceState{{Service: benchService, State: goal.Waiting}},
		}
		hellos = append(hellos, h)
		if s.authority == nil {
			continue
		}
		dir, err := s.authority.issueHost("region-1", h.Host)
		if err != nil {
			return nil, nil, err
		}
		own, err := identity.Open(identity.FilesIn(dir), nil)
		if err != nil {
			return nil, nil, err
		}
		secure[i] = hostwire.ClientTLS(own)
	}
	return hellos, secure, nil
}

// url is where an agent has streams with hosts.
func (s *fleetStack) url(a *fleetAgent) string {
	if s.authority != nil {
		return "https://" + a.streams
	}
	return "http://" + a.streams
}

func idleStreams(ctx context.Context, s *fleetStack, c *cli.Context) (err error) {
	if c.Bool("tls") {
		if s.authority, err = newAuthority(s.dir); err != nil {
			return err
		}
	}
	if agents := c.Int("agents"); agents > 1 {
		return agentAway(ctx, s, agents, c.Int("streams"))
	}
	if err := s.run(ctx, 0); err != nil {
		return err
	}
	a := s.agents[0]
	hellos, secure, err := s.idleHosts(c.Int("streams"))
	if err != nil {
		return err
	}
	all := make([]*idle, len(hellos))
	for i := range all {
		all[i] = &idle{url: s.url(a), tls: secure[i], hello: hellos[i]}
	}
	defer func() {
		for _, i := range all {
			if i.stream != nil {
				i.stream.Close()
				<-i.ended
			}
		}
	}()
	without := a.Memory("VmRSS")
	group, dialCtx := errgroup.WithContext(ctx)
	group.SetLimit(dialing)
	for _, i := range all {
		group.Go(func() error { return i.dial(dialCtx) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	cpu := a.CPU()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idleFor):
	}
	idleCPU := (a.CPU() - cpu).Seconds() / idleFor.Seconds()
	with := a.Memory("VmRSS")

	// Its end is seen by all at once; they come back within rejoinWithin, as hosts do.
	a.End(syscall.SIGKILL)
	for _, i := range all {
		<-i.ended
	}
	began := time.Now()
	if err := s.runAgent(ctx, a, addrs{}); err != nil {
		return err
	}
	back, cancel := context.WithTimeout(ctx, backWithin)
	defer cancel()
	group, dialCtx = errgroup.WithContext(back)
	var again atomic.Int64
	for n, i := range all {
		group.Go(func() error {
			at := began.Add(rejoinWithin * time.Duration(n) / time.Duration(len(all)))
			if !retry.Wait(dialCtx, time.Until(at)) {
				return dialCtx.Err()
			}
			for try := 1; ; try++ {
				err := i.dial(dialCtx)
				if err == nil || dialCtx.Err() != nil {
					return err
				}
				again.Add(1)
				retry.Wait(dialCtx, dialAgain.Delay(try))
			}
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "STREAMS\tKiB EACH\tCORES, IDLE\tALL BACK AFTER, s\tCORES MEANWHILE\tTRIES THAT FAILED\tPEAK MEMORY, MiB")
	fmt.Fprintf(t, "%d\t%.1f\t%.2f\t%.1f\t%.2f\t%d\t%d\n", len(all), float64(with-without)/1024/float64(len(all)), idleCPU, took, a.CPU().Seconds()/took, again.Load(), a.Memory("VmHWM")/mib)
	return t.Flush()
}
