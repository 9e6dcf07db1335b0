//go:build linux

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCellsCanBe(t *testing.T) {
	names, cells := make(map[string]bool), make(map[cell]string)
	for _, p := range append(defaultCells(), moreCells()...) {
		if err := p.cell.check(); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
		if names[p.name] || p.name == "" {
			t.Errorf("two cells are named %q", p.name)
		}
		if other, ok := cells[p.cell]; ok {
			t.Errorf("%s is the cell %s", p.name, other)
		}
		if got, err := named([]string{p.name}); err != nil || len(got) != 1 || got[0].cell != p.cell {
			t.Errorf("--cells %s: %v, %v", p.name, got, err)
		}
		names[p.name], cells[p.cell] = true, p.name
	}
	if _, err := named([]string{"source", "elsewhere"}); err == nil || !strings.Contains(err.Error(), `"elsewhere"`) {
		t.Errorf("an unknown name: %v", err)
	}
	for _, c := range []cell{
		{}, {Members: maxMembers + 1}, {Members: 1, Source: -1}, {Members: 1, Builds: maxBuilds + 1},
		{Members: 1, Source: 1, Publish: "elsehow"}, {Members: 1, Publish: ownInterface},
		{Members: 1, Source: 1, Builds: 2, Urgent: true}, {Members: 2, Source: 1, Late: true},
	} {
		if c.check() == nil {
			t.Errorf("%+v can be", c)
		}
	}
}

// The bound is what the slowest of source, uplink and downlinks needs; the links are
// such that nothing else is slower, and whoever is needed has one.
func TestBoundAndLinks(t *testing.T) {
	base := cell{Members: 8, Rate: 8e6, DownRatio: 1.25, Seconds: 40}
	for _, test := range []struct {
		name   string
		change func(*cell)
		bound  time.Duration
		store  rates // of the global bucket's S3, where it has a link
		seeder int64 // downlink of the seeder's first interface
	}{
		{"beside", func(*cell) {}, 40 * time.Second, rates{}, 10e6},
		{"one slow", func(c *cell) { c.Slow = 10 }, 320 * time.Second, rates{}, 10e6},
		{"source as fast", func(c *cell) { c.Source = 1 }, 40 * time.Second, rates{8e6, 8e6}, 10e6},
		{"source faster", func(c *cell) { c.Source = 4 }, 40 * time.Second, rates{32e6, 32e6}, 40e6},
		{"source slower", func(c *cell) { c.Source = 0.5 }, 80 * time.Second, rates{4e6, 4e6}, 10e6},
		{"by another interface", func(c *cell) { c.Source, c.Publish = 1, ownInterface }, 40 * time.Second, rates{8e6, 8e6}, 10e6},
		{"together", func(c *cell) { c.Source, c.Publish = 1, sameUplink }, 40 * time.Second, rates{8e6, 8e6}, 18e6},
		{"ten", func(c *cell) { c.Builds = 10 }, 40 * time.Second, rates{}, 10e6},
	} {
		c := base
		test.change(&c)
		if got := time.Duration(float64(c.bound()) * 40e6 / float64(c.size())); (got - test.bound).Abs() > time.Millisecond { // sizes are whole MiB
			t.Errorf("%s: bound is %s, expected %s", test.name, got, test.bound)
		}
		links := c.links()
		if got := links[0][0].Down; got != test.seeder {
			t.Errorf("%s: the seeder receives at %d, expected %d", test.name, got, test.seeder)
		}
		var members []*member
		for i := range links {
			members = append(members, &member{index: i})
		}
		r := &trial{cell: c}
		r.assign(members)
		if len(r.regions) != 8 || r.regions[7].index != 8 || (r.client != nil) != (c.Publish != notPublished) || (r.store == r.seeder) != (c.Source == 0) {
			t.Errorf("%s: assigned %+v", test.name, r)
		}
		if r.store == r.seeder {
			continue
		}
		store := links[r.store.index][0]
		if store.rates != test.store {
			t.Errorf("%s: the source's link is %v, expected %v", test.name, store.rates, test.store)
		}
		if own := c.Publish == ownInterface; own != (store.subnet == 1) || own != (len(links[0]) == 2) {
			t.Errorf("%s: links %v", test.name, links)
		}
		if used := len(r.regions) + 2; len(links) != used+len(r.bad) && r.client == nil || r.client != nil && r.client.index != used {
			t.Errorf("%s: %d links", test.name, len(links))
		}
	}
}

// What there is no room for is not begun: data are in memory.
func TestFits(t *testing.T) {
	c := cell{Members: 8, Rate: 8e6, DownRatio: 1.25, Seconds: 1}
	if err := fits(c, t.TempDir()); err != nil {
		t.Error(err)
	}
	c.Seconds = 1e9
	if err := fits(c, t.TempDir()); err == nil || !strings.Contains(err.Error(), "use --dir") {
		t.Errorf("a petabyte: %v", err)
	}
}

func TestAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	first, err := alone(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := alone(file); err == nil || !strings.Contains(err.Error(), "another bench wan") {
		t.Errorf("a second run: %v", err)
	}
	first.Close()
	next, err := alone(file)
	if err != nil {
		t.Fatal(err)
	}
	next.Close()
}

func TestRemoveData(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "cloud-1", "parts"), 0o755), os.WriteFile(filepath.Join(dir, "cloud-1.log"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := removeData(dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "cloud-1.log" {
		t.Errorf("%v left, %v", left, err)
	}
}

func TestReport(t *testing.T) {
	publishing := cell{Members: 1, Rate: 8e6, DownRatio: 1.25, Seconds: 40, Source: 1, Publish: sameUplink}
	several, urgent := publishing, publishing
	several.Publish, several.Builds = notPublished, 2
	urgent.Publish, urgent.Urgent = notPublished, true
	of := func(c cell, system string, makespan float64) result {
		return result{System: system, Cell: c, Bound: 40, Makespan: makespan, Downloaded: []float64{makespan}}
	}
	both := of(several, "landfall", 80)
	both.Everywhere = []float64{40, 80}
	hot := of(urgent, "landfall", 80)
	hot.Alone, hot.Urgent = 5, 7.5
	first := hot
	first.Priority = true
	all := []result{
		of(publishing, "landfall", 120), of(publishing, "upload", 50), of(publishing, "landfall", 100), of(publishing, "upload", 40),
		of(publishing, "upload", 45), both, hot,
	}
	for _, test := range []struct {
		cell cell
		all  []result
		want string
	}{
		{publishing, all, "landfall: landed after 2.222 / 2.667 / 2.667 times what the upload alone takes"},
		{publishing, all, "no system can be below twice the bound"},
		{several, all, "over the last build's: 0.750 / 0.750 / 0.750"},
		{urgent, all, "(no priority, which this version does not know), landed after 1.500 / 1.500 / 1.500 times what it takes alone"},
		{urgent, []result{first}, "(--priority high), landed after 1.500"},
	} {
		var out bytes.Buffer
		report(&out, test.cell, test.all)
		if !strings.Contains(out.String(), test.want) {
			t.Errorf("expected %q in\n%s", test.want, &out)
		}
	}
}
