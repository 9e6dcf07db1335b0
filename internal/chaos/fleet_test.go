//go:build linux

package chaos

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/processtest"
	"github.com/landfall-dist/landfall/seeder/client"
)

// fleetTimeout bounds the wait for a deployment: an agent that was killed while its hosts
// switched keeps their places for two minutes.
const fleetTimeout = 5 * time.Minute

// TestFleet breaks what is between a goal and the hosts. A host runs a whole, verified build
// at every moment, none at or above the cut runs the target, no more switch than may, every
// live host ends on the newest goal, and no deployment says done that is not: fleetWatch
// looks at that all the time.
func TestFleet(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		short bool
		run   func(*testing.T)
	}{
		{"seeder killed between table and send", true, seederBeforeSending},
		{"no host, then one", true, fewHosts},
		{"half of the hosts come and go", true, hostsComeAndGo},
		{"agents restarted in turn", false, agentsInTurn},
		{"seeder killed in mid-bake", false, seederInMidBake},
		{"certificates of hosts have ended", false, endedCertificates},
		{"rolled back while an agent is killed", false, rolledBack},
		{"a host hangs in mid-wave", true, hostHangs},
		{"an agent hangs in mid-wave", true, agentHangs},
		{"old and new programs", false, oldAndNew},
		{"a host and an agent hang until they are lost", false, hangUntilLost},
		{"clocks an hour off, with certificates", false, clocksAndCertificates},
		{"clocks an hour off, the seeder's ahead", false, func(t *testing.T) { clocks(t, time.Hour) }},
		{"clocks an hour off, the seeder's behind", false, func(t *testing.T) { clocks(t, -time.Hour) }},
	} {
		if c.short || *longFlag {
			t.Run(c.name, func(t *testing.T) { t.Parallel(); c.run(t) })
		}
	}
}

// startFleet is Start with hosts in each region, which run a first build.
func startFleet(t *testing.T, o Options, hosts int) *World {
	t.Helper()
	o.Fleet = true
	w := Start(t, o)
	for i := range w.Buckets {
		w.AddHosts(i, hosts)
	}
	if hosts > 0 {
		w.Until("all hosts are known", func() bool { return w.connected(w.Agents...) == hosts*len(w.Buckets) })
		w.Completed(w.Put("web-1.zip", 3<<20))
		w.DeployService("web-1.zip", "100%", "1s")
		w.SettleFleet("web-1.zip")
	}
	return w
}

// connected is how many hosts have a stream with one of the agents.
func (w *World) connected(agents ...*Member) (n int) {
	for _, a := range agents {
		if s, err := a.AgentStatus(context.Background()); err == nil && s.Fleet != nil {
			n += s.Fleet.Connected
		}
	}
	return n
}

// hostsOf are those in the region of a bucket, by its index.
func (w *World) hostsOf(bucket int) []*Host {
	return slices.DeleteFunc(w.Hosts(), func(h *Host) bool { return h.Region != regionOf(w.Buckets[bucket]) })
}

// run reports whether all of these hosts run the newest build of a key.
func (w *World) run(key string, hosts []*Host) bool {
	d := w.state()
	return d != nil && d.Target != nil && d.Target.Key == key &&
		!slices.ContainsFunc(hosts, func(h *Host) bool { return h.Runs() != d.Target.ExecutionID })
}

// whoSwitches returns who has begun a switch since it was called; nil for none.
func (w *World) whoSwitches() func() *Host {
	begun := make(map[*Host]int)
	for _, h := range w.Hosts() {
		begun[h] = h.begun()
	}
	return func() *Host {
		for _, h := range w.Hosts() {
			if h.begun() > begun[h] {
				return h
			}
		}
		return nil
	}
}

// policy has waves and a time to bake; none may fail.
func policy(waves, bake string) api.Policy {
	return api.Policy{Waves: strings.Split(waves, ","), Bake: bake, MaxUnavailable: string(maxUnavailable), MaxFailed: "0%"}
}

// DeployService begins a deployment.
func (w *World) DeployService(key, waves, bake string) {
	w.t().Helper()
	w.deploys(key)
	var last error
	if !w.within(Timeout, func() bool {
		// It may have begun without an answer, and have ended.
		if d := w.state(); last != nil && d != nil && d.Kind == api.KindDeploy && d.Target.Key == key {
			return true
		}
		_, last = w.Seeder.DeployService(context.Background(), service, client.ServiceDeployRequest{Key: key, Policy: policy(waves, bake)})
		return last == nil
	}) {
		w.t().Fatalf("deploying %s: %v", key, last)
	}
}

// rollback begins to go back.
func (w *World) rollback() {
	w.t().Helper()
	var last error
	if !w.within(Timeout, func() bool {
		if d := w.state(); last != nil && d != nil && (d.State == api.DeploymentBack || d.State == api.DeploymentWentBack) {
			return true // it had begun without an answer
		}
		_, last = w.Seeder.Rollback(context.Background(), service, false)
		return last == nil
	}) {
		w.t().Fatalf("rolling back: %v", last)
	}
}

// state is the deployment as the seeder has it; nil while it does not answer.
func (w *World) state() *api.Deployment {
	s, err := w.Seeder.Service(context.Background(), service)
	if err != nil {
		return nil
	}
	return s.Deployment
}

// SettleFleet ends all faults, waits until the deployment of a key is done, and until all
// hosts run it, those too that came late.
func (w *World) SettleFleet(key string) *api.Deployment {
	w.t().Helper()
	return w.settleFleet(key, api.DeploymentDone)
}

// settleFleet is SettleFleet where the deployment ends in a state, and all hosts with a key.
func (w *World) settleFleet(key, state string) *api.Deployment {
	w.t().Helper()
	w.heal()
	for _, m := range w.Members() {
		m.Run()
	}
	var d *api.Deployment
	if !w.within(fleetTimeout, func() bool { d = w.state(); return d != nil && d.Ended() }) {
		w.t().Fatalf("not in %s: the deployment has ended, all run %s: %+v\n%s", fleetTimeout, key, d, w.hostsView())
	}
	build := d.Target
	if state == api.DeploymentWentBack {
		build = d.From
	}
	if d.State != state || build == nil || build.Key != key {
		w.t().Fatalf("%s (%s), expected %s and %s\n%s", d.State, d.Reason, state, key, w.hostsView())
	}
	for _, h := range w.Hosts() {
		if state == api.DeploymentWentBack && h.ranSince(w.begun(d.Target.Key)) && h.Runs() != build.ExecutionID {
			w.t().Errorf("%s, and %s runs %s", d.State, h.Name, h.Runs())
		}
		if !w.within(fleetTimeout, func() bool { return !h.running() || h.Runs() == build.ExecutionID }) {
			w.t().Errorf("not in %s: %s runs %s: %s\n%s", fleetTimeout, h.Name, build.ExecutionID, h.Runs(), w.hostsView())
		}
	}
	w.together()
	return d
}

func (w *World) hostsView() string {
	var b bytes.Buffer
	for _, h := range w.Hosts() {
		fmt.Fprintf(&b, "%s: running %v, %s\n", h.Name, h.running(), h.Runs())
	}
	for _, a := range w.Agents {
		if s, err := a.AgentStatus(context.Background()); err == nil {
			fmt.Fprintf(&b, "%s: %+v\n", a.Name, s.Fleet)
		}
	}
	return b.String()
}

// agentsInTurn restarts every agent while a wave goes on.
func agentsInTurn(t *testing.T) {
	w := startFleet(t, Options{Agents: []int{2, 1}, Seed: 31}, 4)
	w.Completed(w.Put("web-2.zip", 5<<20))
	w.DeployService("web-2.zip", "50%,100%", "2s")
	for _, a := range w.Agents {
		w.Until("hosts switch", func() bool { d := w.state(); return d != nil && (d.Wave > 0 || d.Ended()) })
		a.Kill()
		a.Run()
		w.ready()
	}
	w.SettleFleet("web-2.zip")
}

// goalWritten is the call by which the seeder writes a goal.
func goalWritten(c Call) bool { return c.Op == "TransactWriteItems" }

// seederBeforeSending kills the seeder when a goal is in the table, and nobody was sent it.
func seederBeforeSending(t *testing.T) {
	w := startFleet(t, Options{Agents: []int{1, 1}, Seed: 32}, 2)
	w.Completed(w.Put("web-2.zip", 1<<20))
	written, letGo := make(chan Call, 1), make(chan struct{})
	w.Seeder.Gate.Break(Rule{When: goalWritten, Times: 1, Do: HoldAnswer(written, letGo)})
	w.deploys("web-2.zip")
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		ctx, cancel := context.WithTimeout(context.Background(), Timeout)
		defer cancel()
		_, _ = w.Seeder.DeployService(ctx, service, client.ServiceDeployRequest{Key: "web-2.zip", Policy: policy("50%,100%", "1s")}) // it is killed meanwhile
	}()
	held(t, written)
	w.Seeder.Kill()
	close(letGo)
	<-asked
	w.Seeder.Run()
	w.SettleFleet("web-2.zip")
}

// seederInMidBake kills the seeder while a wave bakes: it bakes anew.
func seederInMidBake(t *testing.T) {
	w := startFleet(t, Options{Agents: []int{1, 1}, Seed: 33}, 3)
	w.Completed(w.Put("web-2.zip", 1<<20))
	w.DeployService("web-2.zip", "34%,100%", "5s")
	w.Until("it bakes", func() bool { d := w.state(); return d != nil && d.State == api.DeploymentBaking })
	w.Seeder.Kill()
	w.Seeder.Run()
	w.SettleFleet("web-2.zip")
}

// fewHosts: a service without hosts is done at once, and says so; one host alone, with waves
// that are empty since it was in the first, is well.
func fewHosts(t *testing.T) {
	w := startFleet(t, Options{Agents: []int{1, 1}, Seed: 34}, 0)
	w.Completed(w.Put("web-1.zip", 1<<20))
	w.DeployService("web-1.zip", "50%,100%", "1s")
	if d := w.SettleFleet("web-1.zip"); !strings.Contains(d.Reason, "0 hosts") {
		t.Errorf("done without a host, and says %q", d.Reason)
	}
	h := w.AddHosts(0, 1)[0]
	w.Until("the host runs it", func() bool { return h.Runs() != "" })
	w.Completed(w.Put("web-2.zip", 1<<20))
	w.DeployService("web-2.zip", "1%,50%,100%", "1s")
	w.SettleFleet("web-2.zip")
}

// hostsComeAndGo kills every other host in mid-wave, and adds as many.
func hostsComeAndGo(t *testing.T) {
	w := startFleet(t, Options{Agents: []int{2, 1}, Seed: 35}, 6)
	w.Completed(w.Put("web-2.zip", 8<<20))
	w.DeployService("web-2.zip", "50%,100%", "2s")
	w.Until("hosts switch", func() bool { d := w.state(); return d != nil && d.Wave > 0 })
	var killed []*Host
	for i, h := range w.Hosts() {
		if i%2 == 0 {
			h.Kill()
			killed = append(killed, h)
		}
	}
	for i := range w.Buckets {
		w.AddHosts(i, 3)
	}
	for _, h := range killed {
		h.Run()
	}
	w.SettleFleet("web-2.zip")
}

// endedCertificates: hosts whose certificates ended two days ago renew them at their agents,
// and switch.
func endedCertificates(t *testing.T) {
	w := startFleet(t, Options{Agents: []int{1, 1}, Seed: 36, Certificates: true}, 3)
	w.Completed(w.Put("web-2.zip", 1<<20))
	w.DeployService("web-2.zip", "34%,100%", "1s")
	w.SettleFleet("web-2.zip")
}

// rolledBack kills an agent when the first host has gone back.
func rolledBack(t *testing.T) {
	w := startFleet(t, Options{Agents: []int{2, 1}, Seed: 38}, 4)
	w.Completed(w.Put("web-2.zip", 1<<20))
	w.DeployService("web-2.zip", "50%,100%", "1m")
	w.Until("it bakes", func() bool { d := w.state(); return d != nil && d.State == api.DeploymentBaking })
	w.seen() // or it would not know why hosts run the target
	switches := w.whoSwitches()
	w.rollback()
	w.Until("a host goes back", func() bool { return switches() != nil })
	w.Agents[0].Kill()
	w.Until("its hosts are at the other agent", func() bool { return w.connected(w.Agents[1]) == 4 })
	w.settleFleet("web-1.zip", api.DeploymentWentBack)
}

// hostHangs has a host hang from the first wave on until all others run the target.
func hostHangs(t *testing.T) {
	w := startFleet(t, Options{Agents: []int{2, 1}, Seed: 39}, 3)
	sleeper := slices.MaxFunc(w.hostsOf(0), func(a, b *Host) int { return cmp.Compare(goal.HashOf(service, a.Name), goal.HashOf(service, b.Name)) })
	w.Completed(w.Put("web-2.zip", 1<<20))
	w.DeployService("web-2.zip", "50%,100%", "1s")
	w.Until("hosts switch", func() bool { d := w.state(); return d != nil && d.Wave > 0 })
	sleeper.Stop() // it has no leave: it is in the second wave
	w.Until("the others run it", func() bool {
		return w.run("web-2.zip", slices.DeleteFunc(w.Hosts(), func(h *Host) bool { return h == sleeper }))
	})
	sleeper.Continue()
	w.SettleFleet("web-2.zip")
}

// agentHangs has one of a region's agents hang from the first wave on until another region
// runs the target.
func agentHangs(t *testing.T) {
	w := startFleet(t, Options{Agents: []int{2, 1}, Seed: 41}, 3)
	w.Completed(w.Put("web-2.zip", 1<<20))
	w.DeployService("web-2.zip", "100%", "1s")
	w.Until("hosts switch", func() bool { d := w.state(); return d != nil && d.Wave > 0 })
	w.Agents[1].Stop()
	w.Until("the other region runs it", func() bool { return w.run("web-2.zip", w.hostsOf(1)) })
	w.Agents[1].Continue()
	w.SettleFleet("web-2.zip")
}

// hangUntilLost has a host hang that has begun to switch, then an agent, until those that they
// had a stream with have given them up.
func hangUntilLost(t *testing.T) {
	w := startFleet(t, Options{Agents: []int{2, 1}, Seed: 40}, 4)
	w.Completed(w.Put("web-2.zip", 1<<20))
	switches := w.whoSwitches()
	w.DeployService("web-2.zip", "50%,100%", "1s")
	var sleeper *Host
	w.Until("a host switches", func() bool { sleeper = switches(); return sleeper != nil })
	sleeper.Stop()
	w.Until("it is lost", func() bool { return w.connected(w.Agents...) == len(w.Hosts())-1 })
	sleeper.Continue()
	w.SettleFleet("web-2.zip")

	w.Completed(w.Put("web-3.zip", 1<<20))
	w.DeployService("web-3.zip", "50%,100%", "1s")
	w.Until("hosts switch", func() bool { d := w.state(); return d != nil && d.Wave > 0 })
	w.Agents[1].Stop()
	w.Until("its hosts are at the other agent", func() bool { return w.connected(w.Agents[0]) == 4 })
	w.Agents[1].Continue()
	w.SettleFleet("web-3.zip")
}

// oldAndNew has agents and hosts of before recalls had beats, and of now, each with both of the
// other, first with a seeder of before: all switch, and go back.
func oldAndNew(t *testing.T) {
	if err := host.start(); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(host.dir, "before") // where every member gets in
	processtest.BuildBefore(t, old, "-Slandfall-recall-beat-v1", "--", "internal/goal/recall.go")
	w := startFleet(t, Options{Agents: []int{1, 1}, Seed: 42, Programs: old}, 2)
	w.Agents[0].Upgrade()
	w.hostsOf(0)[0].Upgrade()
	w.hostsOf(1)[0].Upgrade()
	for _, key := range []string{"web-2.zip", "web-3.zip"} {
		w.ready()
		w.Until("all hosts are known", func() bool { return w.connected(w.Agents...) == len(w.Hosts()) })
		w.Completed(w.Put(key, 1<<20))
		w.DeployService(key, "50%,100%", "1s")
		w.SettleFleet(key)
		w.rollback()
		w.settleFleet("web-1.zip", api.DeploymentWentBack)
		w.Seeder.Upgrade()
	}
}

// clocksAndCertificates has a region's agent and one of its hosts an hour ahead, and two hosts of
// the other region an hour behind: certificates, which hosts renew at once, are for clocks up to
// an hour apart.
func clocksAndCertificates(t *testing.T) {
	withClocks(t, Options{
		Agents: []int{1, 1}, Seed: 43, Certificates: true,
		Before: func(w *World) { w.Agents[0].clock = time.Hour },
		HostClock: func(bucket, number int) time.Duration {
			return time.Duration((number+bucket)%2-bucket) * time.Hour
		},
	})
}

// clocks has the seeder's clock off, a region's agent an hour ahead, and hosts of each region an
// hour ahead, an hour behind and right.
func clocks(t *testing.T, seeder time.Duration) {
	withClocks(t, Options{
		Agents: []int{2, 1}, Seed: 44,
		Before:    func(w *World) { w.Seeder.clock, w.Agents[0].clock = seeder, time.Hour },
		HostClock: func(_, number int) time.Duration { return time.Duration(number%3-1) * time.Hour },
	})
}

// withClocks deploys, restarts an agent whose clock is off in mid-wave, and rolls back.
func withClocks(t *testing.T, o Options) {
	var err error
	if o.Programs, err = host.withClock(); err != nil {
		t.Fatal(err)
	}
	w := startFleet(t, o, 3)
	w.Completed(w.Put("web-2.zip", 5<<20))
	w.DeployService("web-2.zip", "50%,100%", "2s")
	w.Until("hosts switch", func() bool { d := w.state(); return d != nil && (d.Wave > 0 || d.Ended()) })
	w.Agents[0].Kill()
	w.Agents[0].Run()
	w.ready()
	w.SettleFleet("web-2.zip")
	w.Completed(w.Put("web-3.zip", 1<<20))
	w.DeployService("web-3.zip", "50%,100%", "1m")
	w.Until("it bakes", func() bool { d := w.state(); return d != nil && d.State == api.DeploymentBaking })
	w.seen() // or it would not know why hosts run the target
	w.rollback()
	w.settleFleet("web-2.zip", api.DeploymentWentBack)
}
