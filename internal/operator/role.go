package operator

import (
	"fmt"
	"strings"
)

// Role is what an operator may do. Each includes those before it.
type Role int

const (
	// Anyone is what is asked of nobody: whether a process is alive, and the page's files.
	Anyone Role = iota
	// View reads executions, status, metrics.
	View
	// Publish brings builds into the global bucket, has them distributed, and sends again
	// what has failed.
	Publish
	// Deploy decides over what is under way and what services run: it cancels executions,
	// whoever published them, and deploys, pauses, rolls back.
	Deploy
	// Admin changes how a daemon runs, and reads the record of changes.
	Admin
	// Nobody is what a path asks for of which nobody has said it.
	Nobody
)

// roles are the names, in the order of the constants.
var roles = []string{"anyone", "view", "publish", "deploy", "admin"}

func (r Role) String() string {
	if r < 0 || int(r) >= len(roles) {
		return "nobody"
	}
	return roles[r]
}

// ParseRole reads the name of a role that a token can have.
func ParseRole(s string) (Role, error) {
	for i, name := range roles[1:] {
		if s == name {
			return Role(i + 1), nil
		}
	}
	return 0, fmt.Errorf("role is %q, expected one of %s", s, strings.Join(roles[1:], ", "))
}
