//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/processtest"
)

// rollBack goes back at once from one build to the one before, which all hosts hold, a few
// times: each host's time from the command to its switch.
func rollBack(ctx context.Context, s *fleetStack, c *cli.Context) error {
	hosts, size := c.Int("hosts"), int64(c.Int("mib"))<<20
	if err := s.run(ctx, 0, 0, 0, 1); err != nil {
		return err
	}
	urls := make([]string, hosts)
	for i := range hosts {
		addr, err := freeAddr()
		if err != nil {
			return err
		}
		urls[i] = "http://" + addr
		if _, err := s.addHost(fmt.Sprintf("region-%d", i%2+1), "--listen", addr); err != nil {
			return err
		}
	}
	if err := processtest.Until(ctx, "all hosts", func() (bool, error) { return s.connected(ctx) == hosts, nil }); err != nil {
		return err
	}
	if err := s.begin(ctx, "web-1.zip", 1, size, "100%"); err != nil {
		return err
	}
	if _, err := s.deployed(ctx, "web-1.zip"); err != nil {
		return err
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "HOSTS\tMiB\tHOLD IT, MUST FETCH IT\tSWITCHED, s: p50, p99, LAST\tALL SAID TO BE BACK, s\tBYTES FETCHED")
	for round := range c.Int("rounds") {
		if err := s.begin(ctx, fmt.Sprintf("web-%d.zip", round+2), byte(round+2), size, "100%"); err != nil {
			return err
		}
		if _, err := s.deployed(ctx, fmt.Sprintf("web-%d.zip", round+2)); err != nil {
			return err
		}
		plan, err := s.seeder.RollbackPlan(ctx, benchService)
		if err != nil {
			return err
		}
		var hold, fetch int
		for _, b := range plan.Back {
			hold, fetch = hold+b.Holding, fetch+b.Fetching
		}
		before, err := downloaded(ctx, urls)
		if err != nil {
			return err
		}
		began := time.Now()
		if _, err := s.seeder.Rollback(ctx, benchService, true); err != nil {
			return err
		}
		var v *api.Service
		err = processtest.Until(ctx, "the roll-back", func() (bool, error) {
			v, err = s.seeder.Service(ctx, benchService)
			return err == nil && v.Deployment != nil && v.Deployment.Ended(), nil
		})
		if err != nil {
			return err
		}
		said := time.Since(began)
		if v.Deployment.State == api.DeploymentStopped {
			return fmt.Errorf("%s: %s", v.Deployment.State, v.Deployment.Reason)
		}
		id := v.Stable.ExecutionID
		var times []float64
		for _, h := range s.machines {
			info, err := os.Lstat(filepath.Join(h.dir, benchService, "current"))
			if err != nil {
				return err
			}
			if h.runs() != id {
				return fmt.Errorf("%s runs %s, not %s", h.name, h.runs(), id)
			}
			times = append(times, info.ModTime().Sub(began).Seconds()) // the link is made when the host switches
		}
		after, err := downloaded(ctx, urls)
		if err != nil {
			return err
		}
		fmt.Fprintf(t, "%d\t%d\t%d, %d\t%.2f, %.2f, %.2f\t%.1f\t%d\n", hosts, size>>20, hold, fetch, quantile(times, 0.5), quantile(times, 0.99), slices.Max(times), said.Seconds(), after[id]-before[id])
	}
	return t.Flush()
}

// downloaded is how many bytes of each build all hosts have fetched.
func downloaded(ctx context.Context, urls []string) (map[string]int64, error) {
	all := make(map[string]int64)
	for _, url := range urls {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/status", nil)
		if err != nil {
			return nil, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, err
		}
		var v api.HostStatus
		err = json.NewDecoder(resp.Body).Decode(&v)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		for _, b := range v.Builds {
			all[b.ExecutionID] += b.DownloadedBytes
		}
	}
	return all, nil
}
