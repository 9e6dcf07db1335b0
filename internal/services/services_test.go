package services

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/devcloud/cloudtest"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/ledger"
)

var cloud *cloudtest.Cloud

func TestMain(m *testing.M) { cloudtest.VerifyTestMain(m, &cloud) }

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func newTables(t testing.TB) *Tables {
	t.Helper()
	id := ulid.Make().String()
	tables := New(cloud.DynamoDB, Names{"services-" + id, "deployments-" + id, "logs-" + id}, time.Hour)
	if err := tables.Check(t.Context()); !errors.Is(err, ledger.ErrNoTable) || !strings.Contains(err.Error(), "seeder init") {
		t.Fatalf("tables that nobody has made: %v", err)
	}
	for _, want := range []bool{true, false} {
		n := 0
		if err := tables.Create(t.Context(), func(_ string, created bool) {
			if n++; created != want {
				t.Error("created:", created)
			}
		}); err != nil || n != 3 {
			t.Fatalf("%d tables, %v", n, err)
		}
	}
	if err := tables.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	return tables
}

func build(n int) goal.Build {
	return goal.Build{SourceBucket: "global-builds", Key: fmt.Sprintf("web-%d.zip", n), ExecutionID: fmt.Sprintf("01J00000000000000000000%03d", n), Size: 7}
}

func service(version int64, n int) deployment.Service {
	stable := build(n - 1)
	return deployment.Service{Name: "web", Version: version, Completed: &stable, Current: &deployment.Deployment{
		ID: fmt.Sprintf("01K00000000000000000000%03d", n), Kind: "deploy", Target: build(n), State: deployment.Gate, By: "carol",
		Started: noon, Regions: map[string]deployment.Region{"region-a": {Cut: 5, Roster: 7}},
	}}
}

func TestWriteAndRead(t *testing.T) {
	tables := newTables(t)
	if s, err := tables.Service(t.Context(), "web"); s != nil || err != nil {
		t.Fatalf("%v, %v", s, err)
	}
	if err := tables.Write(t.Context(), service(5, 2), []byte("goal 5"), 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		before int64
		want   error
	}{{0, ErrChanged}, {4, ErrChanged}, {5, nil}, {5, ErrChanged}} {
		if err := tables.Write(t.Context(), service(6, 3), []byte("goal 6"), c.before); !errors.Is(err, c.want) {
			t.Errorf("over version %d: %v, expected %v", c.before, err, c.want)
		}
	}
	s, err := tables.Service(t.Context(), "web")
	if err != nil || s.Odd != nil {
		t.Fatal(err, s.Odd)
	}
	if s.Version != 6 || string(s.Wire) != "goal 6" || *s.Completed != build(2) || s.Current.ID != "01K00000000000000000000003" ||
		s.Current.Target != build(3) || s.Current.Regions["region-a"].Cut != 5 || !s.Current.Started.Equal(noon) {
		t.Errorf("%+v, %+v", s, s.Current)
	}
	if err := tables.WriteHead(t.Context(), []byte("beat"), []byte("recalls")); err != nil {
		t.Fatal(err)
	}
	if head, recalls, err := tables.Head(t.Context()); err != nil || string(head) != "beat" || string(recalls) != "recalls" {
		t.Errorf("%s, %v", head, err)
	}
	all, err := tables.All(t.Context())
	if err != nil || len(all) != 1 || all[0].Name != "web" || all[0].Version != 6 {
		t.Errorf("%v, %v", all, err)
	}
	list, err := tables.Deployments(t.Context(), "web", 10)
	if err != nil || len(list) != 2 || list[0].ID <= list[1].ID {
		t.Errorf("%v, %v", list, err)
	}
	if list, err := tables.Deployments(t.Context(), "web", 1); err != nil || len(list) != 1 || list[0].Target != build(3) {
		t.Errorf("%v, %v", list, err)
	}
	if NewID(noon, s.Current) <= s.Current.ID || len(NewID(noon, nil)) != 26 {
		t.Error("an id that is no greater")
	}
}

// TestTwoWriters has many write over the same version: one wins, the others are told.
func TestTwoWriters(t *testing.T) {
	tables := newTables(t)
	var group sync.WaitGroup
	results := make(chan error, 8)
	for n := range 8 {
		group.Go(func() { results <- tables.Write(t.Context(), service(5, n+1), fmt.Append(nil, n), 0) })
	}
	group.Wait()
	won := 0
	for range 8 {
		switch err := <-results; {
		case err == nil:
			won++
		case !errors.Is(err, ErrChanged):
			t.Error(err)
		}
	}
	list, err := tables.Deployments(t.Context(), "web", 100)
	if won != 1 || err != nil || len(list) != 1 {
		t.Errorf("%d have won, %d deployments, %v", won, len(list), err)
	}
}

// TestOddItems reads what others wrote: none of it keeps the rest from being read.
func TestOddItems(t *testing.T) {
	tables := newTables(t)
	if err := tables.Write(t.Context(), service(5, 2), []byte("goal"), 0); err != nil {
		t.Fatal(err)
	}
	put := func(table string, i item) {
		t.Helper()
		if _, err := cloud.DynamoDB.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &table, Item: i}); err != nil {
			t.Fatal(err)
		}
	}
	bytesOf := func(n int) types.AttributeValue {
		return &types.AttributeValueMemberB{Value: bytes.Repeat([]byte{'x'}, n)}
	}
	for i, odd := range []item{
		{},
		{"version": text("five")},
		{"version": number(5)},
		{"version": number(-5), "goal": bytesOf(1)},
		{"version": number(5), "goal": bytesOf(goal.MaxLength + 1)},
		{"version": number(5), "goal": bytesOf(1), "completed": text("{")},
		{"version": number(5), "goal": bytesOf(1), "deployment": text("none")},
	} {
		odd["service"] = text(fmt.Sprintf("odd-%d", i))
		put(tables.names.Services, odd)
	}
	put(tables.names.Services, item{"service": text("../web"), "version": number(5), "goal": bytesOf(1)})
	put(tables.names.Deployments, item{"service": text("web"), "deploymentId": text("z"), "document": text("[]")})
	put(tables.names.Deployments, item{"service": text("web"), "deploymentId": text("y"), "document": text(`{"deploymentId":"x"}`)})
	all, err := tables.All(t.Context())
	if err != nil || len(all) != 9 {
		t.Fatalf("%d, %v", len(all), err)
	}
	for _, s := range all {
		if (s.Odd == nil) != (s.Name == "web") {
			t.Errorf("%s: %v", s.Name, s.Odd)
		}
	}
	if list, err := tables.Deployments(t.Context(), "web", 100); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestLogFailures(t *testing.T) {
	tables := newTables(t)
	var failures []goal.Failure
	for i := range 60 {
		failures = append(failures, goal.Failure{Host: fmt.Sprintf("host-%d", i), Version: 5, Phase: "exec", Error: "exit status 1", Output: "no such file", At: noon})
	}
	for range 2 {
		if err := tables.LogFailures(t.Context(), "region-a", "01K", failures); err != nil {
			t.Fatal(err)
		}
	}
	partitions := make(map[string]int)
	out, err := cloud.DynamoDB.Scan(t.Context(), &dynamodb.ScanInput{TableName: &tables.names.Logs})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range out.Items {
		of := ledger.Read(i, time.Now())
		partitions[of.Text("deployment")]++
		if of.Text("output") != "no such file" || of.Number("expires", maxNumber) < time.Now().Unix() {
			t.Errorf("%v", i)
		}
	}
	if len(out.Items) != 60 || len(partitions) < 2 || len(partitions) > logPartitions {
		t.Errorf("%d items in %d partitions", len(out.Items), len(partitions))
	}
	for name := range partitions {
		if !strings.HasPrefix(name, "region-a#01K#") || len(name) != len("region-a#01K#07") {
			t.Errorf("partition %s", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tables.LogFailures(ctx, "region-a", "01K", failures); err == nil {
		t.Error("no error of a call that was given up")
	}
}

// TestRecord puts down a deployment alone, unless the service has changed.
func TestRecord(t *testing.T) {
	tables := newTables(t)
	s := service(5, 2)
	s.Held = []string{"host-1", "host-2"}
	if err := tables.Write(t.Context(), s, []byte("goal 5"), 0); err != nil {
		t.Fatal(err)
	}
	d := *s.Current
	d.Baked = time.Minute
	for version, want := range map[int64]error{4: ErrChanged, 6: ErrChanged, 5: nil} {
		if err := tables.Record(t.Context(), "web", &d, version); !errors.Is(err, want) {
			t.Errorf("under version %d: %v, expected %v", version, err, want)
		}
	}
	got, err := tables.Service(t.Context(), "web")
	if err != nil || got.Version != 5 || string(got.Wire) != "goal 5" || got.Current.Baked != time.Minute || !slices.Equal(got.Held, s.Held) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestRecalls writes and reads the list; of two writers one wins.
func TestRecalls(t *testing.T) {
	tables := newTables(t)
	if r, err := tables.Recalls(t.Context()); err != nil || r.Version != 0 || r.Builds != nil {
		t.Fatalf("%+v, %v", r, err)
	}
	list := &Recalls{Version: 5, Wire: []byte("signed"), Builds: []Recalled{{SHA256: "sum", Key: "web.zip", By: "carol", At: noon}}}
	for i, c := range []struct {
		before int64
		want   error
	}{{3, ErrChanged}, {0, nil}, {0, ErrChanged}, {4, ErrChanged}, {5, nil}} {
		if err := tables.WriteRecalls(t.Context(), list, c.before); !errors.Is(err, c.want) {
			t.Errorf("%d: over version %d: %v, expected %v", i, c.before, err, c.want)
		}
	}
	if r, err := tables.Recalls(t.Context()); err != nil || r.Version != 5 || string(r.Wire) != "signed" || len(r.Builds) != 1 || r.Builds[0] != list.Builds[0] {
		t.Errorf("%+v, %v", r, err)
	}
	if all, err := tables.All(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("the list is taken for a service: %v, %v", all, err)
	}
	odd := item{"service": text(goal.Recalls), "version": number(6), "recalls": &types.AttributeValueMemberB{Value: []byte("x")}, "builds": text("{")}
	if _, err := cloud.DynamoDB.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &tables.names.Services, Item: odd}); err != nil {
		t.Fatal(err)
	}
	if _, err := tables.Recalls(t.Context()); err == nil {
		t.Error("a list that cannot be read")
	}
}

// TestLogRest counts what is not written one by one.
func TestLogRest(t *testing.T) {
	tables := newTables(t)
	var rest []Rest
	for i := range 30 {
		rest = append(rest, Rest{Phase: "exec", Error: fmt.Sprintf("%0512d", i), Hosts: i + 1, Example: "host-1"})
	}
	for range 2 {
		if err := tables.LogRest(t.Context(), "region-a", "01K", rest); err != nil {
			t.Fatal(err)
		}
	}
	out, err := cloud.DynamoDB.Scan(t.Context(), &dynamodb.ScanInput{TableName: &tables.names.Logs})
	if err != nil || len(out.Items) != 30 {
		t.Fatalf("%d, %v", len(out.Items), err)
	}
	of := ledger.Read(out.Items[0], time.Now())
	if of.Text("deployment") != "region-a#01K#rest" || of.Number("hosts", maxNumber) < 1 || of.Number("expires", maxNumber) == 0 {
		t.Errorf("%v", out.Items[0])
	}
	n, got, err := tables.Logged(t.Context(), "region-a", "01K")
	slices.SortFunc(got, func(x, y Rest) int { return x.Hosts - y.Hosts })
	if n != 0 || !slices.Equal(got, rest) || err != nil {
		t.Errorf("%d hosts, %v, %v", n, got, err)
	}
	if err := tables.LogFailures(t.Context(), "region-a", "01K", []goal.Failure{{Host: "a", At: noon}, {Host: "b", At: noon}}); err != nil {
		t.Fatal(err)
	}
	if n, _, err := tables.Logged(t.Context(), "region-a", "01K"); n != 2 || err != nil {
		t.Errorf("%d hosts, %v", n, err)
	}
	if n, rest, err := tables.Logged(t.Context(), "region-b", "01K"); n != 0 || rest != nil || err != nil {
		t.Errorf("%d hosts, %v, %v", n, rest, err)
	}
}

// TestCopies keeps what the table says, and what it lacks before that.
func TestCopies(t *testing.T) {
	dir := t.TempDir()
	c, err := OpenCopies(dir)
	if err != nil {
		t.Fatal(err)
	}
	put := func(version, table int64) {
		t.Helper()
		if err := c.Put(&Copy{Service: service(version, 2), Wire: fmt.Append(nil, version), Table: table}); err != nil {
			t.Fatal(err)
		}
	}
	for i, step := range []struct{ version, table, want int64 }{
		{5, 5, 5}, {7, 5, 7}, {6, 6, 7}, {8, 5, 8}, {7, 7, 8}, {8, 8, 8}, {6, 6, 6}, // the last: a table that was restored
	} {
		put(step.version, step.table)
		of, err := c.Get("web")
		if err != nil || of.Service.Version != step.want || string(of.Wire) != fmt.Sprint(step.want) || of.Service.Current.Target != build(2) {
			t.Errorf("%d: %+v, %v", i, of, err)
		}
	}
	if all, err := c.Ahead(); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	put(9, 6)
	if err := os.WriteFile(filepath.Join(dir, "api.json"), []byte(`{"service":{"Name":"web"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := c.Ahead(); err == nil || len(all) != 1 || all[0].Service.Version != 9 {
		t.Errorf("%v, %v", all, err)
	}
	if of, err := c.Get("other"); of != nil || err != nil {
		t.Errorf("%v, %v", of, err)
	}
	if _, err := c.Get("../web"); err == nil {
		t.Error("a name that leads elsewhere")
	}
	big := service(9, 2)
	big.Held = []string{strings.Repeat("x", maxCopy)}
	if err := c.Put(&Copy{Service: big}); err == nil {
		t.Error("a copy of any length")
	}
	var none *Copies
	if err := none.Put(&Copy{}); err != nil {
		t.Error(err)
	}
	if of, err := none.Get("web"); of != nil || err != nil {
		t.Errorf("%v, %v", of, err)
	}
	if all, err := none.Ahead(); all != nil || err != nil {
		t.Errorf("%v, %v", all, err)
	}
}
