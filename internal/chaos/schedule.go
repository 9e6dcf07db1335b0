//go:build linux

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// roundLength is when the last fault of a round has begun at the latest;
	// none lasts longer than longestFault.
	roundLength  = 3 * time.Second
	longestFault = 3 * time.Second
)

// Round is one schedule: what is published, and what goes wrong when. It follows
// from its seed alone.
type Round struct {
	w      *World
	rng    *rand.Rand
	name   string
	events []event
	// mortal are those who may be killed; nil for all.
	mortal []*Member
	// told are requests to the seeder that may take until the end.
	told sync.WaitGroup
}

// event is one thing that happens.
type event struct {
	at   time.Duration
	what string
	do   func()
}

// NewRound makes the schedule number n of a seed.
func NewRound(w *World, seed uint64, n int) *Round {
	r := &Round{w: w, rng: rand.New(rand.NewPCG(seed, uint64(n))), name: fmt.Sprintf("round-%d", n)}
	for i := range 1 + r.rng.IntN(4) {
		if r.rng.IntN(3) == 0 {
			r.upload(i)
		} else {
			r.publish(i)
		}
	}
	for range 2 + r.rng.IntN(4) {
		r.fault()
	}
	slices.SortStableFunc(r.events, func(a, b event) int { return int(a.at - b.at) })
	return r
}

func (r *Round) String() string {
	var b strings.Builder
	for _, e := range r.events {
		fmt.Fprintf(&b, "  %4d ms  %s\n", e.at.Milliseconds(), e.what)
	}
	return b.String()
}

// Run goes through the schedule and returns when all is settled.
func (r *Round) Run() {
	began := time.Now()
	for _, e := range r.events {
		<-time.After(time.Until(began.Add(e.at))) // it is a schedule
		e.do()
	}
	r.w.heal()
	r.told.Wait()
	r.w.Settle()
}

func (r *Round) at(t time.Duration, what string, do func()) {
	r.events = append(r.events, event{t, what, do})
}

// lasting adds something that begins and ends.
func (r *Round) lasting(what string, begin, end func()) {
	from := r.moment()
	until := from + 100*time.Millisecond + rand64(r.rng, longestFault)
	r.at(from, what, begin)
	r.at(until, "end of "+what, end)
}

func (r *Round) moment() time.Duration { return rand64(r.rng, roundLength) }

func rand64(rng *rand.Rand, below time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(below)))
}

// size of a build: empty, tiny, around the borders of pieces and parts, or a few
// parts.
func (r *Round) size() int {
	switch r.rng.IntN(8) {
	case 0:
		return 0
	case 1:
		return 1 + r.rng.IntN(1000)
	case 2:
		return 128<<10 + r.rng.IntN(3) - 1
	case 3:
		return 8<<20 + r.rng.IntN(3) - 1
	default:
		return 1 + r.rng.IntN(24<<20)
	}
}

// publish adds a build, and what happens to its key later.
func (r *Round) publish(i int) {
	key := fmt.Sprintf("%s/build %d.zip", r.name, i)
	size := r.size()
	first := &Version{Key: key, Size: size, seed: r.rng.Uint64()}
	at := rand64(r.rng, roundLength/3)
	r.at(at, fmt.Sprintf("publish %s, %d bytes", key, size), func() { r.w.PutAgain(first) })
	if r.rng.IntN(2) == 0 {
		r.at(at, "and tell the seeder", func() { r.tell(func() { _ = r.w.try(key) }) })
	}
	later := func() time.Duration { at += 50*time.Millisecond + rand64(r.rng, time.Second); return at }
	switch r.rng.IntN(8) {
	case 0: // Y, and perhaps X again
		second := &Version{Key: key, Size: r.size(), seed: r.rng.Uint64()}
		r.at(later(), fmt.Sprintf("replace %s by %d bytes", key, second.Size), func() { r.w.PutAgain(second) })
		if r.rng.IntN(2) == 0 {
			r.at(later(), "put the first content of "+key+" back", func() { r.w.PutAgain(first) })
		}
	case 1:
		r.at(later(), "delete "+key, func() { r.w.Delete(key) })
	case 2:
		r.at(later(), "cancel "+key, func() { r.w.Loosen(key); r.tell(func() { _ = r.w.Cancel(key) }) })
	}
}

// upload adds a build that is sent through the seeder, and what happens to its client, or
// to its key before.
func (r *Round) upload(i int) {
	key := fmt.Sprintf("%s/upload %d.zip", r.name, i)
	at := rand64(r.rng, roundLength/3)
	later := func() time.Duration { at += 50*time.Millisecond + rand64(r.rng, time.Second); return at }
	if r.rng.IntN(3) == 0 {
		before := &Version{Key: key, Size: r.size(), seed: r.rng.Uint64()}
		r.at(at, fmt.Sprintf("publish %s, %d bytes", key, before.Size), func() { r.w.PutAgain(before) })
		later()
	}
	for again := true; again; {
		v := &Version{Key: key, Size: r.size(), seed: r.rng.Uint64()}
		takes := 200*time.Millisecond + rand64(r.rng, roundLength)
		ctx, cancel := context.WithCancel(context.Background())
		publish := r.rng.IntN(2) == 0
		r.at(at, fmt.Sprintf("upload %s, %d bytes in %d ms", key, v.Size, takes.Milliseconds()), func() {
			r.tell(func() {
				defer cancel()
				if r.w.Upload(ctx, v, takes) == nil && publish {
					_ = r.w.try(key)
				}
			})
		})
		if r.rng.IntN(4) == 0 {
			r.at(at+rand64(r.rng, takes), "kill the client that uploads "+key, cancel)
		}
		again = r.rng.IntN(4) == 0 && at < roundLength
		later()
	}
}

// tell makes a request to the seeder beside the schedule.
func (r *Round) tell(f func()) { r.told.Go(f) }

// some picks one member or all.
func (r *Round) some(all []*Member) (members []*Member, who string) {
	if len(all) > 1 && r.rng.IntN(3) == 0 {
		return all, "everyone"
	}
	m := all[r.rng.IntN(len(all))]
	return []*Member{m}, m.Name
}

func (r *Round) victims() []*Member {
	if r.mortal != nil {
		return r.mortal
	}
	return r.w.Members()
}

// fault adds one of all that can go wrong.
func (r *Round) fault() {
	kinds := []func(){r.kill, r.kill, r.terminate, r.hang, r.storeFault, r.storeFault, r.storeFault, r.wireFault, r.wipe}
	if networkFaults() == nil {
		kinds = append(kinds, r.partition, r.partition)
	}
	kinds[r.rng.IntN(len(kinds))]()
}

func (r *Round) kill() {
	members, who := r.some(r.victims())
	r.lasting("kill "+who, func() { each(members, (*Member).Kill) }, func() { each(members, (*Member).Run) })
}

func (r *Round) terminate() {
	members, who := r.some(r.victims())
	r.lasting("terminate "+who, func() { each(members, (*Member).Terminate) }, func() { each(members, (*Member).Run) })
}

func (r *Round) hang() {
	members, who := r.some(r.w.Members())
	r.lasting("stop "+who, func() { each(members, (*Member).Stop) }, func() { each(members, (*Member).Continue) })
}

func (r *Round) wipe() {
	agents := r.victims()
	if agents[0] == r.w.Seeder {
		agents = agents[1:] // it knows what was there before its first start
	}
	m := agents[r.rng.IntN(len(agents))]
	r.lasting("lose the disk of "+m.Name, func() { m.Kill(); m.Wipe() }, m.Run)
}

// each does something to several members side by side.
func each(members []*Member, do func(*Member)) {
	var all sync.WaitGroup
	for _, m := range members {
		all.Go(func() { do(m) })
	}
	all.Wait()
}

// storeFaults are what can meet a call, by name.
var storeFaults = []struct {
	name  string
	short bool // is in the short run of TestStoreFaults
	when  func(Call) bool
	do    Fault
}{
	{"500", false, nil, InternalError},
	{"S3 500", false, Call.S3, InternalError},
	{"S3 503 SlowDown", false, Call.S3, SlowDown},
	{"S3 403 ExpiredToken", false, Call.S3, ExpiredToken},
	{"S3 writes denied", true, func(c Call) bool { return c.S3() && c.Writes() }, AccessDenied},
	{"reset", false, nil, Reset},
	{"S3 reset in the request's body", false, func(c Call) bool { return c.Op == "UploadPart" || c.Op == "PutObject" }, ResetInRequest},
	{"S3 reset in the request's body on the way on", false, func(c Call) bool { return c.Op == "UploadPart" }, ResetInStore},
	{"S3 reset in the answer's body", true, func(c Call) bool { return c.Op == "GetObject" }, ResetInAnswer},
	{"answers lost", true, nil, LoseAnswer},
	{"S3 answers lost", false, Call.S3, LoseAnswer},
	{"S3 writes' answers lost", true, func(c Call) bool { return c.S3() && c.Writes() }, LoseAnswer},
	{"hanging", true, nil, Hang(30 * time.Second)},
	{"hanging answers", false, nil, HangAfter(30 * time.Second)},
	{"S3 slow", false, Call.S3, Slow(2 << 20)},
	{"DynamoDB 500", false, Call.dynamo, InternalError},
	{"DynamoDB throughput exceeded", false, Call.dynamo, TooManyWrites},
	{"DynamoDB condition fails, nothing written", true, func(c Call) bool { return c.dynamo() && c.Writes() }, ConditionFails},
	{"DynamoDB written, answer lost", true, func(c Call) bool { return c.dynamo() && c.Writes() }, LoseAnswer},
	{"DynamoDB away", false, Call.dynamo, Reset},
}

func (c Call) dynamo() bool { return !c.S3() }

func (r *Round) storeFault() {
	members, who := r.some(r.w.Members())
	f := storeFaults[r.rng.IntN(len(storeFaults))]
	chance := []float64{0.05, 0.3, 0}[r.rng.IntN(3)]
	what := fmt.Sprintf("%s for %s", f.name, who)
	if chance > 0 {
		what += fmt.Sprintf(", %.0f %% of calls", 100*chance)
	}
	var rules []*Rule
	r.lasting(what, func() {
		for _, m := range members {
			rules = append(rules, m.Gate.Break(Rule{When: f.when, Chance: chance, Do: f.do}))
		}
	}, func() {
		for _, rule := range rules {
			rule.Heal()
		}
	})
}

func (r *Round) wireFault() {
	members, who := r.some(r.w.Members())
	t := []Toxic{Latency(60), Bandwidth(512), Blackhole, ResetPeer}[r.rng.IntN(4)]
	r.lasting("connections to the stores with "+t.Type+" for "+who,
		func() { each(members, func(m *Member) { m.Harm(t) }) },
		func() { each(members, func(m *Member) { m.Gate.wire.heal() }) })
}

func (r *Round) partition() {
	all := r.w.Members()
	a := all[r.rng.IntN(len(all))]
	b := all[r.rng.IntN(len(all))]
	switch {
	case r.rng.IntN(2) == 0 || a == b:
		cut := 1 + r.rng.IntN(len(all)-1)
		r.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		r.parted("part "+names(all[:cut])+" from "+names(all[cut:]), func() func() { return r.w.Part(all[:cut], all[cut:]) })
	case r.rng.IntN(2) == 0:
		r.parted(a.Name+" does not reach "+b.Name, func() func() { return r.w.Drop(a, b) })
	default:
		r.parted(a.Name+" and "+b.Name+" do not reach each other", func() func() { return r.w.Part([]*Member{a}, []*Member{b}) })
	}
}

func (r *Round) parted(what string, part func() (heal func())) {
	var heal func()
	r.lasting(what, func() { heal = part() }, func() { heal() })
}

func names(members []*Member) string {
	var out []string
	for _, m := range members {
		out = append(out, m.Name)
	}
	return strings.Join(out, "+")
}
