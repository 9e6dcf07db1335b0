package seeder

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/internal/web"
)

// TestServiceIsDeployed has hosts of two regions switch wave by wave, a seeder that is
// killed in the middle of it, and everything go back.
func TestServiceIsDeployed(t *testing.T) {
	w := newFleetWorld(t, 5)
	first := w.build("web-1.zip")
	d := w.deploy(first, api.Policy{Waves: []string{"20%", "100%"}, Bake: "0s"})
	if d.State != deployment.Gate || d.Service != "web" || d.By != "carol" || d.Target.Key != "web-1.zip" {
		t.Errorf("%+v", d)
	}
	w.land(first, "region-a")
	w.until("the gate waits for region-b", func() bool {
		v, _ := w.s.serviceView("web")
		return slices.Equal(v.Deployment.WaitsFor, []string{"region-b"})
	})
	if n := w.on(first); n > 0 {
		t.Fatalf("%d hosts have switched before the build was everywhere", n)
	}
	w.land(first, "region-b")
	w.until("all hosts run it", func() bool { return w.on(first) == 10 })
	w.until("it is done", w.is(deployment.Done))

	// The next one bakes for an hour after its first wave; the seeder is killed there.
	second := w.build("web-2.zip")
	w.land(second, "region-a", "region-b")
	w.deploy(second, api.Policy{Waves: []string{"20%", "100%"}, Bake: "1h"})
	w.until("the first wave has switched", func() bool { return w.on(second) == 2 && w.is(deployment.Baking)() })
	before, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.start()
	w.until("it goes on baking", w.is(deployment.Baking))
	if now, err := w.tables.Service(t.Context(), "web"); err != nil || now.Version != before.Version || w.on(second) != 2 || now.Current.Wave != 1 {
		t.Errorf("goal %d after %d, %d hosts of 2 switched, %v", now.Version, before.Version, w.on(second), err)
	}
	// Before anything goes back it says what that means.
	w.until("the hosts that hold the stable build are counted", func() bool { v, _ := w.s.serviceView("web"); return v.Hosts.Stable == 8 })
	plan, err := w.s.commandService(t.Context(), "web", api.CommandRollback, api.ServiceCommandRequest{DryRun: true}, "dave")
	if want := []api.BackPlan{{Region: "region-a", Hosts: 5, Holding: 4, Fetching: 1}, {Region: "region-b", Hosts: 5, Holding: 4, Fetching: 1}}; err != nil || !plan.DryRun || !slices.Equal(plan.Back, want) || plan.Deployment.State != deployment.Baking {
		t.Errorf("%+v, %v", plan, err)
	}
	if back, err := w.s.commandService(t.Context(), "web", api.CommandRollback, api.ServiceCommandRequest{}, "dave"); err != nil || back.DryRun || !slices.Equal(back.Back, plan.Back) {
		t.Fatalf("%+v, %v", back, err)
	}
	w.until("all hosts are back", func() bool { return w.on(first) == 10 })
	w.until("it went back", w.is(deployment.WentBack))
	all, err := w.s.deploymentsView(t.Context(), "web")
	if err != nil || len(all.Deployments) != 2 || all.Deployments[0].State != deployment.WentBack || all.Deployments[1].State != deployment.Done {
		t.Errorf("%+v, %v", all, err)
	}
	v, err := w.s.serviceView("web")
	if err != nil || v.Stable.Key != "web-1.zip" || v.Target.Key != "web-1.zip" || v.Hosts.Healthy != 10 || v.By != "carol" {
		t.Errorf("%+v, %v", v, err)
	}
	// What went back is deployed again, and again.
	for range 2 {
		again := w.deploy(second, api.Policy{Waves: []string{"100%"}, Bake: "0s"})
		w.until("it is done", func() bool {
			v, err := w.s.serviceView("web")
			return err == nil && v.Deployment.DeploymentID == again.DeploymentID && v.Deployment.State == deployment.Done && w.on(second) == 10
		})
	}
	// What agents have is what the table has, and a beat names it.
	table, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range w.agents {
		w.until("the newest goal and a beat that names it are at the agents", func() bool {
			beat, err := goal.Open(a.shelf.Wire(""), signing.TrustIn(w.key.Public()), time.Now())
			b, ok := beat.(*goal.Beat)
			return err == nil && ok && b.Versions["web"] == table.Version && bytes.Equal(a.shelf.Wire("web"), table.Wire)
		})
	}
	if head, _, err := w.tables.Head(t.Context()); err != nil || head == nil {
		t.Errorf("no head in the table: %v", err)
	}
}

// TestServiceErrors has each thing that is refused.
func TestServiceErrors(t *testing.T) {
	w := newFleetWorld(t, 1)
	r := w.build("web-1.zip")
	deploy := func(service, key string, p api.Policy) error {
		_, err := w.s.deployService(t.Context(), service, api.ServiceDeployRequest{Key: key, Policy: p}, "")
		return err
	}
	w.deploy(r, api.Policy{})
	w.until("its regions are known", func() bool {
		v, err := w.s.serviceView("web")
		return err == nil && len(v.Deployment.WaitsFor) == 2
	})
	command := func(service, name, region string) error {
		_, err := w.s.commandService(t.Context(), service, name, api.ServiceCommandRequest{Region: region}, "")
		return err
	}
	for name, c := range map[string]struct {
		err  error
		code int
		says string
	}{
		"another deployment":    {deploy("web", "web-1.zip", api.Policy{}), http.StatusConflict, "waiting for the gate"},
		"unknown key":           {deploy("api", "none.zip", api.Policy{}), http.StatusNotFound, "publish it first"},
		"no key":                {deploy("api", "", api.Policy{}), http.StatusBadRequest, "key"},
		"no name for a service": {deploy("../web", "web-1.zip", api.Policy{}), http.StatusBadRequest, "service"},
		"a wave":                {deploy("api", "web-1.zip", api.Policy{Waves: []string{"200%"}}), http.StatusBadRequest, "200%"},
		"bake":                  {deploy("api", "web-1.zip", api.Policy{Bake: "soon"}), http.StatusBadRequest, "soon"},
		"bake, too long":        {deploy("api", "web-1.zip", api.Policy{Bake: "9000h"}), http.StatusBadRequest, "9000h"},
		"gate":                  {deploy("api", "web-1.zip", api.Policy{Gate: "open"}), http.StatusBadRequest, "open"},
		"a command as check":    {deploy("api", "web-1.zip", api.Policy{WaveCheck: "rm -rf /"}), http.StatusBadRequest, "http://"},
		"unknown service":       {command("api", api.CommandPause, ""), http.StatusNotFound, "seeder deploy api"},
		"resume":                {command("web", api.CommandResume, ""), http.StatusConflict, "waiting for the gate"},
		"nothing to go back to": {command("web", api.CommandRollback, ""), http.StatusConflict, "no stable build"},
		"region":                {command("web", api.CommandSkip, "region-x"), http.StatusConflict, "region-x"},
		"region's name":         {command("web", api.CommandSkip, "A/B"), http.StatusBadRequest, "region"},
	} {
		var e *web.Error
		if !errors.As(c.err, &e) || e.Code != c.code || !strings.Contains(c.err.Error(), c.says) {
			t.Errorf("%s: %v; expected %d and %q", name, c.err, c.code, c.says)
		}
	}
	plan, err := w.s.deployService(t.Context(), "api", api.ServiceDeployRequest{Key: "web-1.zip", DryRun: true}, "")
	if err != nil || !plan.DryRun || plan.Policy.Bake != "2m" || len(plan.Policy.Waves) != 3 {
		t.Errorf("%+v, %v", plan, err)
	}
	if _, err := w.s.serviceView("api"); err == nil {
		t.Error("a dry run has made a service")
	}
	// Somebody else writes: who comes second is told, and sees what holds.
	of, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	other := *of.Current
	other.ID, other.By = services.NewID(time.Now(), of.Current), "another seeder"
	s := of.Service
	s.Version, s.Current = of.Version+1000, &other
	if err := w.tables.Write(t.Context(), s, of.Wire, of.Version); err != nil {
		t.Fatal(err)
	}
	err = command("web", api.CommandAbort, "")
	var e *web.Error
	if !errors.As(err, &e) || e.Code != http.StatusConflict {
		t.Errorf("wrote over another seeder's goal: %v", err)
	}
	if v, err := w.s.serviceView("web"); err != nil || v.Deployment.By != "another seeder" || v.Version != s.Version {
		t.Errorf("%+v, %v", v, err)
	}
	if err := command("web", api.CommandAbort, ""); err != nil {
		t.Error("the second time:", err)
	}
}

// TestServicesWithoutTables says what is missing, and goes on when it is there.
func TestServicesWithoutTables(t *testing.T) {
	w := newFleetWorld(t, 0)
	r := w.build("web-1.zip")
	w.stop()
	names := w.tables.Names()
	w.tables = services.New(cloud.DynamoDB, services.Names{Services: names.Services + "2", Deployments: names.Deployments + "2", Logs: names.Logs + "2"}, 0)
	w.start()
	w.until("the seeder has read its table", func() bool { return w.s.isReady() == nil })
	var e *web.Error
	w.until("it says what to do", func() bool {
		_, err := w.s.deployService(t.Context(), "web", api.ServiceDeployRequest{Key: r.FileKey}, "")
		return errors.As(err, &e) && e.Code == http.StatusServiceUnavailable && strings.Contains(err.Error(), "seeder init")
	})
	w.makeTables()
	w.deploy(r, api.Policy{})
}
