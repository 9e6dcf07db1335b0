package agent

import (
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/swarm"
)

// work is a kind of what workers do for a build; there is one worker of a kind at a time.
type work string

const (
	awaitTurn    work = "wait for a turn"
	joinSwarm    work = "join the swarm"
	readTable    work = "read the table"
	findObject   work = "find the object"    // which may be in the bucket already
	compare      work = "compare the object" // part by part, with what is announced
	openEntry    work = "open the entry"     // once the info dictionary is here
	steer        work = "steer"              // until the download is whole
	readSource   work = "read the source"
	land         work = "land"
	giveUp       work = "give up" // by recording that the build cannot land
	leaveSwarm   work = "leave the swarm"
	seedCached   work = "seed from the cache"
	discard      work = "discard the upload"
	clearUploads work = "clear uploads" // those that another agent may have left, too
	remember     work = "remember"
	forget       work = "forget"
)

// ofAttempt is what an attempt may have at work.
var ofAttempt = []work{awaitTurn, joinSwarm, readTable, findObject, compare, openEntry, steer, readSource, land, giveUp}

// What a build hears. The agent says the first ones, its workers the others.
type (
	event     any
	announced struct {
		ann  *announce.Announcement
		wire []byte // as it came
	}
	ended          struct{ cause error } // by a notice, or a newer execution
	contradicted   struct{ err error }   // by another announcement, which was refused
	othersWait     struct{}              // for a turn
	membersChanged struct{}
	storeAway      struct{ err error } // so that nothing lands yet
	storeKnown     struct{}

	moved       struct{ fromSource int64 } // pieces have come; so many bytes of them
	landedBytes int64                      // are in the upload
	completed   struct{}                   // the object, in the bucket
	// caughtUp: all of so many segments is here, and the source is waited for the next; or
	// not any more.
	caughtUp struct {
		waits    bool
		segments int
	}

	// finished is the last word of a worker.
	finished struct {
		work   work
		err    error
		record *ledger.Record // of readTable
		lander lander         // lands the build in this bucket, by that record
		leads  bool           // this agent is to land it
		// arrived: the build has, with this result; of land and findObject.
		arrived bool
		result  ledger.Result
		// Of findObject and compare: alike is that the object may be the build, which the seal
		// will say. Of findObject: comparable is that its parts tell more. Of compare: agrees
		// is that they are those of so many segments, all that were announced when it began.
		alike, comparable, agrees bool
		segments                  int
		whole                     *origins // of steer; nil when it was ended before
		got                       any      // for the owner
	}
)

// What is to be done after an event, in this order.
type (
	action      any
	begin       struct{ work work }
	cancel      struct{ work work }
	releaseTurn struct{}
	revised     struct{} // the announcement: whoever downloads is told
	// say makes something known, in the log, the trace, the metrics.
	say struct {
		what  string
		err   error
		delay time.Duration // before it is tried again
	}
)

// shown is what others see of a build.
type shown struct {
	ann        *announce.Announcement
	started    time.Time
	state      string
	err        error // the newest failure, nil once landed
	retryAt    time.Time
	times      times
	landed     int64 // bytes
	waits      bool  // for the source: all that is announced is here
	landedAt   time.Time
	landedBy   string // the agent's name, as the table has it
	came       origins
	fromSource int64 // bytes
	// The owner knows the rest.
	member  *membership // nil out of the swarm
	traffic swarm.Stats
}
