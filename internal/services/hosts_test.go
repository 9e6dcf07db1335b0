package services

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// items are those of hosts by their names.
func (t *Tables) items(test *testing.T) map[string]item {
	test.Helper()
	out, err := cloud.DynamoDB.Scan(test.Context(), &dynamodb.ScanInput{TableName: &t.names.Logs})
	if err != nil {
		test.Fatal(err)
	}
	all := make(map[string]item)
	for _, i := range out.Items {
		all[ledger.Read(i, time.Now()).Text("host")] = i
	}
	return all
}

// attributes are the names of what an item has beside its key.
func attributes(i item) []string {
	names := slices.Sorted(maps.Keys(i))
	return slices.DeleteFunc(names, func(n string) bool { return n == "deployment" || n == "host" })
}

// TestLogHosts: each host is written once with how it stands now; what a failure has said stays,
// and only failures are counted as such.
func TestLogHosts(t *testing.T) {
	tables := newTables(t)
	failures := []goal.Failure{{Host: "host-0", Version: 5, Phase: "exec", Error: "exit status 1", Output: "no such file", At: noon}, {Host: "host-1", Version: 5, At: noon}}
	if err := tables.LogFailures(t.Context(), "region-a", "01K", failures); err != nil {
		t.Fatal(err)
	}
	var hosts []Host
	for i := range 40 {
		hosts = append(hosts, Host{Name: fmt.Sprint("host-", i), Zone: "a", State: goal.Failed, Running: "01J", Goal: 7, Seen: noon, Phase: "check", Error: "exit status 2"})
	}
	if err := tables.LogHosts(t.Context(), "region-a", "01K", hosts); err != nil {
		t.Fatal(err)
	}
	all := tables.items(t)
	if len(all) != len(hosts) {
		t.Errorf("%d items of %d hosts", len(all), len(hosts))
	}
	for name, i := range all {
		of := ledger.Read(i, time.Now())
		want := []string{"error", "expires", "goal", "listed", "phase", "running", "seen", "state", "zone"}
		phase, why := "check", "exit status 2"
		switch name {
		case "host-0":
			want, phase, why = []string{"at", "error", "expires", "goal", "listed", "output", "phase", "running", "seen", "state", "version", "zone"}, "exec", "exit status 1"
		case "host-1":
			want, phase, why = []string{"at", "error", "expires", "goal", "listed", "phase", "running", "seen", "state", "version", "zone"}, "", ""
		}
		if !slices.Equal(attributes(i), want) || of.Text("phase") != phase || of.Text("error") != why || of.Text("state") != goal.Failed ||
			of.Number("goal", maxNumber) != 7 || of.Text("seen") != noon.Format(time.RFC3339) || of.Number("expires", maxNumber) < time.Now().Unix() {
			t.Errorf("%s: %v", name, i)
		}
	}
	if n, _, err := tables.Logged(t.Context(), "region-a", "01K"); n != 2 || err != nil {
		t.Errorf("%d failures are counted, %v", n, err)
	}
	// Once more: what they do not say any more goes.
	for i := range hosts {
		hosts[i] = Host{Name: hosts[i].Name, State: goal.Waiting}
	}
	tables.ttl = 0
	if err := tables.LogHosts(t.Context(), "region-a", "01K", hosts); err != nil {
		t.Fatal(err)
	}
	all = tables.items(t)
	for name, want := range map[string][]string{
		"host-0": {"at", "error", "expires", "goal", "listed", "output", "phase", "state", "version"}, "host-2": {"expires", "goal", "listed", "state"},
	} {
		if got := attributes(all[name]); !slices.Equal(got, want) {
			t.Errorf("%s has %v, want %v", name, got, want)
		}
	}
	// A failure that comes later takes the item's place.
	if err := tables.LogFailures(t.Context(), "region-a", "01K", []goal.Failure{{Host: "host-2", At: noon}}); err != nil {
		t.Fatal(err)
	}
	if n, _, err := tables.Logged(t.Context(), "region-a", "01K"); n != 3 || err != nil {
		t.Errorf("%d failures are counted, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tables.LogHosts(ctx, "region-a", "01K", hosts); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was given up: %v", err)
	}
}

// TestFailuresAreCountedOnAllPages of the table, however many hosts that have not failed are
// between them.
func TestFailuresAreCountedOnAllPages(t *testing.T) {
	tables := newTables(t)
	tables.page = 10
	var hosts []Host
	var failures []goal.Failure
	for i := range 60 {
		hosts = append(hosts, Host{Name: fmt.Sprint("host-", i), State: goal.Healthy})
		if i%9 == 0 {
			failures = append(failures, goal.Failure{Host: hosts[i].Name, At: noon})
		}
	}
	if err := errors.Join(tables.LogHosts(t.Context(), "region-a", "01K", hosts), tables.LogFailures(t.Context(), "region-a", "01K", failures)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := tables.Logged(t.Context(), "region-a", "01K"); n != len(failures) || err != nil {
		t.Errorf("%d failures are counted of %d, %v", n, len(failures), err)
	}
}
