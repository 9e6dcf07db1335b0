package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/devcloud/cloudtest"
	"github.com/landfall-dist/landfall/internal/terminal/terminaltest"
)

// asSeeder makes the test's binary the seeder's.
const asSeeder = "LANDFALL_TEST_AS_SEEDER"

var cloud *cloudtest.Cloud

func TestMain(m *testing.M) {
	if os.Getenv(asSeeder) != "" {
		main()
		return
	}
	cloudtest.VerifyTestMain(m, &cloud)
}

// binary is the command with arguments, and with more in its environment.
func binary(env []string, args ...string) *exec.Cmd { return terminaltest.Self(asSeeder, env, args...) }

// pretend answers as a seeder with these executions would.
func pretend(t *testing.T, executions ...api.Execution) (url string) {
	t.Helper()
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any) {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	mux.HandleFunc("GET /executions", func(w http.ResponseWriter, r *http.Request) {
		page := api.Executions{Executions: []api.Execution{}}
		for _, e := range executions {
			if key := r.URL.Query().Get("key"); key == "" || key == e.Key {
				page.Executions = append(page.Executions, e)
			}
		}
		answer(w, page)
	})
	mux.HandleFunc("GET /executions/{id}", func(w http.ResponseWriter, r *http.Request) {
		for _, e := range executions {
			if e.ExecutionID == r.PathValue("id") {
				answer(w, e)
				return
			}
		}
		w.WriteHeader(http.StatusNotFound)
		answer(w, api.Error{Error: "no execution \x1b[2J" + r.PathValue("id")})
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}
