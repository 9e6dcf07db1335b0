package clustertest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/seeder/client"
)

// root is the repository's; known before the embedded S3 changes the directory.
var root, errRoot = filepath.Abs(filepath.Join("..", ".."))

func file(t *testing.T, name string) []byte {
	t.Helper()
	if errRoot != nil {
		t.Fatal(errRoot)
	}
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// family is a metric as one member shows it.
type family struct {
	kind   string          // counter, gauge, histogram, …
	labels map[string]bool // but for le
}

var (
	typeLine   = regexp.MustCompile(`^# TYPE (\S+) (\S+)$`)
	sampleLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)`)
	labelName  = regexp.MustCompile(`(?:^|,)([a-zA-Z_][a-zA-Z0-9_]*)="`)
	ofHisto    = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// scrape is what a member shows.
type scrape struct {
	text     string
	families map[string]family
	samples  map[string]float64 // by name and labels, as they are written
}

func scrapeOf(t *testing.T, member *client.Client) scrape {
	t.Helper()
	res, err := member.HTTP.Get(member.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s/metrics: %s, %v: %.500s", member.URL, res.Status, err, b)
	}
	s := scrape{text: string(b), families: make(map[string]family), samples: make(map[string]float64)}
	for line := range strings.Lines(s.text) {
		line = strings.TrimSpace(line)
		if m := typeLine.FindStringSubmatch(line); m != nil {
			s.families[m[1]] = family{m[2], make(map[string]bool)}
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if s.samples[strings.TrimSuffix(line, " "+m[3])], err = strconv.ParseFloat(m[3], 64); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		if f, ok := s.family(m[1]); ok {
			for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
				if l[1] != "le" {
					f.labels[l[1]] = true
				}
			}
		}
	}
	return s
}

// family finds the family of a name as it is used in an expression.
func (s scrape) family(name string) (family, bool) {
	if f, ok := s.families[name]; ok {
		return f, f.kind != "histogram"
	}
	f, ok := s.families[ofHisto.ReplaceAllString(name, "")]
	return f, ok && (f.kind == "histogram" || f.kind == "summary")
}

// promtool runs Prometheus's own checker with the arguments.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("promtool is not installed (Debian: prometheus)")
		}
		t.Skip("promtool is not installed (Debian: prometheus); what it checks was not checked")
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = filepath.Join(root, "deploy", "prometheus")
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestMetrics looks at what a seeder and an agent show after a build was
// distributed, and at everything that is built upon it.
func TestMetrics(t *testing.T) {
	url, _ := webhook(t)
	c := Start(t, cloud, Options{Regions: 2, Webhook: url, TLS: identity.Require, Fleet: true})
	const size = 2*manifest.MinPartLength + 1
	c.Put("build.zip", content(1, size), nil) // by another client: it is pulled
	e := c.Await(c.Deploy("build.zip").ExecutionID, "COMPLETED")
	// The seeder may know of an arrival before its agent has counted it.
	for _, a := range c.Agents {
		c.Until("its arrival is counted", func() bool { return scrapeOf(t, a).samples["landfall_recording_seconds_count"] == 1 })
	}
	c.Until("the bucket was listed", func() bool {
		return scrapeOf(t, c.Seeder).samples["landfall_poll_last_success_timestamp_seconds"] > 0
	})
	seeder, agent := scrapeOf(t, c.Seeder), scrapeOf(t, c.Agents[0])

	t.Run("values", func(t *testing.T) {
		for name, want := range map[string]float64{
			`landfall_ready`: 1,
			`landfall_members{role="seeder",state="alive"}`:                                           1,
			`landfall_executions{status="COMPLETED"}`:                                                 1,
			`landfall_executions_ended_total{status="COMPLETED"}`:                                     1,
			`landfall_unfinished_destinations`:                                                        0,
			`landfall_oldest_execution_age_seconds`:                                                   0,
			`landfall_arrival_seconds_count{bucket="` + c.Bucket(0) + `"}`:                            1,
			`landfall_arrival_seconds_count{bucket="` + c.Bucket(1) + `"}`:                            1,
			`landfall_destination_failures_total{bucket="` + c.Bucket(0) + `"}`:                       0,
			`landfall_destination_agents{bucket="` + c.Bucket(1) + `"}`:                               1,
			`landfall_execution_progress_ratio{execution_id="` + e.ExecutionID + `",key="build.zip"}`: 1,
			`landfall_pull_seconds_count`:                                                             1,
			`landfall_source_read_bytes_total`:                                                        size,
			`landfall_aws_calls_total{operation="Scan",service="DynamoDB"}`:                           2,
			`landfall_aws_attempt_seconds_count{operation="Scan",service="DynamoDB"}`:                 2,
			`landfall_aws_attempt_errors_total{kind="throttled",operation="Scan",service="DynamoDB"}`: 0,
		} {
			if got, ok := seeder.samples[name]; !ok || got != want {
				t.Errorf("seeder: %s is %g, want %g (shown: %v)", name, got, want, ok)
			}
		}
		for _, member := range []scrape{seeder, agent} {
			end := time.Unix(int64(member.samples[`landfall_certificate_end_timestamp_seconds`]), 0)
			if left := time.Until(end); left < 29*24*time.Hour || left > 30*24*time.Hour {
				t.Errorf("a certificate that was made just now ends at %s", end)
			}
			for _, reason := range identity.Reasons {
				if n, ok := member.samples[`landfall_certificates_refused_total{reason="`+string(reason)+`"}`]; n != 0 || !ok {
					t.Errorf("%g refused as %s (shown: %v), among members alone", n, reason, ok)
				}
			}
		}
		status, err := c.Agents[0].AgentStatus(t.Context())
		if err != nil || status.TLS == nil || status.TLS.Mode != "require" || float64(status.TLS.CertificateEnds.Unix()) != agent.samples[`landfall_certificate_end_timestamp_seconds`] {
			t.Errorf("its status says of TLS: %+v, %v", status.TLS, err)
		}
		if n := seeder.samples[`landfall_announce_seconds_count`]; n < 1 {
			t.Errorf("seeder: %g announcements", n) // as many as there were segments, or fewer
		}
		for name, want := range map[string]float64{
			`landfall_ready`:                     1,
			`landfall_builds{state="landed"}`:    1,
			`landfall_queue_seconds_count`:       1,
			`landfall_download_seconds_count`:    1,
			`landfall_landing_seconds_count`:     1,
			`landfall_part_upload_seconds_count`: 3,
			`landfall_landed_bytes_total`:        size,
			`landfall_swarm_useful_bytes_total`:  size,
			`landfall_source_read_bytes_total`:   0,
			`landfall_cache_bytes`:               size,
			`landfall_table_errors_total`:        0,
		} {
			if got, ok := agent.samples[name]; !ok || got != want {
				t.Errorf("agent: %s is %g, want %g (shown: %v)", name, got, want, ok)
			}
		}
	})
	t.Run("promtool", func(t *testing.T) {
		promtool(t, seeder.text, "check", "metrics")
		promtool(t, agent.text, "check", "metrics")
		promtool(t, "", "check", "config", "prometheus.yml")
		promtool(t, "", "check", "rules", "alerts.yml")
		promtool(t, "", "test", "rules", "alerts_test.yml")
	})
	t.Run("documented", func(t *testing.T) { documented(t, seeder, agent) })
	// What hosts show, too, which package host holds the document to.
	all := scrape{families: merged(agent.families, ofHosts(t))}
	t.Run("alerts", func(t *testing.T) {
		for alert, expr := range alerts(t) {
			shown(t, alert, expr, seeder, all)
		}
	})
	t.Run("dashboard", func(t *testing.T) {
		for panel, expr := range dashboard(t) {
			shown(t, panel, expr, seeder, agent)
		}
	})
}

// documented holds docs/metrics.md against what is shown, both ways.
func documented(t *testing.T, seeder, agent scrape) {
	rows := make(map[string]string)
	for line := range strings.Lines(string(file(t, "docs/metrics.md"))) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if !strings.HasPrefix(cells[0], "| `landfall_") {
			continue
		}
		if cells[len(cells)-1] == "host |" {
			continue // package host has a test of its own
		}
		name := strings.Trim(cells[0], "| `")
		if _, twice := rows[name]; twice || len(cells) != 6 {
			t.Errorf("%s is documented twice, or its row lacks a cell", name)
			continue
		}
		rows[name] = fmt.Sprintf("%s, labels %s, of %s", cells[1], cells[3], strings.TrimSuffix(cells[5], " |"))
	}
	for _, name := range slices.Sorted(maps.Keys(merged(seeder.families, agent.families))) {
		if !strings.HasPrefix(name, "landfall_") {
			continue
		}
		f, ofSeeder := seeder.families[name]
		g, ofAgent := agent.families[name]
		who := "both"
		switch {
		case !ofSeeder:
			f, who = g, "agent"
		case !ofAgent:
			who = "seeder"
		}
		labels := strings.Join(slices.Sorted(maps.Keys(merged(f.labels, g.labels))), ", ")
		if labels == "" {
			labels = "–"
		}
		if is := fmt.Sprintf("%s, labels %s, of %s", f.kind, labels, who); rows[name] != is {
			t.Errorf("docs/metrics.md says of %s: %q; it is %q", name, rows[name], is)
		}
		delete(rows, name)
	}
	for name := range rows {
		t.Errorf("docs/metrics.md has %s, which nobody shows", name)
	}
}

// ofHosts are the metrics of hosts by docs/metrics.md.
func ofHosts(t *testing.T) map[string]family {
	out := make(map[string]family)
	for line := range strings.Lines(string(file(t, "docs/metrics.md"))) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) != 6 || cells[5] != "host |" {
			continue
		}
		labels := make(map[string]bool)
		for _, l := range strings.Split(cells[3], ", ") {
			labels[l] = true
		}
		out[strings.Trim(cells[0], "| `")] = family{kind: cells[1], labels: labels}
	}
	return out
}

func merged[V any](a, b map[string]V) map[string]V {
	out := maps.Clone(a)
	if out == nil {
		out = make(map[string]V)
	}
	maps.Copy(out, b)
	return out
}

// used finds the metrics of an expression, with the matchers behind each.
var (
	used    = regexp.MustCompile(`\b((?:landfall|go|process)_[a-z0-9_]+)(?:\{([^}]*)\})?`)
	matcher = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)\s*"`)
	grouped = regexp.MustCompile(`\bby \(([^)]*)\)`)
	// attached are the labels that Prometheus adds.
	attached = []string{"job", "instance", "le"}
)

// shown fails the test unless every metric and label of an expression is one that
// the seeder or the agent shows.
func shown(t *testing.T, where, expr string, seeder, agent scrape) {
	t.Helper()
	labels := make(map[string]bool)
	metrics := used.FindAllStringSubmatch(expr, -1)
	if len(metrics) == 0 {
		t.Errorf("%s uses no metric of ours: %s", where, expr)
	}
	for _, m := range metrics {
		f, ofSeeder := seeder.family(m[1])
		g, ofAgent := agent.family(m[1])
		if !ofSeeder && !ofAgent {
			t.Errorf("%s uses %s, which nobody shows", where, m[1])
			continue
		}
		both := merged(f.labels, g.labels)
		maps.Copy(labels, both)
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			if !both[l[1]] && !slices.Contains(attached, l[1]) {
				t.Errorf("%s: %s has no label %s", where, m[1], l[1])
			}
		}
	}
	for _, g := range grouped.FindAllStringSubmatch(expr, -1) {
		for _, l := range strings.Split(g[1], ",") {
			if l = strings.TrimSpace(l); !labels[l] && !slices.Contains(attached, l) {
				t.Errorf("%s: nothing in it has a label %s: %s", where, l, expr)
			}
		}
	}
}

// alerts returns the alerts' expressions by name. Each must have its section of
// docs/alerts.md, and a test in which it comes.
func alerts(t *testing.T) map[string]string {
	t.Helper()
	rules := regexp.MustCompile(`(?m)^      - alert: `).Split(string(file(t, "deploy/prometheus/alerts.yml")), -1)[1:]
	tests, docs := string(file(t, "deploy/prometheus/alerts_test.yml")), string(file(t, "docs/alerts.md"))
	expression := regexp.MustCompile(`(?m)^        expr: (?:>-\n((?:          .*\n)+)|(.*)\n)`)
	out := make(map[string]string)
	for _, rule := range rules {
		name, _, _ := strings.Cut(rule, "\n")
		m := expression.FindStringSubmatch(rule)
		if m == nil {
			t.Errorf("%s has no expression", name)
			continue
		}
		out[name] = m[1] + m[2]
		for _, annotation := range []string{"summary: ", "description: ", "/docs/alerts.md#" + strings.ToLower(name) + "\n"} {
			if !strings.Contains(rule, annotation) {
				t.Errorf("%s has no %q", name, annotation)
			}
		}
		if !strings.Contains(docs, "\n## "+name+"\n") {
			t.Errorf("docs/alerts.md says nothing of %s", name)
		}
		if !strings.Contains(tests, "alertname: "+name+"\n        exp_alerts:\n") || !strings.Contains(tests, "alertname: "+name+"\n        exp_alerts: []\n") {
			t.Errorf("alerts_test.yml does not try %s both ways", name)
		}
	}
	if len(out) == 0 || len(out) != strings.Count(docs, "\n## Landfall") {
		t.Errorf("%d alerts, %d in docs/alerts.md", len(out), strings.Count(docs, "\n## Landfall"))
	}
	return out
}

// dashboard returns the expressions of the dashboard by panel. None may name a data
// source of its own.
func dashboard(t *testing.T) map[string]string {
	t.Helper()
	type source struct{ Type, UID string }
	var d struct {
		Templating struct {
			List []struct{ Name, Type, Query string }
		}
		Panels []struct {
			ID         int
			Type       string
			Title      string
			Datasource *source
			Targets    []struct {
				RefID, Expr string
				Datasource  *source
			}
		}
	}
	if err := json.Unmarshal(file(t, "deploy/grafana/landfall.json"), &d); err != nil {
		t.Fatal(err)
	}
	if v := d.Templating.List; len(v) == 0 || v[0].Name != "datasource" || v[0].Type != "datasource" || v[0].Query != "prometheus" {
		t.Errorf("the dashboard does not ask for its data source: %+v", v)
	}
	out := make(map[string]string)
	ids := make(map[int]bool)
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, q := range p.Targets {
			for _, s := range []*source{p.Datasource, q.Datasource} {
				if s == nil || s.UID != "${datasource}" {
					t.Errorf("panel %q has a data source of its own: %+v", p.Title, s)
				}
			}
			out[fmt.Sprintf("panel %q, %s", p.Title, q.RefID)] = q.Expr
		}
	}
	return out
}
