package terminal

import (
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/operator"
)

// Who has asked for what is printed with the last below, and nothing in it that a terminal
// would obey.
func TestChanges(t *testing.T) {
	var out strings.Builder
	at := time.Date(2027, 1, 31, 12, 0, 0, 0, time.Local)
	err := Changes(&out, &api.Changes{Changes: []api.Change{
		{Time: at, Operator: "ci", Action: "POST /executions/{id}/cancel", Path: "/executions/01K0\x1b/cancel", From: "192.0.2.7:1", Status: 403, Error: "ci has the role publish\u202e", Unrecorded: 7},
		{Time: at, Action: "PUT /uploads/", Path: "/uploads/a.zip", About: map[string]string{"key": "a.zip", "executionId": "01K1"}, From: "192.0.2.8:2", Status: 200},
	}})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, want := range [][]string{
		{"TIME", "OPERATOR", "FROM", "WHAT", "OUTCOME"},
		{"2027-01-31 12:00:00", " - ", "192.0.2.8:2", "PUT /uploads/ executionId=01K1 key=a.zip", "200"},
		{"ci", "POST /executions/01K0\ufffd/cancel", "403: ci has the role publish\ufffd (and 7 more refused before)"},
	} {
		for _, w := range want {
			if i >= len(got) || !strings.Contains(got[i], w) {
				t.Errorf("line %d lacks %q:\n%s", i, w, &out)
			}
		}
	}
	out.Reset()
	if err := Changes(&out, &api.Changes{}); err != nil || !strings.Contains(out.String(), "nobody has asked") {
		t.Errorf("%q, %v", &out, err)
	}
}

func TestOperators(t *testing.T) {
	var out strings.Builder
	at := time.Date(2027, 1, 31, 12, 0, 0, 0, time.Local)
	if err := Operators(&out, []operator.Listed{{Name: "ci", Role: "publish", Expires: &at, Expired: true}, {Name: "boss", Role: "admin"}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ci        publish  2027-01-31 12:00:00, expired", "boss      admin    never"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("without %q:\n%s", want, &out)
		}
	}
	out.Reset()
	if err := Operators(&out, nil); err != nil || !strings.Contains(out.String(), "seeder operator add") {
		t.Errorf("%q, %v", &out, err)
	}
}
