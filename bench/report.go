//go:build linux

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// report prints what was measured in a cell: least, median and greatest.
func report(w io.Writer, c cell, all []result) {
	results := slices.DeleteFunc(slices.Clone(all), func(r result) bool { return r.Cell != c })
	if len(results) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s   file %d MiB, uplink %d Mbit/s, bound %.2f s\n", c, c.size()/mib, c.Rate/1e6, c.bound().Seconds())
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SYSTEM\tRUNS\tLANDED/BOUND\tDOWNLOADED/BOUND\tLAST BYTE TO OBJECT, s\tSEEDER SENT/F\tON THE WIRE/F\tCPU, ALL\tOWN\tPEAK MEMORY, MiB")
	var names []string
	for _, r := range results {
		if !slices.Contains(names, r.System) {
			names = append(names, r.System)
		}
	}
	for _, name := range names {
		of := ofSystem(results, name)
		size := float64(c.size())
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, len(of),
			spread(of, func(r result) float64 {
				if len(r.Landed) == 0 {
					return 0
				}
				return r.Makespan / r.Bound
			}),
			spread(of, func(r result) float64 { return slices.Max(r.Downloaded) / r.Bound }),
			spread(of, result.completing),
			spread(of, func(r result) float64 { return float64(r.SeederPayload) / size }),
			spread(of, func(r result) float64 { return float64(r.SeederWire) / size }),
			spread(of, func(r result) float64 { return r.CPU }),
			spread(of, func(r result) float64 { return r.OwnCPU }),
			memory(of))
	}
	t.Flush()
	if c.Bad != "" {
		fmt.Fprintf(w, "of %d members these called the bad one bad by the end: %s\n", c.Members,
			spread(results, func(r result) float64 { return float64(r.Named) }))
	}
	for _, name := range names {
		of := ofSystem(results, name)
		if c.Builds > 1 {
			fmt.Fprintf(w, "%s: the mean time to landed everywhere over the last build's: %s\n", name, spread(of, func(r result) float64 {
				var sum float64
				for _, t := range r.Everywhere {
					sum += t
				}
				return sum / float64(c.Builds) / slices.Max(r.Everywhere)
			}))
		}
		if c.Urgent {
			how := "--priority high"
			if !of[0].Priority {
				how = "no priority, which this version does not know"
			}
			fmt.Fprintf(w, "%s: a build of a tenth the size, published at half the bound (%s), landed after %s times what it takes alone (%s s)\n", name, how,
				spread(of, func(r result) float64 { return r.Urgent / r.Alone }), spread(of, func(r result) float64 { return r.Alone }))
		}
		if uploads := ofSystem(results, upload{}.name()); len(uploads) > 0 && name != uploads[0].System {
			slices.SortFunc(uploads, func(a, b result) int { return cmp.Compare(a.Makespan, b.Makespan) })
			fmt.Fprintf(w, "%s: landed after %s times what the upload alone takes\n", name,
				spread(of, func(r result) float64 { return r.Makespan / uploads[len(uploads)/2].Makespan }))
		}
	}
	if c.Publish == sameUplink {
		fmt.Fprintln(w, "The file takes the seeder's uplink twice, to S3 and to the regions: no system can be below twice the bound.")
	}
	if c.Slow > 1 {
		for _, name := range names {
			of := ofSystem(results, name)
			fast := float64(c.size()) * 8 / float64(c.Rate)
			fmt.Fprintf(w, "%s: the others had it downloaded after %s of file over uplink\n", name,
				spread(of, func(r result) float64 { return slices.Max(r.Downloaded[:c.Members-1]) / fast }))
		}
	}
}

func ofSystem(results []result, name string) []result {
	return slices.DeleteFunc(slices.Clone(results), func(r result) bool { return r.System != name })
}

// completing is the longest time from a member's last byte to its complete object.
func (r result) completing() (longest float64) {
	for i, landed := range r.Landed {
		longest = max(longest, landed-r.Downloaded[i])
	}
	return longest
}

// spread is "min / median / max", or a dash where nothing was counted.
func spread(results []result, of func(result) float64) string {
	var values []float64
	for _, r := range results {
		values = append(values, of(r))
	}
	slices.Sort(values)
	if len(values) == 0 || values[len(values)-1] == 0 {
		return "–"
	}
	return fmt.Sprintf("%.3f / %.3f / %.3f", values[0], values[len(values)/2], values[len(values)-1])
}

// memory names the largest process of each kind.
func memory(results []result) string {
	peaks := make(map[string]int64)
	for _, r := range results {
		for kind, peak := range r.Memory {
			peaks[kind] = max(peaks[kind], peak)
		}
	}
	var out []string
	for kind, peak := range peaks {
		if peak == 0 { // it had ended
			continue
		}
		out = append(out, fmt.Sprintf("%s %d", kind, peak/mib))
	}
	slices.SortFunc(out, cmp.Compare[string])
	return strings.Join(out, ", ")
}
