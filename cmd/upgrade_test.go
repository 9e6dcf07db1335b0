package cmd_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/landfall-dist/landfall/internal/processtest"
)

// oldEnv is the directory of the programs of before, in the process that runs in the
// namespace.
const oldEnv = "LANDFALL_TEST_OLD"

// Members that announce whole builds (document version 1) and those that announce segments
// (version 2) do not understand each other: in both orders nothing hangs, everybody says
// so, and what waits goes on once the other is upgraded.
func TestUpgrade(t *testing.T) {
	upgrade(t, "upgrade.txtar", "-Slandfall-announcement-v1", "--", "internal/announce/announce.go")
}

// Agents that write arrivals into the executions' items, and those that write rows of their
// own: in both orders a landing that is under way goes on, and nothing stops.
func TestUpgradeToRows(t *testing.T) {
	upgrade(t, "arrivals.txtar", "--diff-filter=A", "--", "internal/arrivals/arrivals.go")
}

// upgrade runs a script with the programs of before a commit, by how git finds it.
func upgrade(t *testing.T, script string, since ...string) {
	if os.Getenv(insideEnv) == "" {
		dir := t.TempDir()
		processtest.BuildBefore(t, dir, since...)
		for _, name := range []string{"seeder", "agent"} {
			if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, "old-"+name)); err != nil {
				t.Fatal(err)
			}
		}
		t.Setenv(oldEnv, dir)
		if !inside(t) {
			return
		}
	}
	runScript(t, script, os.Getenv(oldEnv))
}
