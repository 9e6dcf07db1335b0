package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
)

// Services lists all services, in order of name.
func (c *Client) Services(ctx context.Context) (*Services, error) {
	return call[Services](ctx, c, http.MethodGet, "/services", nil)
}

// Service returns one service: its goal, its newest deployment and what its hosts do.
func (c *Client) Service(ctx context.Context, service string) (*Service, error) {
	return call[Service](ctx, c, http.MethodGet, servicePath(service, ""), nil)
}

// Deployments lists a service's deployments, newest first.
func (c *Client) Deployments(ctx context.Context, service string) (*Deployments, error) {
	return call[Deployments](ctx, c, http.MethodGet, servicePath(service, "/deployments"), nil)
}

const (
	// hostsPage is how many hosts AllHosts asks for at once, the most that the seeder gives.
	hostsPage = 1000
	// MaxAllHosts bounds the hosts of AllHosts; a seeder's hosts are fewer.
	MaxAllHosts = 1_000_000
)

// Hosts asks for a service's hosts: those in a state, or all where it is empty; limit 0 for
// the server's own. They are in order of region and name; after is empty for the first ones,
// else the Next of those before.
func (c *Client) Hosts(ctx context.Context, service, state string, limit int, after string) (*HostViews, error) {
	q := make(url.Values)
	if state != "" {
		q.Set("state", state)
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	if after != "" {
		q.Set("after", after)
	}
	return call[HostViews](ctx, c, http.MethodGet, servicePath(service, "/hosts?"+q.Encode()), nil)
}

// AllHosts makes one list of as many calls of Hosts as it takes: of most hosts, or of all for
// 0, and of MaxAllHosts at most. Its Unanswered are those of any call.
func (c *Client) AllHosts(ctx context.Context, service, state string, most int) (*HostViews, error) {
	if most <= 0 || most > MaxAllHosts {
		most = MaxAllHosts
	}
	out := &HostViews{Hosts: []HostView{}}
	pages := 0
	for {
		page, err := c.Hosts(ctx, service, state, min(most-len(out.Hosts), hostsPage), out.Next)
		if err != nil {
			return nil, err
		}
		if page.Next != "" && (len(page.Hosts) == 0 || page.Next == out.Next) {
			return nil, fmt.Errorf("hosts of %s after %s: no others came, and there are more", service, page.Next)
		}
		out.Hosts, out.Next, out.All = append(out.Hosts, page.Hosts...), page.Next, max(out.All, page.All)
		out.Unanswered = append(out.Unanswered, page.Unanswered...)
		pages++
		if out.Next == "" || len(out.Hosts) >= most {
			break
		}
	}
	slices.Sort(out.Unanswered)
	out.Unanswered = slices.Compact(out.Unanswered)
	// A host that has moved is counted by each agent that knows it, but on its own page.
	if out.All = max(out.All, len(out.Hosts)); pages > 1 && out.Next == "" && out.Unanswered == nil {
		out.All = len(out.Hosts)
	}
	return out, nil
}

// LogHosts has the seeder write how each host stands into its table of hosts, under the newest
// deployment, and returns when that is done, after minutes where there are many. A *StatusError
// of 409 says that it is being done already.
func (c *Client) LogHosts(ctx context.Context, service string) (*HostsLogged, error) {
	return call[HostsLogged](ctx, c, http.MethodPost, servicePath(service, "/hosts/log"), struct{}{})
}

// DeployService begins a deployment, which goes on by itself. A *StatusError of 409 says
// that another one is under way, or that another seeder was first.
func (c *Client) DeployService(ctx context.Context, service string, r ServiceDeployRequest) (*ServiceDeployAnswer, error) {
	return call[ServiceDeployAnswer](ctx, c, http.MethodPost, servicePath(service, "/deployments"), r)
}

// Pause has no further host switch, until Resume.
func (c *Client) Pause(ctx context.Context, service string) (*ServiceCommandAnswer, error) {
	return c.command(ctx, service, "/pause", ServiceCommandRequest{})
}

// Resume goes on with a deployment that is paused.
func (c *Client) Resume(ctx context.Context, service string) (*ServiceCommandAnswer, error) {
	return c.command(ctx, service, "/resume", ServiceCommandRequest{})
}

// Abort stops a deployment; hosts stay with what they run.
func (c *Client) Abort(ctx context.Context, service string) (*ServiceCommandAnswer, error) {
	return c.command(ctx, service, "/abort", ServiceCommandRequest{})
}

// Rollback has all hosts run the stable build again; now lifts the limit of those that
// switch at a time.
func (c *Client) Rollback(ctx context.Context, service string, now bool) (*ServiceCommandAnswer, error) {
	return c.command(ctx, service, "/rollback", ServiceCommandRequest{Now: now})
}

// RollbackPlan says what a roll-back would do, in its Back: how many hosts hold the stable
// build, and how many have to fetch it.
func (c *Client) RollbackPlan(ctx context.Context, service string) (*ServiceCommandAnswer, error) {
	return c.command(ctx, service, "/rollback", ServiceCommandRequest{DryRun: true})
}

// RollbackWithoutTable is Rollback for when the table of services is away: hosts are told
// first, and the table is written when that can be.
func (c *Client) RollbackWithoutTable(ctx context.Context, service string, now bool) (*ServiceCommandAnswer, error) {
	return c.command(ctx, service, "/rollback", ServiceCommandRequest{Now: now, WithoutTable: true})
}

// Hold has hosts stay with what they run, whatever the goal is, until Release.
func (c *Client) Hold(ctx context.Context, service string, hosts ...string) (*ServiceCommandAnswer, error) {
	return c.command(ctx, service, "/hold", ServiceCommandRequest{Hosts: hosts})
}

// Release has hosts follow the goal again.
func (c *Client) Release(ctx context.Context, service string, hosts ...string) (*ServiceCommandAnswer, error) {
	return c.command(ctx, service, "/release", ServiceCommandRequest{Hosts: hosts})
}

// Recalls are the builds that are to run nowhere.
func (c *Client) Recalls(ctx context.Context) (*Recalls, error) {
	return call[Recalls](ctx, c, http.MethodGet, "/recalls", nil)
}

// Recall has builds run nowhere any more, or takes that back. A *StatusError of 409 says that
// a service runs one, or goes back to it.
func (c *Client) Recall(ctx context.Context, r RecallRequest) (*Recalls, error) {
	return call[Recalls](ctx, c, http.MethodPost, "/recalls", r)
}

// Skip has a deployment go on without a region.
func (c *Client) Skip(ctx context.Context, service, region string) (*ServiceCommandAnswer, error) {
	return c.command(ctx, service, "/skip", ServiceCommandRequest{Region: region})
}

func (c *Client) command(ctx context.Context, service, command string, r ServiceCommandRequest) (*ServiceCommandAnswer, error) {
	return call[ServiceCommandAnswer](ctx, c, http.MethodPost, servicePath(service, command), r)
}

func servicePath(service, rest string) string { return "/services/" + url.PathEscape(service) + rest }
