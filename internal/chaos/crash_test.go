//go:build linux

package chaos

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/processtest"
)

const (
	// several is a build of severalParts, 72 pieces.
	several      = 9 << 20
	severalParts = 2
	// link makes it take about three seconds.
	link = 3 << 20
	// pieceLength is that of all builds here.
	pieceLength = 128 << 10
)

// held waits until a gate keeps a call back.
func held(t *testing.T, calls <-chan Call) Call {
	t.Helper()
	select {
	case c := <-calls:
		return c
	case <-time.After(Timeout):
		t.Fatalf("no call met the fault within %s", Timeout)
		panic("unreachable")
	}
}

// stage brings a build to a point on its way; heal takes back what was done for
// that.
type stage struct {
	name  string
	short bool // is in the short run
	reach func(t *testing.T, w *World, key string) (v *Version, heal func())
}

func nothing() {}

// progressed waits until the first agent has verified a share of a build.
func progressed(percent int64) func(*testing.T, *World, string) (*Version, func()) {
	return func(t *testing.T, w *World, key string) (*Version, func()) {
		w.NeedsNetwork() // or all of it is there before anybody looks
		v := w.Put(key, several)
		id := w.Begun(v).ExecutionID
		at := func(percent int64) {
			w.Until(fmt.Sprintf("%d %% of %s", percent, key), func() bool {
				b := w.Agents[0].Build(id)
				return b != nil && b.VerifiedBytes*100 >= percent*several
			})
		}
		if percent <= 90 {
			at(percent)
			return v, nothing
		}
		at(85)
		w.link(link / 4) // so that the last percents can be told apart
		at(percent)
		return v, func() { w.link(link) }
	}
}

func (w *World) link(bytesPerSecond int64) {
	for _, m := range w.Members() {
		m.Link(bytesPerSecond)
	}
}

// holding keeps back one kind of call of a member.
func holding(who func(*World) *Member, when func(Call) bool, fault func(chan<- Call, <-chan struct{}) Fault) func(*testing.T, *World, string) (*Version, func()) {
	return func(t *testing.T, w *World, key string) (*Version, func()) {
		calls := make(chan Call, 1)
		rule := who(w).Gate.Break(Rule{When: when, Do: fault(calls, nil)})
		v := w.Put(key, several)
		held(t, calls)
		return v, rule.Heal
	}
}

func op(name string) func(Call) bool { return func(c Call) bool { return c.Op == name && c.OfBuild() } }

func theSeeder(w *World) *Member  { return w.Seeder }
func firstAgent(w *World) *Member { return w.Agents[0] }
func infohashTold(c Call) bool {
	return c.Op == "PutItem" && strings.Contains(string(c.Body), `"infohash"`)
}
func complete(c Call) bool { return c.Op == "CompleteMultipartUpload" && c.OfBuild() }
func landingBegun(c Call) bool {
	return (c.Op == "UpdateItem" || c.Op == "PutItem") && strings.Contains(string(c.Body), `"uploadId"`)
}
func aPart(c Call) bool    { return c.Op == "UploadPart" && c.OfBuild() }
func creating(c Call) bool { return c.Op == "CreateMultipartUpload" && c.OfBuild() }
func arriving(c Call) bool { return c.Arrival() }

var stages = []stage{
	{"pulling", true, func(t *testing.T, w *World, key string) (*Version, func()) {
		slow := w.Seeder.Gate.Break(Rule{When: op("GetObject"), Do: Slow(6 << 20)})
		v := w.Put(key, several)
		id := w.Begun(v).ExecutionID
		w.Until("the pull has begun", func() bool {
			e := w.Execution(id)
			return e != nil && e.PulledBytes > 0
		})
		return v, slow.Heal
	}},
	{"pulled, not recorded", true, holding(theSeeder, infohashTold, Hold)},
	{"1 %", false, progressed(1)},
	{"50 %", true, progressed(50)},
	{"99 %", false, progressed(99)},
	{"upload begun, not recorded", false, holding(firstAgent, landingBegun, Hold)},
	{"before Complete", true, holding(firstAgent, complete, Hold)},
	{"Complete's answer on its way", false, holding(firstAgent, complete, HoldAnswer)},
	{"before the record", true, holding(firstAgent, arriving, Hold)},
	{"the record's answer on its way", false, holding(firstAgent, arriving, HoldAnswer)},
}

// TestKill kills the seeder, one agent or all at every stage. Afterwards they go
// on where they were: what is on the disk is not downloaded again, what is in S3
// not uploaded again.
func TestKill(t *testing.T) {
	t.Parallel()
	for _, who := range []struct {
		name    string
		members func(*World) []*Member
	}{
		{"seeder", func(w *World) []*Member { return []*Member{w.Seeder} }},
		{"agent", func(w *World) []*Member { return w.Agents[:1] }},
		{"all", (*World).Members},
	} {
		t.Run(who.name, func(t *testing.T) {
			t.Parallel()
			w := Start(t, Options{Agents: []int{1, 1}, Link: link, Seed: 1})
			w.NeedsNetwork()
			for i, s := range stages {
				if !s.short && !*longFlag {
					continue
				}
				key := fmt.Sprintf("%d.zip", i)
				v, heal := s.reach(t, w, key)
				victims := who.members(w)
				before := time.Now()
				each(victims, (*Member).Kill)
				lacking := make(map[*Member]int64)
				for _, a := range w.Agents {
					if r := w.Record(key); r != nil && r.InfoHash != "" {
						lacking[a] = missing(a.Have(v), v)
					}
				}
				heal()
				each(victims, (*Member).Run)
				r := w.Completed(v)
				t.Logf("%s: completed %.1f s after the kill", s.name, seconds(before))
				if s.name != "upload begun, not recorded" || who.name == "seeder" {
					w.OnceUp(v) // an upload that nobody noted is begun afresh
				}
				for _, a := range victims {
					if a == w.Seeder {
						continue
					}
					b := a.Build(r.ExecutionID)
					if b == nil || lacking[a] == 0 {
						continue
					}
					t.Logf("%s: %s downloaded %d bytes after it was killed, %d were missing", s.name, a.Name, b.DownloadedBytes, lacking[a])
					if b.DownloadedBytes > lacking[a]+2*pieceLength {
						t.Errorf("%s: that is more than was missing and two pieces", s.name)
					}
				}
			}
			w.Settle()
		})
	}
}

// TestSeederGone has the seeder vanish for good once the agents hold the build
// between them: they need nobody else.
func TestSeederGone(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1, 1}, Link: link, Seed: 2})
	w.NeedsNetwork()
	for _, a := range w.Agents {
		a.Link(link / 4) // much is left to be traded when the seeder goes
	}
	v := w.Put("build.zip", several)
	r := w.Begun(v)
	w.Until("the agents hold all pieces between them", func() bool {
		if r.InfoHash == "" {
			r = w.Record(v.Key)
			return false
		}
		return missing(union(v, w.Agents), v) == 0
	})
	w.Seeder.Kill()
	for _, a := range w.Agents {
		t.Logf("%s lacks %d bytes", a.Name, missing(a.Have(v), v))
	}
	w.Until("the agents have recorded their arrivals", func() bool {
		r := w.Landings(v.Key)
		return r != nil && len(r.Unfinished()) == 0
	})
	w.OnceUp(v)
	w.Settle() // with the seeder back
	w.Completed(v)
}

// TestTerminate ends members in mid-work, with stores that do not answer.
func TestTerminate(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1}, Link: link, Seed: 3})
	for i, name := range []string{"before Complete", "50 %", "pulling"} {
		if i > 0 && !*longFlag {
			break
		}
		for _, s := range stages {
			if s.name != name {
				continue
			}
			v, heal := s.reach(t, w, fmt.Sprintf("%d.zip", i))
			for _, m := range w.Members() {
				m.Gate.Break(Rule{Do: Hang(Timeout)})
			}
			heal()
			began := time.Now()
			each(w.Members(), (*Member).Terminate)
			t.Logf("%s: ended in %.1f s", name, seconds(began))
			w.heal()
			each(w.Members(), (*Member).Run)
			w.Completed(v)
		}
	}
	w.Settle()
}

// TestTerminateTwice: whoever asks again does not want to wait.
func TestTerminateTwice(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1}, Seed: 4})
	for _, m := range w.Members() {
		m.Gate.Break(Rule{Do: Hang(Timeout)})
	}
	v := w.Put("build.zip", several)
	for _, m := range w.Members() {
		p := m.take()
		p.Signal(syscall.SIGTERM)
		began := time.Now()
		w.Until(m.Name+" ends at the second signal", func() bool {
			p.Signal(syscall.SIGTERM)
			select {
			case <-p.Ended:
				return true
			default:
				return false
			}
		})
		if took := time.Since(began); took > processtest.EndTimeout/2 {
			t.Errorf("%s took %s to end", m.Name, took)
		}
	}
	w.heal()
	each(w.Members(), (*Member).Run)
	w.Completed(v)
	w.Settle()
}

// seederName is the seeder's name in the membership, which grows with each start.
func (w *World) seederName() (name string) {
	w.t().Helper()
	w.Until("an agent knows the seeder", func() bool {
		s, err := w.Agents[0].AgentStatus(context.Background())
		if err != nil {
			return false
		}
		for _, m := range s.Members {
			if m.Role == "seeder" {
				name = max(name, m.Name)
			}
		}
		return name != ""
	})
	return name
}

// TestLateJoiners: an agent that comes when all has landed has nothing to do, and
// a region that was away all the time gets its build when it is back, even after
// it was given up.
func TestLateJoiners(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{2, 1, 1}, Down: []int{1, 2, 3}, ArrivalTimeout: "10s", Seed: 5})
	v := w.Put("build.zip", several)
	r := w.Ended(v, "FAILED")
	for _, b := range w.Buckets[1:] {
		if got := r.Results[b].Error; !strings.Contains(got, "no living member serves this bucket") {
			t.Errorf("%s failed because of %q", b, got)
		}
	}
	// The next seeder knows of the execution from the table only, and meets the
	// agents before it has read that.
	before := w.seederName()
	w.Seeder.Terminate()
	calls := make(chan Call, 1)
	scan := w.Seeder.Gate.Break(Rule{When: op("Scan"), Do: Hold(calls, nil)})
	w.Seeder.Run()
	held(t, calls)
	for _, a := range w.Agents[2:] {
		a.Run()
		w.Until(a.Name+" knows the new seeder", func() bool {
			s, err := a.AgentStatus(context.Background())
			return err == nil && slices.ContainsFunc(s.Members, func(m api.Member) bool {
				return m.Role == "seeder" && m.State == "alive" && m.Name > before
			})
		})
	}
	scan.Heal()
	w.Completed(v)
	w.Agents[1].Run()
	w.Settle()
	if b := w.Agents[1].Build(r.ExecutionID); b != nil && b.DownloadedBytes > 0 {
		t.Errorf("the agent that came last downloaded %d bytes", b.DownloadedBytes)
	}
	if err := w.Seeder.Ready(context.Background()); err != nil {
		t.Error(err)
	}
}
