package seeder

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/web"
)

// TestRecall: what is recalled reaches the agents, is deployed by nobody, and is nothing that a
// service runs.
func TestRecall(t *testing.T) {
	w := newFleetWorld(t, 1)
	first, second := w.build("web-1.zip"), w.build("web-2.zip")
	w.land(first, "region-a", "region-b")
	w.land(second, "region-a", "region-b")
	all := api.Policy{Waves: []string{"100%"}, Bake: "0s"}
	w.deploy(first, all)
	w.until("the first is done", w.is(deployment.Done))
	recall := func(undo bool, builds ...string) (*api.Recalls, error) {
		return w.s.recall(t.Context(), api.RecallRequest{Builds: builds, Undo: undo}, "carol")
	}
	code := func(err error) int {
		var e *web.Error
		if !errors.As(err, &e) {
			return 0
		}
		return e.Code
	}
	for name, c := range map[string]struct {
		undo   bool
		builds []string
		code   int
	}{
		"what the service runs":    {false, []string{"web-1.zip"}, http.StatusConflict},
		"that, by its execution":   {false, []string{"web-2.zip", first.ExecutionID}, http.StatusConflict},
		"unknown":                  {false, []string{"web-9.zip"}, http.StatusNotFound},
		"nothing":                  {false, nil, http.StatusBadRequest},
		"too many":                 {false, make([]string, goal.MaxRecalled+1), http.StatusBadRequest},
		"taken back, and was none": {true, []string{"web-2.zip"}, http.StatusConflict},
	} {
		if _, err := recall(c.undo, c.builds...); code(err) != c.code {
			t.Errorf("%s: %v, expected %d", name, err, c.code)
		}
	}
	list, err := recall(false, "web-2.zip")
	if err != nil || len(list.Recalled) != 1 || list.Recalled[0].Key != "web-2.zip" || list.Recalled[0].By != "carol" || list.Recalled[0].ExecutionID != second.ExecutionID {
		t.Fatalf("%+v, %v", list, err)
	}
	sum := list.Recalled[0].SHA256
	shown, _ := maps.Collect(w.s.state())[recallsValue].(recallsOnPage)
	if shown.All != 1 || len(shown.Newest) != 1 || shown.Newest[0].SHA256 != sum {
		t.Errorf("the page is told of %+v", shown)
	}
	for _, a := range w.agents {
		w.until("the agents know", func() bool { return a.shelf.Recalled(sum) })
	}
	if _, err := w.s.deployService(t.Context(), "web", api.ServiceDeployRequest{Key: "web-2.zip"}, ""); code(err) != http.StatusConflict || !strings.Contains(err.Error(), "recalled") {
		t.Errorf("deployed: %v", err)
	}
	w.stop()
	w.start()
	w.until("known after a restart", func() bool { list, err := w.s.recallsView(); return err == nil && len(list.Recalled) == 1 })
	w.until("the seeder has read its table", func() bool { return w.s.isReady() == nil })
	if again, err := recall(false, sum); err != nil || len(again.Recalled) != 1 || again.Version <= list.Version || again.Recalled[0].Key != "web-2.zip" {
		t.Errorf("%+v, %v", again, err)
	}
	if list, err := recall(true, "web-2.zip"); err != nil || len(list.Recalled) != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, a := range w.agents {
		w.until("the agents know that, too", func() bool { return !a.shelf.Recalled(sum) })
	}
	w.deploy(second, all)
	w.until("the second is done", w.is(deployment.Done))
}

// The page is told of the newest builds that were recalled, and of how many there are.
func TestRecallsOnPage(t *testing.T) {
	var r services.Recalls
	for i := range goal.MaxRecalled {
		r.Builds = append(r.Builds, services.Recalled{SHA256: fmt.Sprint(i), Key: strings.Repeat("k", 1024), At: time.Unix(int64(i), 0)})
	}
	got := showRecalls(r)
	if got.All != goal.MaxRecalled || len(got.Newest) != shownRecalls || got.Newest[0].SHA256 != "299" || got.Newest[19].SHA256 != "280" {
		t.Errorf("%d, %d shown", got.All, len(got.Newest))
	}
}
