package api_test

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
)

// TestFieldsAreDocumented: what `-o json` prints is stable, so docs/cli.md names
// every field.
func TestFieldsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{
		api.Execution{}, api.Destination{}, api.Executions{}, api.Unserved{}, api.DeployAnswer{},
		api.AgentStatus{}, api.Member{}, api.Build{}, api.Peer{}, api.BadPeer{}, api.Limits{},
		api.Services{}, api.Service{}, api.ServiceBuild{}, api.ServiceRegion{}, api.ServiceZone{}, api.HostCounts{}, api.FailureGroup{}, api.Policy{}, api.Deployment{},
		api.ServiceDeployAnswer{}, api.WavePlan{}, api.ServiceCommandAnswer{}, api.HostViews{}, api.HostView{}, api.HostsLogged{}, api.RegionLogged{}, api.BackPlan{},
		api.Recalls{}, api.RecalledBuild{},
	} {
		of := reflect.TypeOf(v)
		for i := range of.NumField() {
			f := of.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Anonymous {
				continue
			}
			if !strings.Contains(string(page), "`"+name+"`") {
				t.Errorf("docs/cli.md does not name %s of %s", name, of)
			}
		}
	}
}
