//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/processtest"
	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// homeWithin is the time in which hosts go back to the agent that is first in their order,
	// and homingFor how long they are watched.
	homeWithin = 10 * time.Minute
	homingFor  = time.Minute
)

// homing is a host that says nothing, and keeps a stream to its region's agents as hosts do.
type homing struct {
	hello *hostwire.Hello
	tls   *tls.Config // nil for none
	order []string    // URLs of agents
	all   *homingHosts
}

// homingHosts is what all of them count.
type homingHosts struct {
	dialing         chan struct{} // has room for those that may come at a time at first
	connected, lost atomic.Int64  // streams: now, and ended by the other side so far
	refused         atomic.Int64  // tries after which no agent had a stream with the host
}

// run keeps a stream until ctx ends.
func (h *homing) run(ctx context.Context) {
	h.all.dialing <- struct{}{}
	came := sync.OnceFunc(func() { <-h.all.dialing })
	defer came()
	lost, try := "", 0
	for ctx.Err() == nil {
		stream, url, err := h.dialAny(ctx, lost)
		if err != nil {
			try++
			h.all.refused.Add(1)
			retry.Wait(ctx, dialAgain.Delay(try))
			continue
		}
		came()
		try = 0
		for stream != nil {
			lost = url
			stream, url = h.serve(ctx, stream, url)
		}
		retry.Wait(ctx, rand.N(rejoinWithin))
	}
}

// dialAny opens a stream to the first agent that takes it; the one that was lost is the last.
func (h *homing) dialAny(ctx context.Context, lost string) (stream *hostwire.Stream, url string, err error) {
	order := slices.Clone(h.order)
	if i := slices.Index(order, lost); i >= 0 {
		order = append(slices.Delete(order, i, i+1), lost)
	}
	for _, url := range order {
		if stream, err = h.dial(ctx, url); err == nil {
			return stream, url, nil
		}
	}
	return nil, "", err
}

func (h *homing) dial(ctx context.Context, url string) (*hostwire.Stream, error) {
	return hostwire.Dial(ctx, hostwire.DialConfig{URL: url, TLS: h.tls, Hello: h.hello})
}

// serve reads a stream until its end, and returns the one to the first agent that takes its
// place, if that answers before.
func (h *homing) serve(ctx context.Context, s *hostwire.Stream, at string) (next *hostwire.Stream, url string) {
	h.all.connected.Add(1)
	defer h.all.connected.Add(-1)
	serving, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	group.Go(func() {
		for retry.Wait(serving, rand.N(homeWithin)) {
			if url = h.order[0]; url == at {
				continue
			}
			if stream, err := h.dial(serving, url); err == nil {
				next = stream
				cancel()
				return
			}
		}
	})
	context.AfterFunc(serving, s.Close)
	for {
		if _, err := s.Receive(); err != nil {
			break
		}
	}
	if serving.Err() == nil {
		h.all.lost.Add(1)
	}
	cancel()
	s.Close()
	group.Wait()
	return next, url
}

// agentCost is what an agent's streams cost it.
type agentCost struct {
	streams, hosts, waiting int
	kib, cores              float64 // a stream; idle
}

// look waits a while, and says what each agent's streams cost it meanwhile; without is the
// agents' memory before there were any.
func (s *fleetStack) look(ctx context.Context, agents []*fleetAgent, without map[*fleetAgent]int64) (map[*fleetAgent]agentCost, error) {
	before := make(map[*fleetAgent]time.Duration)
	for _, a := range agents {
		before[a] = a.CPU()
	}
	if !retry.Wait(ctx, idleFor) {
		return nil, ctx.Err()
	}
	costs := make(map[*fleetAgent]agentCost)
	for _, a := range agents {
		cost := agentCost{cores: (a.CPU() - before[a]).Seconds() / idleFor.Seconds()}
		memory := a.Memory("VmRSS")
		v, err := a.client.AgentStatus(ctx)
		if err != nil {
			return nil, err
		}
		cost.streams, cost.hosts = v.Fleet.Connected, v.Fleet.Hosts
		for _, of := range v.Fleet.Services {
			cost.waiting += of.Hosts.Waiting
		}
		if cost.streams > 0 {
			cost.kib = float64(memory-without[a]) / 1024 / float64(cost.streams)
		}
		costs[a] = cost
	}
	return costs, nil
}

// agentAway has as many idle hosts at a region's agents as each of them is to bear when one
// is away, and kills one. All hosts must be counted by the others then, once each.
func agentAway(ctx context.Context, s *fleetStack, agents, streams int) error {
	if err := s.run(ctx, make([]int, agents)...); err != nil {
		return err
	}
	hosts := streams * (agents - 1)
	hellos, secure, err := s.idleHosts(hosts)
	if err != nil {
		return err
	}
	var urls []string
	without := make(map[*fleetAgent]int64)
	for _, a := range s.agents {
		urls = append(urls, s.url(a))
		without[a] = a.Memory("VmRSS")
	}
	all := &homingHosts{dialing: make(chan struct{}, dialing)}
	running, end := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer end()
	for i, hello := range hellos {
		h := &homing{hello: hello, tls: secure[i], order: hostwire.Order(hello.Host, urls), all: all}
		group.Go(func() { h.run(running) })
	}
	here := func() (bool, error) { return s.connected(ctx) == hosts, nil }
	if err := processtest.Until(ctx, "all hosts", here); err != nil {
		return err
	}
	whole, err := s.look(ctx, s.agents, without)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ALL HERE\tSTREAMS\tKiB EACH\tCORES, IDLE")
	for _, a := range s.agents {
		fmt.Fprintf(t, "%s\t%d\t%.1f\t%.2f\n", a.name, whole[a].streams, whole[a].kib, whole[a].cores)
	}
	if err := t.Flush(); err != nil {
		return err
	}

	away, left := s.agents[0], s.agents[1:]
	lostBefore, refusedBefore := all.lost.Load(), all.refused.Load()
	busy := make(map[*fleetAgent]time.Duration)
	for _, a := range left {
		busy[a] = a.CPU()
	}
	began := time.Now()
	away.End(syscall.SIGKILL)
	err = processtest.Until(ctx, "the hosts to be at the other agents", func() (bool, error) {
		return all.lost.Load()-lostBefore >= int64(whole[away].streams) && all.connected.Load() == int64(hosts), nil
	})
	if err != nil {
		return err
	}
	back := time.Since(began).Seconds()
	cores := make(map[*fleetAgent]float64)
	for _, a := range left {
		cores[a] = (a.CPU() - busy[a]).Seconds() / back
	}
	if err := processtest.Until(ctx, "the other agents to count all hosts", here); err != nil {
		return err
	}
	counted := time.Since(began).Seconds()
	fewer, err := s.look(ctx, left, without)
	if err != nil {
		return err
	}
	peak := make(map[*fleetAgent]int64)
	var sum agentCost
	for _, a := range left {
		peak[a] = a.Memory("VmHWM") / mib
		sum.streams, sum.hosts, sum.waiting = sum.streams+fewer[a].streams, sum.hosts+fewer[a].hosts, sum.waiting+fewer[a].waiting
	}
	lost, refused := all.lost.Load()-lostBefore-int64(whole[away].streams), all.refused.Load()-refusedBefore

	if err := s.runAgent(ctx, away, addrs{}); err != nil {
		return err
	}
	if !retry.Wait(ctx, homingFor) {
		return ctx.Err()
	}
	home, err := away.client.AgentStatus(ctx)
	if err != nil {
		return err
	}
	total := s.connected(ctx)

	t = tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, away.name+" AWAY\tSTREAMS\tKiB EACH\tCORES, IDLE\tCORES WHILE THEY CAME\tPEAK MEMORY, MiB")
	for _, a := range left {
		fmt.Fprintf(t, "%s\t%d\t%.1f\t%.2f\t%.2f\t%d\n", a.name, fewer[a].streams, fewer[a].kib, fewer[a].cores, cores[a], peak[a])
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("all %d hosts had a stream after %.1f s, and were counted after %.1f s; %d tries found no agent, %d other streams were lost\n", hosts, back, counted, refused, lost)
	fmt.Printf("%s later the agents count %d hosts, %d with a stream, %d waiting for a build\n", idleFor, sum.hosts, sum.streams, sum.waiting)
	fmt.Printf("%s after its start the killed agent has %d streams again, of %d; all have %d\n", homingFor, home.Fleet.Connected, whole[away].streams, total)
	if sum.hosts != hosts || sum.streams != hosts || sum.waiting != hosts {
		return fmt.Errorf("the agents that are left count not all of %d hosts, or some twice", hosts)
	}
	return nil
}
