package seeder

import (
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/notify"
	"github.com/landfall-dist/landfall/internal/services"
)

// TestFailuresAreBounded: a thousand of a region and deployment are in the table with what the
// hooks have said, also those before a restart; the rest is counted by reason.
func TestFailuresAreBounded(t *testing.T) {
	var f failures
	d := &deployment.Deployment{ID: "01K"}
	var list []goal.Failure
	for i := range maxLogged + 300 {
		list = append(list, goal.Failure{Host: fmt.Sprint("host-", i), Phase: "exec", Error: fmt.Sprint("exit status ", i%2), Output: "no such file"})
	}
	f.add("region-a", d, list)
	f.add("region-b", d, list[:1])
	written, rest, counts := make(map[string]int), make(map[string]int), 0
	for range 1000 {
		l, ok := f.next()
		if !ok {
			break
		}
		if len(l.list) > logBatch || l.deployment != "01K" {
			t.Fatalf("%d at once of %s", len(l.list), l.deployment)
		}
		if l.count {
			counts++
			if l.region == "region-a" {
				f.counted(l, 400, []services.Rest{{Phase: "exec", Error: "exit status 0", Hosts: 5, Example: "before"}})
			} else {
				f.counted(l, 0, nil)
			}
			continue
		}
		written[l.region] += len(l.list)
		if len(l.rest) > 0 {
			rest[l.region] = 0
		}
		for _, r := range l.rest {
			rest[l.region] += r.Hosts
		}
	}
	if written["region-a"] != maxLogged-400 || rest["region-a"] != 705 || written["region-b"] != 1 || rest["region-b"] != 0 || counts != 2 {
		t.Errorf("%v are written, %v counted, the table was asked %d times", written, rest, counts)
	}
	var many []goal.Failure
	for i := range 2 * maxReasons {
		many = append(many, goal.Failure{Host: fmt.Sprint("other-", i), Error: fmt.Sprint(i)})
	}
	f.add("region-a", d, many)
	for {
		l, ok := f.next()
		if !ok {
			break
		}
		if len(l.rest) > maxReasons+1 {
			t.Errorf("%d reasons", len(l.rest))
		}
	}
	if n := len(f.groups); n > maxReasons+1 {
		t.Errorf("%d groups", n)
	}
	f.add("region-a", &deployment.Deployment{ID: "01L"}, list[:1])
	if len(f.groups) != 1 || len(f.regions) != 1 {
		t.Error("failures of another deployment are kept")
	}
	for i := range 2 * goal.MaxRegions {
		f.add(fmt.Sprint("region-", i), d, list[:1])
	}
	if n := len(f.regions); n != goal.MaxRegions {
		t.Errorf("failures of %d regions", n)
	}
}

// TestFailuresOfHosts stops a deployment, and says why.
func TestFailuresOfHosts(t *testing.T) {
	w := newFleetWorld(t, 5)
	r := w.build("web-1.zip")
	for _, a := range w.agents {
		a.mu.Lock()
		a.fails[r.ExecutionID] = true
		a.mu.Unlock()
	}
	w.land(r, "region-a", "region-b")
	w.deploy(r, api.Policy{Waves: []string{"100%"}, Bake: "0s", MaxFailed: "0"})
	w.until("it has stopped", w.is(deployment.Stopped))
	if n := <-w.notices; n.Event != notify.DeploymentStopped || n.Service != "web" || n.Key != "web-1.zip" || !strings.Contains(n.Error, "failed") {
		t.Errorf("told of %+v", n)
	}
	w.until("failures are shown", func() bool {
		v, _ := w.s.serviceView("web")
		return len(v.Failures) == 1 && v.Failures[0].Error == "exit status 1" && v.Failures[0].Output == "no such file" && v.Failures[0].Hosts > 0
	})
	logs := w.tables.Names().Logs
	w.until("failures are in the table", func() bool {
		out, err := cloud.DynamoDB.Scan(t.Context(), &dynamodb.ScanInput{TableName: &logs})
		return err == nil && len(out.Items) > 0
	})
}
