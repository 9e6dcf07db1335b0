package fleetsim

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// Result is what came of a simulation. Times of hosts are shares of their bound: that of
// the region, but for slow and late hosts, whose own rate and start count.
type Result struct {
	Config Config
	Bound  time.Duration
	// Fast are the hosts at the full rate that were there from the beginning, Slow those at a
	// tenth of it, Late those that started meanwhile, sorted. Without are those that have not
	// come to an end.
	Fast, Slow, Late []float64
	Without          int
	// After is how long after the region had the build 99 % of the fast hosts had it.
	After time.Duration
	// Agents is what agents sent, AcrossZones what passed from one zone to another, Twice what
	// came to hosts that had it, in bytes; Stolen are items that were asked for twice.
	Agents, AcrossZones, Twice int64
	Stolen                     int64
	// Down and Up are messages and bytes of streams of a host, sorted; AgentDown and AgentUp
	// those of an agent, the most.
	DownMessages, DownBytes, UpMessages, UpBytes []int
	AgentDown, AgentUp                           traffic
	Events                                       int64
	Items                                        int
}

func (w *world) sum() *Result {
	r := &w.result
	r.Config, r.Bound = w.cfg, w.cfg.Bound()
	for i := range w.segments {
		r.Items += w.segments[i].items
	}
	arrived := w.segments[len(w.segments)-1].ends
	var fast []time.Duration
	for i := range w.hosts {
		h := &w.hosts[i]
		r.DownMessages, r.DownBytes = append(r.DownMessages, h.downMessages), append(r.DownBytes, h.downBytes)
		r.UpMessages, r.UpBytes = append(r.UpMessages, h.upMessages), append(r.UpBytes, h.upBytes)
		if h.dying {
			continue
		}
		if h.done == 0 {
			r.Without++
			continue
		}
		rate := w.cfg.Rate
		if h.slow {
			rate *= slowShare
		}
		own := max(seconds(float64(w.cfg.Size)/rate), arrived-h.from)
		switch {
		case h.late:
			r.Late = append(r.Late, float64(h.done-h.from)/float64(own))
		case h.slow:
			r.Slow = append(r.Slow, float64(h.done)/float64(own))
		default:
			r.Fast = append(r.Fast, float64(h.done)/float64(r.Bound))
			fast = append(fast, h.done)
		}
	}
	slices.Sort(r.Fast)
	slices.Sort(r.Slow)
	slices.Sort(r.Late)
	slices.Sort(fast)
	r.After = Percentile(fast, 99) - arrived
	for _, of := range [][]int{r.DownMessages, r.DownBytes, r.UpMessages, r.UpBytes} {
		slices.Sort(of)
	}
	for i := range w.agents {
		a := &w.agents[i]
		if a.down.bytes > r.AgentDown.bytes {
			r.AgentDown = a.down
		}
		if a.up.bytes > r.AgentUp.bytes {
			r.AgentUp = a.up
		}
	}
	return r
}

// Percentile is the value below which p of 100 are, of sorted ones; zero for none.
func Percentile[T any](sorted []T, p float64) (v T) {
	if len(sorted) == 0 {
		return v
	}
	return sorted[min(len(sorted)-1, int(p/100*float64(len(sorted))))]
}

// Print writes a result for people.
func (r *Result) Print(out io.Writer) error {
	c := r.Config
	size := func(n int64) float64 { return float64(n) / float64(c.Size) }
	fmt.Fprintf(out, "%d hosts in %d zones, %d agents, %.3g GB, %.3g Gbit/s each, the region gets %.3g Gbit/s; %d items, seed %d: bound %.2f s\n",
		c.Hosts, c.Zones, c.Agents, float64(c.Size)/1e9, c.Rate*8/1e9, c.Inflow*8/1e9, r.Items, c.Seed, r.Bound.Seconds())
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TIME OVER THE OWN BOUND\tHOSTS\tP50\tP99\tP99.9\tWORST")
	for _, of := range []struct {
		name  string
		times []float64
	}{{"full rate", r.Fast}, {"a tenth of it", r.Slow}, {"late", r.Late}} {
		fmt.Fprintf(t, "%s\t%d\t%.3f\t%.3f\t%.3f\t%.3f\n", of.name, len(of.times), Percentile(of.times, 50), Percentile(of.times, 99), Percentile(of.times, 99.9), Percentile(of.times, 100))
	}
	fmt.Fprintf(t, "not at an end\t%d\n", r.Without)
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "99 %% ready %.2f s after the region; agents sent %.2f F, across zones %.1f F, twice %.4f F a host, %d items asked for twice\n"+
		"streams, a host (median, most): down %d and %d messages, %.1f and %.1f kB; up %d and %d messages, %.1f and %.1f kB; busiest agent: %d down, %.1f MB, %d up, %.1f MB\n",
		r.After.Seconds(), size(r.Agents), size(r.AcrossZones), size(r.Twice)/float64(c.Hosts), r.Stolen,
		Percentile(r.DownMessages, 50), Percentile(r.DownMessages, 100), kilo(Percentile(r.DownBytes, 50)), kilo(Percentile(r.DownBytes, 100)),
		Percentile(r.UpMessages, 50), Percentile(r.UpMessages, 100), kilo(Percentile(r.UpBytes, 50)), kilo(Percentile(r.UpBytes, 100)),
		r.AgentDown.messages, float64(r.AgentDown.bytes)/1e6, r.AgentUp.messages, float64(r.AgentUp.bytes)/1e6)
	return err
}

func kilo(n int) float64 { return float64(n) / 1e3 }
