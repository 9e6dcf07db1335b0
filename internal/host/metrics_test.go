package host

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestMetrics holds the hosts' table of docs/metrics.md against what a host shows.
func TestMetrics(t *testing.T) {
	a := newAgent(t)
	h := startHost(t, t.TempDir(), nil, a.url)
	until(t, "a stream", func() bool { return h.link.at.Load() != nil })
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]string)
	var swarm []string
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); len(cells) == 6 && cells[5] == "host |" {
			rows[strings.Trim(cells[0], "| `")] = fmt.Sprintf("%s, labels %s: %s", cells[1], cells[3], cells[4])
		}
		if name, _, _ := strings.Cut(strings.TrimPrefix(line, "| `"), "`"); strings.HasPrefix(name, "landfall_swarm_") {
			swarm = append(swarm, name)
		}
	}
	families, err := h.registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		name := f.GetName()
		swarm = slices.DeleteFunc(swarm, func(s string) bool { return s == name })
		if !strings.HasPrefix(name, "landfall_host_") {
			continue
		}
		var labels []string
		for _, l := range f.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		if labels == nil {
			labels = []string{"–"}
		}
		if is := fmt.Sprintf("%s, labels %s: %s", strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp()); rows[name] != is {
			t.Errorf("docs/metrics.md says of %s: %q; it is %q", name, rows[name], is)
		}
		delete(rows, name)
	}
	if len(swarm) > 0 {
		t.Errorf("docs/metrics.md has %v, and a host does not show them", swarm)
	}
	for name := range rows {
		t.Errorf("docs/metrics.md has %s, which no host shows", name)
	}
	if _, body := h.get(t, "/metrics"); !strings.Contains(body, "\n"+`landfall_host_messages_total{direction="up",kind="hello"} 1`+"\n") {
		t.Errorf("/metrics:\n%s", body)
	}
	if _, body := h.get(t, "/metrics"); !strings.Contains(body, "\nlandfall_host_connected 1\n") || !strings.Contains(body, "\nlandfall_ready 0\n") {
		t.Errorf("/metrics:\n%s", body)
	}
}
