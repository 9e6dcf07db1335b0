//go:build linux

package chaos

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/signing"
)

const (
	// fleetWatchInterval is the pause between two looks at all hosts.
	fleetWatchInterval = 100 * time.Millisecond
	// maxUnavailable is the policy of all deployments here.
	maxUnavailable = goal.Share("34%")
)

// fleetWatch looks at all hosts as long as the world stands.
type fleetWatch struct {
	w     *World
	trust *signing.Trust
	goals map[int64]*goal.Goal // that the table has had, by version
	hosts map[*Host]hostSeen   // a look ago
	whole map[[2]string]bool   // releases that were read, by host and execution
	odd   map[[2]string]bool   // what was complained of, by host and execution
	looks atomic.Int64
}

// hostSeen is what a look finds at a host.
type hostSeen struct {
	runs string
	goal int64 // its version
}

// watchFleet begins the watch.
func (w *World) watchFleet() {
	w.t().Helper()
	trust, err := signing.OpenTrust([]string{filepath.Join(w.dir, "seeder.key.pub")}, "")
	if err != nil {
		w.t().Fatal(err)
	}
	v := &fleetWatch{
		w: w, trust: trust, goals: make(map[int64]*goal.Goal), hosts: make(map[*Host]hostSeen), whole: make(map[[2]string]bool),
		odd: make(map[[2]string]bool),
	}
	w.fleet = v
	w.watch.wg.Go(func() {
		for w.watch.ctx.Err() == nil {
			v.look()
			select {
			case <-w.watch.ctx.Done():
			case <-time.After(fleetWatchInterval):
			}
		}
	})
}

// look reads what hosts have before the table: what made them switch is in there by then.
func (v *fleetWatch) look() {
	hosts := v.w.Hosts()
	now := make(map[*Host]hostSeen)
	for _, h := range hosts {
		now[h] = v.host(h)
	}
	newest := v.readGoal()
	if newest == nil {
		return
	}
	for _, h := range hosts {
		before, seen := v.hosts[h], now[h]
		switch {
		case seen.goal > newest.Version:
			v.w.owner.Errorf("%s has goal %d, the table has %d", h.Name, seen.goal, newest.Version)
		case seen.goal < before.goal:
			v.w.owner.Errorf("%s has goal %d, and had %d", h.Name, seen.goal, before.goal)
		}
		switch {
		case seen.runs != "":
			v.verified(h, seen.runs)
			v.wanted(h, seen.runs)
		case before.runs != "":
			v.w.owner.Errorf("%s runs nothing, and ran %s", h.Name, before.runs)
		}
	}
	v.hosts = now
	v.looks.Add(1)
}

// seen waits until the watch knows the goal that the table has.
func (w *World) seen() {
	w.t().Helper()
	before := w.fleet.looks.Load()
	w.Until("hosts are looked at", func() bool { return w.fleet.looks.Load() > before+1 })
}

func (v *fleetWatch) host(h *Host) (s hostSeen) {
	s.runs = h.Runs()
	wire, err := os.ReadFile(filepath.Join(h.Dir, ".landfall", "goals", service+".goal"))
	if err != nil {
		return s
	}
	if g := v.open(wire); g != nil {
		s.goal = g.Version
	}
	return s
}

// readGoal is the goal that the table has; nil for none, or when it cannot be read.
func (v *fleetWatch) readGoal() *goal.Goal {
	wire, err := v.w.Services.Goal(v.w.watch.ctx, service)
	if err != nil {
		if v.w.watch.ctx.Err() == nil {
			v.w.owner.Errorf("reading the table of services: %v", err)
		}
		return nil
	}
	if len(wire) == 0 {
		return nil
	}
	g := v.open(wire)
	if g == nil {
		return nil
	}
	if v.goals[g.Version] == nil {
		v.goals[g.Version] = g
		if g.Done && len(g.Regions) > 0 { // else it goes back, which it has only begun
			v.done(g)
		}
	}
	return g
}

func (v *fleetWatch) open(wire []byte) *goal.Goal {
	doc, err := goal.Open(wire, v.trust, time.Now())
	g, ok := doc.(*goal.Goal)
	if err != nil || !ok {
		v.w.owner.Errorf("a goal that is none: %v", err)
		return nil
	}
	return g
}

// done holds a deployment that says so to it: who was there all the time runs the target,
// whatever became of its agents.
func (v *fleetWatch) done(g *goal.Goal) {
	begun := v.w.begun(g.Target.Key)
	for _, h := range v.w.Hosts() {
		if !h.ranSince(begun) {
			continue
		}
		if id := h.Runs(); id != g.Target.ExecutionID {
			v.w.owner.Errorf("goal %d says that %s is done, %s runs %q", g.Version, g.Target.ExecutionID, h.Name, id)
		}
	}
}

// verified reads a release once: it is a build that was published.
func (v *fleetWatch) verified(h *Host, id string) {
	name := [2]string{h.Name, id}
	if v.whole[name] {
		return
	}
	v.whole[name] = true
	dir := filepath.Join(h.Dir, service, "releases", id)
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		v.w.owner.Errorf("%s runs %s, which has %d files, %v", h.Name, id, len(files), err)
		return
	}
	content, err := os.ReadFile(filepath.Join(dir, files[0].Name()))
	if err != nil {
		v.w.owner.Errorf("%s runs %s: %v", h.Name, id, err)
		return
	}
	sum := sha256.Sum256(content)
	if v.w.published(files[0].Name(), hex.EncodeToString(sum[:])) == nil {
		v.w.owner.Errorf("%s runs %s: %d bytes that nobody published as %s", h.Name, id, len(content), files[0].Name())
	}
}

// wanted holds what a host runs to the goals: one of them has had it run that. So nobody at
// or above the cut runs the target.
func (v *fleetWatch) wanted(h *Host, id string) {
	name := [2]string{h.Name, id}
	if v.odd[name] {
		return
	}
	for _, g := range v.goals {
		if b := g.For(h.Region, h.Name); b != nil && b.ExecutionID == id {
			return
		}
	}
	v.odd[name] = true
	v.w.owner.Errorf("%s runs %s, which no goal has it run", h.Name, id)
}

// together holds those that switched to how many may at a time, in a region and in each of
// its zones, by the greatest number of hosts that there ever was.
func (w *World) together() {
	w.t().Helper()
	type moment struct {
		at  int64
		add int // 1 for who begins, -1 for who ends
	}
	moments, hosts := make(map[string][]moment), make(map[string]int)
	for _, h := range w.Hosts() {
		switches, err := h.switches()
		if err != nil {
			w.t().Errorf("switches of %s: %v", h.Name, err)
		}
		for _, place := range []string{h.Region, h.Region + "/" + h.Zone} {
			hosts[place]++
			for _, s := range switches {
				moments[place] = append(moments[place], moment{s.begun, 1}, moment{s.ended, -1})
			}
		}
	}
	for place, all := range moments {
		slices.SortFunc(all, func(a, b moment) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.add, b.add)) })
		now, most := 0, 0
		for _, m := range all {
			now += m.add
			most = max(most, now)
		}
		if may := max(1, maxUnavailable.Of(hosts[place])); most > may {
			w.t().Errorf("%d of %d hosts of %s switched at a time, at most %d may", most, hosts[place], place, may)
		}
	}
}

// deploys notes when a deployment of a key was first asked for.
func (w *World) deploys(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, known := w.deployed[key]; !known {
		w.deployed[key] = time.Now()
	}
}

// begun is when a deployment of a key was first asked for.
func (w *World) begun(key string) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	t, known := w.deployed[key]
	if !known {
		panic(fmt.Sprintf("chaos: nobody has deployed %s", key))
	}
	return t
}
