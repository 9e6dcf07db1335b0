package terminal

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
)

// Services prints the list of services.
func Services(w io.Writer, list *api.Services) error {
	if list.Loading {
		defer say(w, "the seeder is still reading the table: this is not all")
	}
	if len(list.Services) == 0 {
		if list.Loading {
			return nil
		}
		return say(w, "there is no service yet; deploy to one with: seeder deploy web build.zip")
	}
	var rows [][]string
	for i := range list.Services {
		s := &list.Services[i]
		rows = append(rows, []string{
			s.Service, keyOf(s.Target), dash(keyOf(s.Stable)), stateOf(s.Deployment), fmt.Sprint(s.Hosts.Total),
			fmt.Sprint(s.Hosts.Target), fmt.Sprint(s.Hosts.Failed), s.Issued.Local().Format(time.DateTime), s.Error,
		})
	}
	return table(w, []column{
		{head: "SERVICE", least: 8}, {head: "TARGET", least: 10, rank: 1}, {head: "STABLE", least: 8, rank: 4}, {head: "DEPLOYMENT", least: 8},
		{head: "HOSTS", rank: 2}, {head: "ON TARGET"}, {head: "FAILED"}, {head: "CHANGED", rank: 3}, {note: true},
	}, rows)
}

// Service prints one service, its newest deployment and its regions.
func Service(w io.Writer, s *api.Service) error {
	head := fmt.Sprintf("%s runs %s", command.Plain(s.Service), command.Plain(cmp.Or(keyOf(s.Target), "nothing yet")))
	if s.Stable != nil && (s.Target == nil || s.Stable.ExecutionID != s.Target.ExecutionID) {
		head += ", stable is " + command.Plain(s.Stable.Key)
	}
	say(w, fmt.Sprintf("%s; goal %d of %s%s", head, s.Version, s.Issued.Local().Format(time.DateTime), by(s.By)))
	if d := s.Deployment; d != nil {
		say(w, deploymentLine(d))
	}
	if s.Error != "" {
		say(w, "error: "+command.Plain(s.Error))
	}
	if len(s.Held) > 0 {
		say(w, "held: "+command.Plain(strings.Join(s.Held, ", ")))
	}
	fmt.Fprintln(w)
	if err := serviceRegions(w, s); err != nil {
		return err
	}
	if len(s.Failures) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return failureGroups(w, s.Failures)
}

// Back prints what a roll-back means in each region.
func Back(w io.Writer, a *api.ServiceCommandAnswer) error {
	say(w, backLine(a))
	var rows [][]string
	for _, r := range a.Back {
		note := ""
		if r.Unknown {
			note = "not counted of late"
		}
		rows = append(rows, []string{r.Region, fmt.Sprint(r.Hosts), fmt.Sprint(r.Holding), fmt.Sprint(r.Fetching), note})
	}
	if len(rows) == 0 {
		return nil
	}
	return table(w, []column{{head: "REGION", least: 6}, {head: "HOSTS"}, {head: "HOLD IT"}, {head: "MUST FETCH IT"}, {note: true}}, rows)
}

// BackLine prints that in one line.
func BackLine(w io.Writer, a *api.ServiceCommandAnswer) error { return say(w, backLine(a)) }

func backLine(a *api.ServiceCommandAnswer) string {
	holding, fetching, unknown := 0, 0, []string{}
	for _, r := range a.Back {
		holding, fetching = holding+r.Holding, fetching+r.Fetching
		if r.Unknown {
			unknown = append(unknown, r.Region)
		}
	}
	note := ""
	if len(unknown) > 0 {
		note = "; not counted of late: hosts in " + strings.Join(unknown, ", ")
	}
	key := ""
	if d := a.Deployment; d != nil {
		key = keyOf(d.From)
	}
	return command.Plain(fmt.Sprintf("back to %s: %d hosts hold it, %d must fetch it%s", cmp.Or(key, "the stable build"), holding, fetching, note))
}

// Recalls prints the builds that are to run nowhere.
func Recalls(w io.Writer, list *api.Recalls) error {
	if len(list.Recalled) == 0 {
		return say(w, "no build is recalled")
	}
	var rows [][]string
	for _, b := range list.Recalled {
		rows = append(rows, []string{dash(b.Key), dash(b.ExecutionID), b.SHA256, b.At.Local().Format(time.DateTime), dash(b.By)})
	}
	return table(w, []column{{head: "KEY", least: 8}, {head: "EXECUTION", rank: 3}, {head: "SHA-256", least: 12, rank: 4}, {head: "SINCE", rank: 2}, {head: "BY", rank: 1}}, rows)
}

// serviceRegions prints the table of a service's regions.
func serviceRegions(w io.Writer, s *api.Service) error {
	if len(s.Regions) == 0 {
		return say(w, "no region has hosts of it")
	}
	var rows [][]string
	for _, r := range s.Regions {
		c := r.Hosts
		row := []string{r.Region, gateOf(&r), fmt.Sprintf("%g%%", float64(int(r.Share*1000+0.5))/10), fmt.Sprint(c.Total), fmt.Sprint(c.Target)}
		for _, state := range api.HostStates() {
			row = append(row, fmt.Sprint(c.Of(state)))
		}
		rows = append(rows, append(row, countedAt(r.CountedAt)))
	}
	return table(w, []column{
		{head: "REGION", least: 6}, {head: "GATE", rank: 7}, {head: "SHARE", rank: 4}, {head: "HOSTS"}, {head: "ON TARGET"},
		{head: "WAITING", rank: 5}, {head: "READY", rank: 6}, {head: "SWITCHING", rank: 2}, {head: "HEALTHY", rank: 1}, {head: "FAILED"},
		{head: "ABSENT", rank: 8}, {head: "SICK", rank: 9}, {head: "COUNTED", rank: 3},
	}, rows)
}

// failureGroups prints why hosts have failed, each with the hook's last lines.
func failureGroups(w io.Writer, groups []api.FailureGroup) error {
	for _, f := range groups {
		text := fmt.Sprintf("%d of %s: %s", f.Hosts, cmp.Or(f.Phase, "unknown phase"), cmp.Or(f.Error, "no reason"))
		if f.Example != "" {
			text += ", such as " + f.Example
		}
		if err := say(w, command.Plain(text)); err != nil {
			return err
		}
		for line := range strings.Lines(f.Output) {
			if _, err := fmt.Fprintln(w, "  "+cutTo(w, command.Plain(strings.TrimRight(line, "\r\n")), 2)); err != nil {
				return err
			}
		}
	}
	return nil
}

// cutTo shortens a line that has an indent before it to the terminal.
func cutTo(w io.Writer, line string, indent int) string {
	if width := widthOf(w); width > 0 {
		return cut(line, max(width-indent, 1))
	}
	return line
}

// Hosts prints hosts of a service.
func Hosts(w io.Writer, list *api.HostViews) error {
	defer func() {
		if n := list.All - len(list.Hosts); n > 0 {
			say(w, fmt.Sprintf("%d of %d hosts are shown; --limit shows more, --limit 0 all", len(list.Hosts), list.All))
		}
		if len(list.Unanswered) > 0 {
			say(w, command.Plain("agents that did not answer: in "+strings.Join(list.Unanswered, ", ")))
		}
	}()
	if len(list.Hosts) == 0 {
		return say(w, "no hosts")
	}
	var rows [][]string
	for _, h := range list.Hosts {
		why := h.Error
		if h.Phase != "" && why != "" {
			why = h.Phase + ": " + why
		}
		if last := lastLine(h.Output); last != "" {
			why += " (" + last + ")"
		}
		if h.Held {
			why = strings.TrimSuffix("held; "+why, "; ")
		}
		rows = append(rows, []string{h.Host, h.Region, dash(h.Zone), h.State, dash(cmp.Or(h.Key, h.Running)), fmt.Sprint(h.Version), countedAt(h.SeenAt), dash(labelsOf(h.Labels)), dash(h.Program), why})
	}
	return table(w, []column{
		{head: "HOST", least: 8}, {head: "REGION", least: 6, rank: 1}, {head: "ZONE", least: 4, rank: 4}, {head: "STATE"},
		{head: "RUNNING", rank: 2}, {head: "GOAL", rank: 5}, {head: "SEEN", rank: 3}, {head: "LABELS", rank: 6}, {head: "PROGRAM", rank: 7}, {note: true},
	}, rows)
}

// HostsLogged prints which hosts were written into the table.
func HostsLogged(w io.Writer, of *api.HostsLogged) error {
	var rows [][]string
	for _, r := range of.Regions {
		rows = append(rows, []string{r.Region, fmt.Sprint(r.Hosts)})
	}
	if len(rows) > 0 {
		if err := table(w, []column{{head: "REGION", least: 6}, {head: "HOSTS"}}, rows); err != nil {
			return err
		}
	}
	if len(of.Unanswered) > 0 {
		if err := say(w, command.Plain("agents that did not answer: in "+strings.Join(of.Unanswered, ", "))); err != nil {
			return err
		}
	}
	return say(w, command.Plain(fmt.Sprintf("%d hosts are written under deployment %s", of.Hosts, of.DeploymentID)))
}

// labelsOf are a host's labels in order.
func labelsOf(labels map[string]string) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, k+"="+labels[k])
	}
	return strings.Join(all, ",")
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

func countedAt(at *time.Time) string {
	if at == nil {
		return "never"
	}
	return at.Local().Format(time.TimeOnly)
}

func keyOf(b *api.ServiceBuild) string {
	if b == nil {
		return ""
	}
	return b.Key
}

func by(name string) string {
	if name == "" {
		return ""
	}
	return " by " + command.Plain(name)
}

func gateOf(r *api.ServiceRegion) string {
	switch {
	case r.Skipped:
		return "skipped"
	case r.Open:
		return "open"
	}
	return "closed"
}

// stateOf is a deployment's state in a few words, with the wave.
func stateOf(d *api.Deployment) string {
	if d == nil {
		return "none"
	}
	switch d.State {
	case api.DeploymentWave, api.DeploymentBaking, api.DeploymentPaused:
		if d.Wave > 0 && len(d.Policy.Waves) > 0 {
			return fmt.Sprintf("%s, %s", d.State, waveOf(d))
		}
	}
	return d.State
}

// waveOf says which wave is open.
func waveOf(d *api.Deployment) string {
	share := ""
	if d.Wave >= 1 && d.Wave <= len(d.Policy.Waves) {
		share = " (" + d.Policy.Waves[d.Wave-1] + ")"
	}
	return fmt.Sprintf("%d of %d%s", d.Wave, len(d.Policy.Waves), share)
}

// deploymentLine is a deployment in a line.
func deploymentLine(d *api.Deployment) string {
	text := fmt.Sprintf("deployment %s of %s%s: %s", d.DeploymentID, cmp.Or(keyOf(d.Target), "nothing"), by(d.By), stateOf(d))
	if d.Kind == api.KindRollback {
		text = fmt.Sprintf("deployment %s back to %s%s: %s", d.DeploymentID, cmp.Or(keyOf(d.Target), "nothing"), by(d.By), stateOf(d))
	}
	if d.Policy.Gate == api.GateNone {
		text += ", through no gate"
	}
	if why := waitsFor(d); why != "" {
		text += ": " + why
	}
	return command.Plain(text)
}

// waitsFor is what holds a deployment up, or why it ended as it did.
func waitsFor(d *api.Deployment) string {
	if d.Reason == "" && d.State == api.DeploymentGate && len(d.WaitsFor) > 0 {
		return "the build has still to arrive in " + strings.Join(d.WaitsFor, ", ")
	}
	return d.Reason
}

// Plan prints what a deployment would do.
func Plan(w io.Writer, a *api.ServiceDeployAnswer) error {
	say(w, command.Plain(fmt.Sprintf("%s would run %s instead of %s; nothing was begun", a.Service, cmp.Or(keyOf(a.Target), a.DeploymentID), cmp.Or(keyOf(a.From), "nothing"))))
	if len(a.Plan) == 0 {
		return say(w, "no hosts of it are known: it would be done at once")
	}
	var rows [][]string
	for _, p := range a.Plan {
		rows = append(rows, []string{fmt.Sprint(p.Wave), p.Share, p.Region, fmt.Sprint(p.Hosts)})
	}
	return table(w, []column{{head: "WAVE"}, {head: "SHARE"}, {head: "REGION", least: 6}, {head: "HOSTS ON TARGET"}}, rows)
}

// FollowDeployment shows a deployment of a service until it has ended: a bar for each
// region, then how it went in a line. get returns the service; where that has another
// deployment by now, old returns the one that is followed. Where w is no terminal a line
// says what has changed.
func FollowDeployment(ctx context.Context, w io.Writer, form Form, interval time.Duration, id string, get func(context.Context) (*api.Service, error), old func(context.Context) (*api.Deployment, error)) (*api.Deployment, error) {
	current := func(ctx context.Context) (*api.Service, error) {
		s, err := get(ctx)
		if err != nil || s.Deployment != nil && s.Deployment.DeploymentID == id {
			return s, err
		}
		if s.Deployment, err = old(ctx); err != nil {
			return nil, err
		}
		return s, nil
	}
	ended := func(s *api.Service) bool { return s.Deployment.Ended() }
	var v view[api.Service]
	switch {
	case form == Silent:
		v = &silent[api.Service]{aside("seeder")}
	case form == JSONLines:
		v = &jsonLines[api.Service]{lines: aside("seeder"), w: w}
	case IsTerminal(w):
		v = &serviceBars{screen: newScreen(w)}
	default:
		v = &serviceLines{lines: lines{w: w, who: "seeder"}}
	}
	s, err := poll(ctx, interval, patience, current, v, ended)
	if err != nil {
		return nil, err
	}
	if form == Live {
		err = concludeDeployment(w, s)
	}
	return s.Deployment, err
}

// concludeDeployment says how a deployment has ended, and why hosts have failed.
func concludeDeployment(w io.Writer, s *api.Service) error {
	d := s.Deployment
	if d.State != api.DeploymentDone && len(s.Failures) > 0 {
		if err := failureGroups(w, s.Failures); err != nil {
			return err
		}
	}
	text := fmt.Sprintf("%s: %s, %d of %d hosts run %s", s.Service, d.State, d.Hosts.Target, d.Hosts.Total, cmp.Or(keyOf(d.Target), "nothing"))
	if d.State == api.DeploymentWentBack && d.Kind == api.KindDeploy {
		text = fmt.Sprintf("%s: went back, all hosts run %s again", s.Service, cmp.Or(keyOf(d.From), "nothing"))
	}
	if d.EndedAt != nil {
		text += " after " + formatElapsed(max(d.EndedAt.Sub(d.StartedAt), time.Millisecond))
	}
	if d.Reason != "" {
		text += ": " + d.Reason
	}
	return say(w, command.Plain(text))
}

// serviceBars shows a bar for each region of a deployment.
type serviceBars struct {
	screen *screen
	last   frame
}

func (b *serviceBars) update(s *api.Service, _ time.Time) {
	b.last = serviceFrame(s)
	b.screen.draw(b.last)
}

func (b *serviceBars) trouble(error, time.Time) {
	f := b.last
	f.foot = "the seeder does not answer; asking again"
	b.screen.draw(f)
}

func serviceFrame(s *api.Service) frame {
	d := s.Deployment
	f := frame{head: []string{deploymentLine(d)}}
	back := d.State == api.DeploymentBack || d.State == api.DeploymentWentBack
	for i := range s.Regions {
		r := &s.Regions[i]
		row := row{name: r.Region, done: int64(r.Hosts.Target), total: int64(max(r.Hosts.Total, 1))}
		row.text, row.short = hostsLine(r, back), fmt.Sprintf("%d of %d", r.Hosts.Target, r.Hosts.Total)
		switch {
		case r.Hosts.Failed > 0:
			row.colour = red
		case r.Hosts.Target == r.Hosts.Total:
			row.colour, row.settled = green, true
			if r.Hosts.Total == 0 {
				row.done = row.total
			}
		}
		f.rows = append(f.rows, row)
	}
	if !d.Ended() {
		f.foot = fmt.Sprintf("%d of %d hosts on target", s.Hosts.Target, s.Hosts.Total)
		if n := s.Hosts.Switching; n > 0 {
			f.foot += fmt.Sprintf(", %d switching", n)
		}
		if n := s.Hosts.Failed; n > 0 {
			f.foot += fmt.Sprintf(", %d failed", n)
		}
	}
	return f
}

// hostsLine is how a region's hosts stand.
func hostsLine(r *api.ServiceRegion, back bool) string {
	if r.CountedAt == nil {
		return "nothing heard of its hosts"
	}
	c := r.Hosts
	if c.Total == 0 {
		return "no hosts"
	}
	words := []string{fmt.Sprintf("%d of %d", c.Target, c.Total)}
	for _, of := range []struct {
		n    int
		what string
	}{{c.Switching, "switching"}, {c.Failed, "failed"}, {c.Waiting, "waiting"}, {c.Absent, "absent"}, {c.Sick, "sick"}} {
		if of.n > 0 {
			words = append(words, fmt.Sprintf("%d %s", of.n, of.what))
		}
	}
	if r.Skipped {
		words = append(words, "skipped")
	} else if !r.Open && !back {
		words = append(words, "gate closed")
	}
	return strings.Join(words, ", ")
}

// serviceLines prints a line for each change of a deployment's state and of how its hosts
// stand, for pipes.
type serviceLines struct {
	lines
	state string
	hosts map[string]string
}

func (l *serviceLines) update(s *api.Service, now time.Time) {
	l.answered(now)
	d := s.Deployment
	quiet := now.Sub(l.said) >= stillEvery && l.state != ""
	if is := deploymentLine(d); is != l.state || quiet && !d.Ended() {
		l.state = is
		l.say(now, "%s", is)
	}
	if l.hosts == nil {
		l.hosts = make(map[string]string)
	}
	back := d.State == api.DeploymentBack || d.State == api.DeploymentWentBack
	for i := range s.Regions {
		r := &s.Regions[i]
		if is := hostsLine(r, back); is != l.hosts[r.Region] || quiet && !d.Ended() {
			l.hosts[r.Region] = is
			l.say(now, "%s: %s", r.Region, is)
		}
	}
}
