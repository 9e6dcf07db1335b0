package seeder

import (
	"bytes"
	"context"
	"errors"
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

// TestWithoutTable rolls back while the table is away, before and after a restart of the
// seeder, and has the table say so when it is back.
func TestWithoutTable(t *testing.T) {
	w := newFleetWorld(t, 5)
	first, second := w.build("web-1.zip"), w.build("web-2.zip")
	w.land(first, "region-a", "region-b")
	w.land(second, "region-a", "region-b")
	all := api.Policy{Waves: []string{"100%"}, Bake: "0s"}
	w.deploy(first, all)
	w.until("the first is done", w.is(deployment.Done))
	w.deploy(second, all)
	w.until("the second is done", w.is(deployment.Done))
	old, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}

	w.away.Store(true)
	// What is asked for as always waits for the table; what must not wait does not, and gets
	// that out of the way.
	waits, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var e *web.Error
	if _, err := w.s.commandService(waits, "web", api.CommandHold, api.ServiceCommandRequest{Hosts: []string{"host-0"}}, "dave"); !errors.As(err, &e) || e.Code != http.StatusServiceUnavailable || !strings.Contains(err.Error(), "--without-table") {
		t.Fatalf("%v", err)
	}
	back, err := w.s.commandService(t.Context(), "web", api.CommandRollback, api.ServiceCommandRequest{WithoutTable: true, Now: true}, "dave")
	if err != nil || !back.WithoutTable || !strings.Contains(back.Error, "without the table") || back.Version <= old.Version {
		t.Fatalf("%+v, %v", back, err)
	}
	w.until("all but the held hosts are back", func() bool { return w.on(first) == 8 })
	w.until("it went back", w.is(deployment.WentBack))
	ended, err := w.s.serviceView("web")
	if err != nil {
		t.Fatal(err)
	}
	version := ended.Version

	// A restart knows it, without a table.
	w.stop()
	w.start()
	w.until("it is known after a restart", func() bool {
		v, err := w.s.serviceView("web")
		return err == nil && v.Version == version && v.WithoutTable
	})
	if _, err := w.s.commandService(t.Context(), "web", api.CommandRelease, api.ServiceCommandRequest{Hosts: []string{"host-0"}}, "dave"); err != nil {
		t.Fatal(err)
	}
	w.until("the held hosts are back too", func() bool { return w.on(first) == 10 })

	w.away.Store(false)
	w.until("the table has it", func() bool {
		now, err := w.tables.Service(t.Context(), "web")
		v, viewErr := w.s.serviceView("web")
		return err == nil && viewErr == nil && !v.WithoutTable && v.Error == "" && now.Version == v.Version && now.Version > version &&
			now.Current.State == deployment.WentBack && bytes.Equal(now.Wire, w.agents["region-a"].shelf.Wire("web"))
	})
	w.deploy(second, all) // as always
	w.until("the second is done again", w.is(deployment.Done))
	if n := w.on(second); n != 10 {
		w.until("all hosts run the second", func() bool { return w.on(second) == 10 })
	}

	// A seeder that has only its disk from the start.
	w.stop()
	w.away.Store(true)
	w.start()
	w.until("it runs", func() bool { return w.s.isReady() == nil })
	w.until("without a table it says so", func() bool {
		_, err := w.s.commandService(t.Context(), "web", api.CommandRollback, api.ServiceCommandRequest{}, "dave")
		return errors.As(err, &e) && e.Code == http.StatusServiceUnavailable
	})
	if _, err := w.s.commandService(t.Context(), "none", api.CommandRollback, api.ServiceCommandRequest{WithoutTable: true}, "dave"); err == nil {
		t.Error("a service that nobody knows went back")
	}
	if _, err := w.s.commandService(t.Context(), "web", api.CommandRollback, api.ServiceCommandRequest{WithoutTable: true}, "dave"); err != nil {
		t.Fatal(err)
	}
	w.until("all hosts are back again", func() bool { return w.on(first) == 10 })
	w.away.Store(false)
	w.until("the table has that, too", func() bool {
		now, err := w.tables.Service(t.Context(), "web")
		return err == nil && now.Version >= w.version() && now.Current.Kind == api.KindRollback
	})
}

// TestTableHasMore has somebody else write while a goal was sent without the table: the greater
// version stays.
func TestTableHasMore(t *testing.T) {
	w := newFleetWorld(t, 1)
	r := w.build("web-1.zip")
	w.deploy(r, api.Policy{})
	w.until("its regions are known", func() bool { v, err := w.s.serviceView("web"); return err == nil && len(v.Deployment.WaitsFor) == 2 })
	another := services.New(cloud.DynamoDB, w.tables.Names(), 0) // a seeder that reaches the table
	for name, ahead := range map[string]int64{"lesser": -1, "greater": 1000} {
		of, err := w.tables.Service(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		w.away.Store(true)
		command := api.CommandPause
		if of.Current.State == deployment.Paused {
			command = api.CommandResume
		}
		v, _ := w.s.services.get("web")
		if err := v.do(t.Context(), deployment.Command{Kind: command, By: "carol"}, true); err != nil {
			t.Fatal(err)
		}
		sent := v.shown().Version
		other := of.Service
		d := *of.Current
		d.By = "another seeder"
		other.Current, other.Version = &d, sent+ahead
		wire, err := goal.Sign(t.Context(), w.key, goalOf(t, other))
		if err == nil {
			err = another.Write(t.Context(), other, wire, of.Version)
		}
		if err != nil {
			t.Fatal(err)
		}
		w.away.Store(false)
		want := max(sent, sent+ahead)
		w.until(name+": the greater one is in the table, and here", func() bool {
			now, err := w.tables.Service(t.Context(), "web")
			v := v.shown()
			return err == nil && now.Version == want && v.Version == want && !v.WithoutTable
		})
	}
}
