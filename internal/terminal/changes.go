package terminal

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/operator"
)

// Changes prints which changes were asked for, the last below.
func Changes(w io.Writer, c *api.Changes) error {
	if len(c.Changes) == 0 {
		return say(w, "nobody has asked for a change yet")
	}
	var rows [][]string
	for _, r := range slices.Backward(c.Changes) {
		who, what, outcome := r.Operator, r.Action, strconv.Itoa(r.Status)
		if who == "" {
			who = "-"
		}
		if !strings.Contains(r.Path, "/uploads/") || r.About["key"] == "" {
			what = strings.TrimSpace(strings.SplitN(r.Action, " ", 2)[0] + " " + r.Path)
		}
		for _, name := range slices.Sorted(maps.Keys(r.About)) {
			what += " " + name + "=" + r.About[name]
		}
		if r.Error != "" {
			outcome += ": " + r.Error
		}
		if r.Unrecorded > 0 {
			outcome += fmt.Sprintf(" (and %d more refused before)", r.Unrecorded)
		}
		rows = append(rows, []string{r.Time.Local().Format(time.DateTime), who, r.From, what, outcome})
	}
	return table(w, []column{{head: "TIME"}, {head: "OPERATOR"}, {head: "FROM", rank: 1}, {head: "WHAT", least: 10}, {head: "OUTCOME", least: 3}}, rows)
}

// Operators prints who may do what.
func Operators(w io.Writer, list []operator.Listed) error {
	if len(list) == 0 {
		return say(w, "there are no operators; make one with: seeder operator add NAME")
	}
	var rows [][]string
	for _, o := range list {
		expires := "never"
		if o.Expires != nil {
			expires = o.Expires.Local().Format(time.DateTime)
		}
		if o.Expired {
			expires += ", expired"
		}
		by := o.Certificate
		if by == "" {
			by = "token"
		}
		rows = append(rows, []string{o.Name, o.Role, expires, by})
	}
	return table(w, []column{{head: "OPERATOR"}, {head: "ROLE"}, {head: "EXPIRES"}, {head: "KNOWN BY"}}, rows)
}
