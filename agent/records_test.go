package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// TestWhereArrivalsAreRecorded: a new agent begins with rows, one with something from an
// earlier version with items; then what the seeders in sight say holds, over restarts and
// while no seeder is there.
func TestWhereArrivalsAreRecorded(t *testing.T) {
	reads, older := gossip.Member{Meta: gossip.Meta{Arrivals: true}}, gossip.Member{}
	items, table := ledger.New(nil, "T"), arrivals.New(nil, "R")
	rows := arrivals.NewRecords(items, table, "b", "a", "p", nil, nil)
	type step struct {
		seeders []gossip.Member
		byRows  bool
	}
	for name, c := range map[string]struct {
		memory bool // of an earlier version
		first  bool
		then   []step
	}{
		"new, no seeder ever":        {false, true, []step{{nil, true}}},
		"new, a seeder reads rows":   {false, true, []step{{[]gossip.Member{reads}, true}, {nil, true}}},
		"new, a seeder does not":     {false, true, []step{{[]gossip.Member{older}, false}, {nil, false}}},
		"new, one of two does not":   {false, true, []step{{[]gossip.Member{reads, older}, false}, {[]gossip.Member{reads}, true}}},
		"upgraded, no seeder":        {true, false, []step{{nil, false}}},
		"upgraded, first the other":  {true, false, []step{{[]gossip.Member{older}, false}, {nil, false}}},
		"upgraded after the seeder":  {true, false, []step{{[]gossip.Member{reads}, true}, {nil, true}}},
		"back to a seeder of before": {true, false, []step{{[]gossip.Member{reads}, true}, {[]gossip.Member{older}, false}, {nil, false}}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			memory, mark := filepath.Join(dir, "announced"), filepath.Join(dir, "arrivals")
			if c.memory {
				if err := os.Mkdir(memory, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			start := func() *records {
				t.Helper()
				r, err := newRecords(items, rows, mark, isNew(memory))
				if err == nil {
					_, err = newMemory(memory)
				}
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			if got := start().byRows.Load(); got != c.first {
				t.Errorf("at the first start by rows: %t", got)
			}
			for i, s := range c.then {
				r := start()
				if _, err := r.heed(s.seeders); err != nil {
					t.Fatal(err)
				}
				if got := r.byRows.Load(); got != s.byRows || r.heeded.Load() != (len(s.seeders) > 0) {
					t.Errorf("step %d: by rows: %t", i, got)
				}
				if got := start().byRows.Load(); got != s.byRows {
					t.Errorf("step %d, after a restart: by rows: %t", i, got)
				}
			}
		})
	}
	// Without a place to remember it, or without the table, nothing is new.
	for _, r := range []struct {
		rows *arrivals.Records
		mark string
	}{{nil, filepath.Join(t.TempDir(), "arrivals")}, {rows, ""}} {
		got, err := newRecords(items, r.rows, r.mark, true)
		if err != nil || got.byRows.Load() {
			t.Errorf("by rows: %v", err)
		}
	}
}
