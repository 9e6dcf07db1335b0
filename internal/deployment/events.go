package deployment

import (
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
)

// Event is what a Machine takes.
type Event interface{ event() }

// Deploy asks for a deployment. Its policy is complete.
type Deploy struct {
	// Ask is what the answer is told with.
	Ask    string
	ID     string // of the new deployment
	Target goal.Build
	Policy Policy
	By     string
}

// Command asks for something to be done to the newest deployment.
type Command struct {
	Ask  string
	Kind string // one of api's
	// ID is that of the deployment that a roll-back of an ended one begins.
	ID string
	// Region is the one to skip.
	Region string
	// Hosts are those to hold, or to release.
	Hosts []string
	// Now is as in Deployment.
	Now bool
	By  string
}

// Living are the agents that serve hosts, by region: all that there are now. Until then more
// may be met, of a seeder that has just started.
type Living struct {
	Agents map[string][]string
	Until  time.Time
}

// Landed says that an execution has landed in a region, and its composite SHA-256; without
// a region only what that is.
type Landed struct{ ExecutionID, Region, SHA256 string }

// Lost says why an execution will not land any more where it has not.
type Lost struct{ ExecutionID, Reason string }

// Counted is what an agent counts.
type Counted struct {
	Region, Agent string
	Counts        goal.Counts
}

// Roster is what an agent answers to AskRoster: the hashes of the hosts that it has seen in
// the last minute.
type Roster struct {
	Region, Agent string
	Hashes        []uint32
}

// Checked is the answer to Check: nil has the wave begin.
type Checked struct {
	Deployment string
	Wave       int
	Err        error
}

// Recalled are the builds that must run nowhere, by their composites: all that there are now.
type Recalled struct{ SHA256 map[string]bool }

// Written says that a goal is in the table, or why it never will be: somebody else has
// written meanwhile. Then Table is the service as it is there.
type Written struct {
	Version int64
	Err     error
	Table   *Service
}

// Tick says that time has passed.
type Tick struct{}

func (Deploy) event()   {}
func (Command) event()  {}
func (Living) event()   {}
func (Landed) event()   {}
func (Lost) event()     {}
func (Counted) event()  {}
func (Roster) event()   {}
func (Checked) event()  {}
func (Written) event()  {}
func (Tick) event()     {}
func (Recalled) event() {}

// Action is what a Machine wants to have done.
type Action interface{ action() }

// Publish wants a goal to be written into the table beside the service, on condition that
// its version there is still Before, and then sent. Written is to follow.
type Publish struct {
	Service Service
	Goal    *goal.Goal
	Before  int64
}

// Record wants the table to be told for how long things have lasted, on condition that the
// service's version there is this one. Nothing follows from it, and hosts hear nothing.
type Record struct {
	Deployment Deployment
	Version    int64
}

// Answer is what came of a Deploy or a Command.
type Answer struct {
	Ask string
	Err error
}

// AskRoster wants every agent's Roster.
type AskRoster struct{}

// Check wants a Checked: the policy's WaveCheck is to be asked.
type Check struct {
	Deployment string
	Wave       int
	Ask        string // URL or command
}

// Notice is something that people are to be told: a deployment has ended.
type Notice struct {
	Deployment Deployment
	At         time.Time
}

func (Publish) action()   {}
func (Record) action()    {}
func (Answer) action()    {}
func (AskRoster) action() {}
func (Check) action()     {}
func (Notice) action()    {}
