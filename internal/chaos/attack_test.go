//go:build linux

package chaos

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/attack"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/processtest"
)

const (
	attackedSize = 64 << 20
	// attackedLink makes the build take seconds, so that the attack has time to do harm.
	attackedLink = 16 << 20
	// attackedMemory bounds what a member ever has resident under attack, in bytes, and
	// attackedLog what it logs, in bytes a minute.
	attackedMemory, attackedLog = 256 << 20, 1 << 20
	// attackedLeast is the shortest time by which what is logged is divided: what is said once,
	// as a build or an attack begins, is no rate.
	attackedLeast = 10 * time.Second
	// attackedSlack is by how much an attack may delay a build with -chaos.long, where nothing
	// else works on the same cores but the attacker, attackedSlackBeside without, where other
	// tests do. `go test -v` prints what it was.
	attackedSlack, attackedSlackBeside = 1.3, 5
	// attackedWait is how much longer a build may take beside who delays it.
	attackedWait = 4 * arrivals.Patience
)

// TestAttacks has four regions land a build beside each attacker: it arrives, hardly later
// than without, and no member's memory or log grows without a bound. A build that took longer
// is repeated: it is the median of three that counts. Without -chaos.long it is beside those
// that have most to tell. The attacker is a process of its own, which has what the members leave
// of the machine.
func TestAttacks(t *testing.T) {
	t.Parallel()
	for name, certificates := range map[string]bool{"without TLS": false, "with TLS": true} {
		t.Run(name, func(t *testing.T) {
			if !*longFlag { // else one at a time: times are compared
				t.Parallel()
			}
			testAttacks(t, certificates)
		})
	}
}

func testAttacks(t *testing.T, certificates bool) {
	w := Start(t, Options{Agents: []int{1, 1, 1, 1}, Link: attackedLink, Seed: 17, Certificates: certificates})
	target := w.target()
	w.measure("warm.zip")
	before := w.measure("before.zip")
	t.Logf("without an attacker: %s", before)
	for _, a := range attack.Attackers() {
		if a.NeedsTLS && !certificates || !a.Often && !*longFlag {
			continue
		}
		w.Sub(t, a.Name, func(t *testing.T) {
			late, inTime := 0, 0
			for try := 0; try == 0 || late == 1 && inTime < 2; try++ {
				if *longFlag || try > 0 { // the machine is not the same all the time
					before = w.measure(fmt.Sprintf("before %s %d.zip", a.Name, try))
				}
				now := w.beside(a, target, try)
				t.Logf("%.2f times as long as without, %.2f times the CPU: %s", float64(now.took)/float64(before.took), float64(now.cpu)/float64(before.cpu), now)
				if now.took <= allowed(a, before.took, certificates) {
					inTime++
				} else {
					late++
				}
				if perMinute := float64(now.logged) / max(now.took, attackedLeast).Minutes(); now.resident > attackedMemory || perMinute > attackedLog {
					t.Errorf("%d bytes resident, %.0f logged a minute", now.resident, perMinute)
				}
			}
			if late > 1 {
				t.Errorf("builds took longer than %s, the last one without an attacker %s", allowed(a, before.took, certificates), before.took)
			}
		})
	}
}

// allowed is how long a build may take beside an attacker.
func allowed(a attack.Attacker, before time.Duration, certificates bool) time.Duration {
	slack := float64(attackedSlackBeside)
	if *longFlag {
		slack = attackedSlack
	}
	most := time.Duration(slack * float64(before))
	if a.Delays == attack.Everywhere || a.Delays == attack.WithoutTLS && !certificates {
		most += attackedWait
	}
	return most
}

// beside distributes a build beside an attacker.
func (w *World) beside(a attack.Attacker, target attack.Target, try int) measured {
	w.t().Helper()
	var role *attackersRole
	if a.Writes != nil {
		role = w.role(a.Writes(target))
		target.Stores = role.url
	}
	stop := w.attack(a, target)
	now := w.measure(fmt.Sprintf("beside %s %d.zip", a.Name, try))
	if a.Fills && try == 0 {
		w.Agents[1].Terminate()
		w.Agents[1].Run()
		w.ready()
		w.t().Logf("with an agent that has just started: %s", w.measure("started beside "+a.Name+".zip"))
	}
	stop()
	role.check(w.t())
	return now
}

// measured is what a build has cost.
type measured struct {
	took time.Duration
	// cpu is what all members have used, resident and logged what one of them had at most.
	cpu              time.Duration
	resident, logged int64
}

func (m measured) String() string {
	return fmt.Sprintf("%.1f s, %.1f s of the members' CPU, %d MiB resident at most, %d kB logged", m.took.Seconds(), m.cpu.Seconds(), m.resident>>20, m.logged/1000)
}

// measure distributes a build.
func (w *World) measure(key string) (m measured) {
	w.t().Helper()
	logged := make(map[*Member]int64)
	for _, member := range w.Members() {
		m.cpu -= member.process.CPU()
		logged[member] = lengthOf(w.t(), member.log())
	}
	begun := time.Now()
	w.Completed(w.Put(key, attackedSize))
	m.took = time.Since(begun)
	for _, member := range w.Members() {
		m.cpu += member.process.CPU()
		m.resident = max(m.resident, member.process.Memory("VmHWM"))
		m.logged = max(m.logged, lengthOf(w.t(), member.log())-logged[member])
	}
	return m
}

// attackersRole is the way to the stores of an agent that was taken over.
type attackersRole struct {
	gate   *Gate
	denied *Rule
	url    string
}

// role lets through what an agent of a bucket may do (docs/security.md): it reads the tables,
// and writes its own bucket's rows of arrivals.
func (w *World) role(bucket string) *attackersRole {
	w.t().Helper()
	uid := w.firstUser() + len(w.Members())
	at := w.address(2, uid).String() + ":4566"
	g, err := newGate("attacker", at, w.address(3, uid).String()+":4566", filepath.Join(w.dir, "attacker.calls"), w.options.Seed)
	if err != nil {
		w.t().Fatal(err)
	}
	table, own := fmt.Appendf(nil, "%q:%q", "TableName", w.Arrivals.Name()), fmt.Appendf(nil, "%q:{%q:%q}", "destinationBucket", "S", bucket)
	denied := g.Break(Rule{Do: AccessDenied, When: func(c Call) bool {
		switch c.Op {
		case "DescribeTable", "GetItem", "BatchGetItem":
			return false
		case "PutItem":
			return !bytes.Contains(c.Body, table) || !bytes.Contains(c.Body, own)
		}
		return true
	}})
	return &attackersRole{g, denied, "http://" + at}
}

// check ends the role of an attacker that is over, and has the test fail when it has tried
// nothing.
func (r *attackersRole) check(t testing.TB) {
	t.Helper()
	if r == nil {
		return
	}
	wrote, denied := r.gate.Ops("PutItem"), r.denied.Met()
	r.gate.close()
	t.Logf("%d rows written, %d calls denied", wrote, denied)
	if wrote == 0 || denied == 0 {
		t.Error("the attacker has done nothing")
	}
}

// target is what an attacker knows of a world, and has.
func (w *World) target() attack.Target {
	w.t().Helper()
	target := attack.Target{Listen: "127.0.0.1", Bucket: w.Buckets[0], SourceBucket: w.Global, ForeignBucket: foreignBucket}
	for _, m := range w.Members() {
		ip := m.addr.String()
		target.Gossip = append(target.Gossip, ip+":"+gossipPort)
		target.Peers = append(target.Peers, ip+":"+peerPort)
		target.HTTP = append(target.HTTP, ip+":"+httpPort)
	}
	if w.authority == nil {
		return target
	}
	var err error
	if target.Keys, err = gossip.ReadKeys(filepath.Join(w.dir, "gossip.key")); err != nil {
		w.t().Fatal(err)
	}
	inside := identity.ID{Cluster: cluster, Kind: identity.Agent, Region: regionOf(w.Buckets[0]), Name: "taken"}
	target.TLS = true
	target.Foreign = w.identity(identity.ID{Cluster: cluster, Kind: identity.Agent, Region: foreignRegion, Name: "taken"})
	target.Inside = w.identity(inside)
	target.ArrivalsTable, target.Buckets = w.Arrivals.Name(), w.Buckets
	target.Stranger = w.identityOf("other-ca", inside)
	target.OtherSeeder = w.identityOf("another-ca", identity.ID{Cluster: "another", Kind: identity.Seeder, Name: "another"})
	target.OtherAgent = w.identityOf("another-ca", identity.ID{Cluster: "another", Kind: identity.Agent, Region: inside.Region, Name: "another"})
	return target
}

// identityOf makes a certificate of another authority, and returns its directory.
func (w *World) identityOf(authority string, id identity.ID) string {
	w.t().Helper()
	dir := filepath.Join(w.dir, authority)
	open := func(dir string) (*ca.Dir, error) { return ca.Init(dir, id.Cluster, nil, nil) }
	if _, err := os.Stat(dir); err == nil {
		open = func(dir string) (*ca.Dir, error) { return ca.Open(dir, nil) }
	}
	of, err := open(dir)
	own := filepath.Join(w.dir, authority+"-"+string(id.Kind))
	if err == nil {
		_, err = of.Write(id, own)
	}
	if err != nil {
		w.t().Fatal(err)
	}
	return own
}

// attack runs an attacker until the function it returns is called.
func (w *World) attack(a attack.Attacker, target attack.Target) (stop func()) {
	w.t().Helper()
	// It gets what the others leave: an attacker has a machine of its own.
	p, err := processtest.Start(processtest.Config{
		Name: a.Name, Log: filepath.Join(w.dir, "attacker.log"), Dir: w.dir,
		Args: []string{"nice", "-n", "19", os.Args[0]}, Env: append(os.Environ(), attackerEnv+"=1"),
		OnEnd: func(p *processtest.Process) { w.owner.Errorf("the attacker ended by itself: %s", p.Said()) },
	})
	if err == nil {
		err = attack.Order(p.Stdin, a.Name, target)
	}
	if err != nil {
		w.t().Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	told := make(chan struct{})
	go func() {
		defer close(told)
		var last attack.Now
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for ; ctx.Err() == nil; <-ticker.C {
			if now := w.now(ctx); !reflect.DeepEqual(now, last) {
				last = now
				if attack.Tell(p.Stdin, now) != nil {
					return
				}
			}
		}
	}()
	return func() {
		cancel()
		<-told
		w.t().Logf("the attacker has used %.1f s of CPU", p.CPU().Seconds())
		p.End(9)
	}
}

// now is what an attacker can know of what is under way.
func (w *World) now(ctx context.Context) (now attack.Now) {
	if s, err := w.Agents[0].AgentStatus(ctx); err == nil {
		for _, m := range s.Members {
			now.Names = append(now.Names, m.Name)
		}
	}
	_ = w.Ledger.Scan(ctx, ledger.Scan{Record: func(r *ledger.Record) {
		if r.Status != ledger.InProgress {
			return
		}
		now.Executions = append(now.Executions, r.ExecutionID)
		now.Builds = append(now.Builds, attack.Build{Key: r.Key, ExecutionID: r.ExecutionID, Size: r.Size, SHA256: r.SHA256})
		if infohash, err := manifest.ParseInfoHash(r.InfoHash); err == nil {
			now.InfoHash = infohash[:]
		}
	}})
	return now
}

func lengthOf(t testing.TB, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
