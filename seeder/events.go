package seeder

import (
	"context"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// worker does one thing beside the machine. There is one of a kind at a time.
type worker string

const (
	fetchWorker    worker = "fetch"
	announceWorker worker = "announce"
	rereadWorker   worker = "reread"
	failWorker     worker = "fail"
	renewWorker    worker = "renew"
	mendWorker     worker = "mend"  // once the bytes are here, until it finishes
	leaveWorker    worker = "leave" // gives back what was held, at the end
	endWorker      worker = "end"   // sends the signed notice that it is over
	dropWorker     worker = "drop"  // removes what an upload has left that was broken off
)

// content is what the table says of a build's bytes; infohash is empty for 0 of them.
type content struct {
	size             int64
	infohash, sha256 string
}

// served are the buckets that have an agent which takes this seeder's word, since when,
// and why others have none.
type served struct {
	since map[string]time.Time
	why   map[string]string
}

func (s served) whyNot(bucket string) string {
	if reason, ok := s.why[bucket]; ok {
		return reason
	}
	return "no living member serves this bucket"
}

// event is what a machine is told: one of these, or served.
type event any

type (
	// asked is a reason to carry the execution. Its trace has the span that the work
	// continues, and ends with the process.
	asked struct {
		why   string
		trace context.Context
	}
	// known is a newer record.
	known struct{ record *ledger.Record }
	// taken: another execution has taken the key.
	taken struct{ by string }
	// retrying: a retry was asked for and is about to be written.
	retrying struct{}
	// reported is an agent's word: whether it moves, what is wrong, and whether it says
	// what the table does not say yet.
	reported struct {
		bucket, node, complaint string
		moved, news             bool
	}
	// turned: the pull has come to this phase; pulled: it has come so far.
	turned struct{ phase string }
	pulled struct{ bytes int64 }
	// handedOut: so many segments are here, and handed out.
	handedOut struct{ segments int }
	// delayed: an object that changes again and again is looked at then.
	delayed struct{ until time.Time }
	// done is a worker's last word.
	done struct {
		worker  worker
		err     error
		content content // of fetch
		// segments were announced; sealed: that is all of them; high: before others.
		segments     int
		sealed, high bool
	}
)

// action is what a machine wants done, with what it knows then.
type action any

type (
	begin       struct{ worker worker }
	cancel      struct{ worker worker }
	begun       struct{ asked asked }
	raise       struct{} // before others, from now on
	sayArrived  struct{ bucket string }
	sayFailed   struct{ bucket string }
	sayHopeless struct{ cause error } // nothing more will come
	complain    struct {
		err   error
		delay time.Duration
	}
	concluded struct{ end end }
)

// failure is a destination that fails; another try changes nothing where it is final.
type failure struct {
	bucket, reason string
	final          bool
}

// live is what only this process knows of an execution, for others to see.
type live struct {
	phase  string
	pulled int64
	sent   func() int64 // nil until it is seeded
	err    error
	// retryAt is when what failed is tried again; zero or past when that is not waited for.
	retryAt time.Time
	// began, whole and announced are when, since takenUp, the pull began, when it was
	// whole, and the last announcement that begins the destinations' time; zero for
	// what has not been.
	began, whole, announced time.Time
	// takenUp is when this process began, or began again, to carry it.
	takenUp time.Time
	// sourceMissing is set when the source has the object no more: only a person's retry
	// can change that.
	sourceMissing bool
	// spoilt: segments may have been announced that are not the source's. What comes next
	// would contradict them, so another execution sends it.
	spoilt bool
}

// newLive is what is shown of an execution that nobody carries.
func newLive(r *ledger.Record) live {
	if over(r) {
		return live{phase: api.PhaseEnded}
	}
	return live{phase: api.PhaseQueued, err: leftAlone(r)}
}
