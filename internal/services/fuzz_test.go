package services

import (
	"encoding/json"
	"testing"

	"github.com/landfall-dist/landfall/internal/deployment"
)

// FuzzDeployment: whatever stands in the table of deployments, what is read of it is that
// deployment, within bounds, and is written as it was read.
func FuzzDeployment(f *testing.F) {
	seed, err := json.Marshal(deployment.Deployment{ID: "01M8CGGP32", State: "wave"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("01M8CGGP32", string(seed))
	f.Add("x", `{"id":"x","waves":[{}]}`)
	f.Fuzz(func(t *testing.T, id, document string) {
		d := decode(item{"deploymentId": text(id), "document": text(document)})
		if d == nil {
			return
		}
		if d.ID != id || len(document) > maxDocument {
			t.Errorf("%q is read of %d bytes for %q", d.ID, len(document), id)
		}
		if _, err := json.Marshal(d); err != nil {
			t.Error(err)
		}
	})
}
