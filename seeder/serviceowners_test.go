package seeder

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/web"
)

// TestKilledBeforeSending has a seeder die between the table and the agents: the next one sends
// what the table has.
func TestKilledBeforeSending(t *testing.T) {
	w := newFleetWorld(t, 2)
	r := w.build("web-1.zip")
	w.deploy(r, api.Policy{})
	w.until("the agents have the goal", func() bool { return w.version() > 0 })
	w.stop()
	before, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	m := deployment.New(before.Service)
	var written int64
	for _, a := range m.Step(time.Now(), deployment.Command{Ask: "x", Kind: api.CommandPause, By: "carol"}) {
		if p, ok := a.(deployment.Publish); ok {
			wire, err := goal.Sign(t.Context(), w.key, p.Goal)
			if err == nil {
				err = w.tables.Write(t.Context(), p.Service, wire, p.Before)
			}
			if err != nil {
				t.Fatal(err)
			}
			written = p.Goal.Version
		}
	}
	if written <= w.version() {
		t.Fatalf("goal %d after %d", written, w.version())
	}
	w.start()
	w.until("the agents have what the table has", func() bool { return w.version() == written })
	w.until("it is paused", w.is(deployment.Paused))
}

// TestTimesAreRecorded has the table say for how long a wave has been healthy, without a new goal,
// and a seeder that starts go on from there.
func TestTimesAreRecorded(t *testing.T) {
	w := newFleetWorld(t, 2)
	r := w.build("web-1.zip")
	w.land(r, "region-a", "region-b")
	w.deploy(r, api.Policy{Waves: []string{"100%"}, Bake: "100s"})
	w.until("it bakes", w.is(deployment.Baking))
	version := w.version()
	var recorded *services.Service
	w.until("the table says for how long", func() bool {
		var err error
		recorded, err = w.tables.Service(t.Context(), "web")
		return err == nil && recorded.Current.Baked > 0
	})
	if recorded.Version != version || w.version() != version {
		t.Errorf("goal %d in the table, %d at the agents, %d before", recorded.Version, w.version(), version)
	}
	w.stop()
	w.start()
	var baked time.Duration
	w.until("it bakes again", func() bool {
		v, err := w.s.serviceView("web")
		if err != nil || v.Deployment == nil {
			return false
		}
		_, after, ok := strings.Cut(v.Deployment.Reason, "healthy for ")
		said, _, _ := strings.Cut(after, " ")
		baked, err = time.ParseDuration(said)
		return ok && err == nil
	})
	if baked < recorded.Current.Baked.Truncate(time.Second) {
		t.Errorf("healthy for %s, the table said %s", baked, recorded.Current.Baked)
	}
}

// TestRestoredTable: hosts keep the greatest version when the table is restored from an old
// backup, the service says so, and the next deployment is newer than all.
func TestRestoredTable(t *testing.T) {
	w := newFleetWorld(t, 2)
	first, second := w.build("web-1.zip"), w.build("web-2.zip")
	w.land(first, "region-a", "region-b")
	w.land(second, "region-a", "region-b")
	all := api.Policy{Waves: []string{"100%"}, Bake: "0s"}
	w.deploy(first, all)
	w.until("the first is done", w.is(deployment.Done))
	backup, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	w.deploy(second, all)
	w.until("the second is done", w.is(deployment.Done))
	w.until("hosts run it", func() bool { return w.on(second) == 4 })
	newest, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	w.until("all agents have its last goal", func() bool { return w.version() == newest.Version })
	w.stop()
	if err := w.tables.Write(t.Context(), backup.Service, backup.Wire, newest.Version); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.until("the service says that hosts follow a newer goal", func() bool {
		v, err := w.s.serviceView("web")
		return err == nil && v.Version == backup.Version && strings.Contains(v.Error, fmt.Sprintf("hosts follow goal %d", newest.Version))
	})
	if w.version() != newest.Version || w.on(second) != 4 {
		t.Errorf("goal %d at the agents, %d hosts of 4 run the second build", w.version(), w.on(second))
	}
	w.deploy(second, all)
	w.until("it is done", w.is(deployment.Done))
	w.until("nothing is odd any more", func() bool { v, _ := w.s.serviceView("web"); return v.Error == "" && v.Version > newest.Version })
}

// TestPublishedAgain: a key that is published again changes nothing under a running service.
func TestPublishedAgain(t *testing.T) {
	w := newFleetWorld(t, 2)
	first := w.build("web.zip")
	w.land(first, "region-a", "region-b")
	w.deploy(first, api.Policy{Waves: []string{"100%"}, Bake: "0s"})
	w.until("it is done", w.is(deployment.Done))
	done, err := w.s.serviceView("web")
	if err != nil {
		t.Fatal(err)
	}
	version := done.Version
	w.until("all agents have its last goal", func() bool { return w.version() == version })
	if _, err := w.s.cfg.Bucket.Upload(t.Context(), "web.zip", strings.NewReader("another build"), int64(len("another build")), bucket.Headers{}); err != nil {
		t.Fatal(err)
	}
	again, err := w.s.deploy(t.Context(), api.DeployRequest{SourceBucket: w.global, SourceKey: "web.zip"})
	if err != nil || again.ExecutionID == first.ExecutionID {
		t.Fatalf("%+v, %v", again, err)
	}
	var second *ledger.Record
	w.until("the other build is pulled", func() bool { second, _ = w.s.index.get(again.ExecutionID); return second != nil && second.SHA256 != "" })
	w.land(second, "region-a", "region-b")
	v, err := w.s.serviceView("web")
	if err != nil || v.Target.ExecutionID != first.ExecutionID || w.version() != version || w.on(first) != 4 {
		t.Errorf("%+v, %v; goal %d after %d", v, err, w.version(), version)
	}
	w.deploy(second, api.Policy{Waves: []string{"100%"}, Bake: "0s"})
	w.until("hosts run the other", func() bool { return w.on(second) == 4 })
}

// TestAnotherSeeder: what another seeder writes is seen by what hosts follow, and holds here.
func TestAnotherSeeder(t *testing.T) {
	w := newFleetWorld(t, 1)
	r := w.build("web-1.zip")
	w.deploy(r, api.Policy{})
	w.until("its regions are known", func() bool { v, err := w.s.serviceView("web"); return err == nil && len(v.Deployment.WaitsFor) == 2 })
	of, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	other := of.Service
	d := *of.Current
	d.State, d.Before, d.By = deployment.Paused, d.State, "another seeder"
	other.Current, other.Version = &d, of.Version+10
	wire, err := goal.Sign(t.Context(), w.key, goalOf(t, other))
	if err == nil {
		err = w.tables.Write(t.Context(), other, wire, of.Version)
	}
	if err == nil {
		err = w.agents["region-a"].take(wire)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.until("it is known here", func() bool {
		v, err := w.s.serviceView("web")
		return err == nil && v.Version == other.Version && v.Error == ""
	})
	if v, err := w.s.serviceView("web"); err != nil || v.Deployment.State != deployment.Paused || v.Deployment.By != "another seeder" {
		t.Errorf("%+v, %v", v, err)
	}
	w.until("all agents have it", func() bool { return w.version() == other.Version })
	if _, err := w.s.commandService(t.Context(), "web", api.CommandResume, api.ServiceCommandRequest{}, "carol"); err != nil {
		t.Error(err)
	}
}

// TestTwoDeploys: of two at once one wins, and the other is told.
func TestTwoDeploys(t *testing.T) {
	w := newFleetWorld(t, 1)
	r := w.build("web-1.zip")
	w.until("services can be deployed", func() bool { _, why := w.s.services.all(); return why == nil })
	errs := make(chan error, 8)
	for i := range 8 {
		go func() {
			_, err := w.s.deployService(t.Context(), "web", api.ServiceDeployRequest{Key: r.FileKey}, fmt.Sprint("operator-", i))
			errs <- err
		}()
	}
	won := 0
	for range 8 {
		var e *web.Error
		switch err := <-errs; {
		case err == nil:
			won++
		case !errors.As(err, &e) || e.Code != http.StatusConflict || !strings.Contains(err.Error(), "waiting for the gate"):
			t.Error(err)
		}
	}
	list, err := w.tables.Deployments(t.Context(), "web", 100)
	if won != 1 || err != nil || len(list) != 1 {
		t.Errorf("%d have won, %d deployments, %v", won, len(list), err)
	}
}
