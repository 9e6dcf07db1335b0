//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/processtest"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/seeder/client"
)

const (
	// Timeout bounds every wait but that for the end of all executions.
	Timeout = 90 * time.Second
	// listingInterval is the seeder's --poll: its 5 s are for buckets that cost
	// money.
	listingInterval = "200ms"
)

// Options change what Start sets up.
type Options struct {
	// Agents is the number of agents of each region, in its order.
	Agents []int
	// Link bounds what each member sends to the others' swarms in bytes/s; 0
	// for no bound.
	Link int64
	// CacheSize and ArrivalTimeout are the members' flags; empty for 2GiB and
	// 10m.
	CacheSize, ArrivalTimeout string
	// Unjoined leaves the seeder without a --join: after a restart it waits
	// until the agents find it.
	Unjoined bool
	// AgentFlags are added to every agent's.
	AgentFlags []string
	// Certificates gives every member one, and a gossip key, and has them ask for others':
	// --tls require.
	Certificates bool
	// Fleet has all agents serve hosts, which AddHosts makes.
	Fleet bool
	// Programs is the directory of the programs that run until Upgrade; empty for those of this
	// tree.
	Programs string
	// HostClock is how far the clock of a host is ahead, by the index of its region's bucket and
	// its number in the world, with programs of processtest.BuildWithClock; nil for none.
	HostClock func(bucket, number int) time.Duration
	// OperatorToken makes the seeder ask for a token, which its Member then has.
	OperatorToken bool
	// Seed makes all that is random.
	Seed uint64
	// Down names agents, by index, that are not started.
	Down []int
	// Before is called when everything is made and nothing runs.
	Before func(*World)
}

// World is a cluster of real processes.
type World struct {
	// Global is the global bucket, Buckets the regional ones.
	Global  string
	Buckets []string
	Seeder  *Member
	Agents  []*Member
	// S3, Ledger and Arrivals reach the stores without a Gate.
	S3       *s3.Client
	Ledger   *ledger.Ledger
	Arrivals *arrivals.Table
	Services *services.Tables // nil without Options.Fleet

	owner   testing.TB                 // the test that began the world
	running atomic.Pointer[testing.TB] // the one that uses it now: owner, or a subtest
	n       int
	dir     string
	options Options
	aws     aws.Config
	dynamo  *dynamodb.Client
	rng     *rand.Rand
	dropped []func()
	ending  atomic.Bool
	watch   *watch
	fleet   *fleetWatch        // nil without Options.Fleet
	idle    map[*Member]Levels // at the start

	mu     sync.Mutex
	builds map[string]*history
	hosts  []*Host
	// deployed is when the first deployment of a key was asked for.
	deployed map[string]time.Time

	authority *ca.Dir // nil without Certificates
}

// Start runs a world until the test ends.
func Start(t testing.TB, o Options) *World {
	t.Helper()
	if err := host.start(); err != nil {
		t.Fatal(err)
	}
	w := &World{
		owner: t, n: host.next(), options: o,
		rng:      rand.New(rand.NewPCG(o.Seed, 1)),
		builds:   make(map[string]*history),
		deployed: make(map[string]time.Time),
		idle:     make(map[*Member]Levels),
	}
	w.running.Store(&t)
	w.dir = filepath.Join(host.dir, fmt.Sprintf("%d-%s", w.n, strings.NewReplacer("/", "-", ",", "", ":", "").Replace(t.Name())))
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.end)
	w.openStores()
	key := w.key()
	w.addMembers(key)
	if o.Before != nil {
		o.Before(w)
	}
	for i, m := range w.Members() {
		if i == 0 || !slices.Contains(o.Down, i-1) {
			m.Run()
		}
	}
	w.ready()
	for _, m := range w.Members() {
		if m.running() {
			l, err := m.Levels()
			if err != nil {
				t.Fatal(err)
			}
			w.idle[m] = l
		}
	}
	w.watch = startWatch(w)
	if o.Fleet {
		w.watchFleet()
	}
	return w
}

// t is the test that a failure or a skip now ends: never the parent of the one that
// runs.
func (w *World) t() testing.TB { return *w.running.Load() }

// Sub runs a part of a test as a subtest, one after the other.
func (w *World) Sub(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	before := w.running.Load()
	t.Run(name, func(t *testing.T) {
		tb := testing.TB(t)
		w.running.Store(&tb)
		defer w.running.Store(before)
		f(t)
	})
}

// openStores makes the world's buckets and table.
func (w *World) openStores() {
	w.t().Helper()
	w.aws = processtest.AWS("http://" + cloudAddr)
	w.aws.HTTPClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32, IdleConnTimeout: time.Minute}}
	w.S3 = s3.NewFromConfig(w.aws, func(o *s3.Options) {
		o.UsePathStyle = true
		o.DisableLogOutputChecksumValidationSkipped = true // of composite checksums
	})
	w.dynamo = dynamodb.NewFromConfig(w.aws)
	w.Ledger = ledger.New(w.dynamo, fmt.Sprintf("Tracking-%d", w.n))
	w.Arrivals = arrivals.New(w.dynamo, fmt.Sprintf("Arrivals-%d", w.n))
	w.Global = fmt.Sprintf("global-%d", w.n)
	for i := range w.options.Agents {
		w.Buckets = append(w.Buckets, fmt.Sprintf("region-%c-%d", 'a'+i, w.n))
	}
	w.Until("the stores are up", func() bool {
		res, err := http.Get("http://" + cloudAddr + "/healthz")
		if err != nil {
			return false
		}
		res.Body.Close()
		return true
	})
	for _, name := range append([]string{w.Global}, w.Buckets...) {
		if _, err := bucket.Create(context.Background(), w.aws, name, ""); err != nil {
			w.t().Fatal(err)
		}
	}
	if _, err := w.Ledger.Create(context.Background()); err != nil {
		w.t().Fatal(err)
	}
	if _, err := w.Arrivals.Create(context.Background()); err != nil {
		w.t().Fatal(err)
	}
}

// key makes the key pair that signs announcements.
func (w *World) key() string {
	w.t().Helper()
	file := filepath.Join(w.dir, "seeder.key")
	if _, err := signing.WriteKey(file); err != nil {
		w.t().Fatal(err)
	}
	return file
}

// address is a loopback address of this world: of a member in net 1, of what
// stands before the stores for it in nets 2 and 3.
func (w *World) address(net, uid int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(w.n), byte(net), byte(uid - w.firstUser() + 1)})
}

func (w *World) firstUser() int { return firstUser + w.n*usersPerWorld }

func (w *World) addMembers(key string) {
	w.t().Helper()
	w.Seeder = w.member("seeder", "", "seeder is up")
	w.Seeder.args = append(w.Seeder.args, "--bucket", w.Global, "--destinations", strings.Join(w.Buckets, ","),
		"--signing-key", key, "--poll", listingInterval, "--arrival-timeout", or(w.options.ArrivalTimeout, "10m"))
	if w.Seeder.uid != 0 {
		if err := os.Chown(key, w.Seeder.uid, w.Seeder.uid); err != nil {
			w.t().Fatal(err)
		}
	}
	if w.options.OperatorToken {
		w.addToken()
	}
	for i, n := range w.options.Agents {
		for range n {
			w.Agents = append(w.Agents, w.member("agent", w.Buckets[i], "agent is up"))
		}
	}
	if !w.options.Unjoined {
		w.Seeder.args = append(w.Seeder.args, "--join", w.Agents[0].addr.String()+":"+gossipPort)
	}
	// Through the seeder, and through the first agent while that is away.
	join := []string{w.Seeder.addr.String() + ":" + gossipPort}
	for _, a := range w.Agents {
		a.args = append(a.args, "--region", regionOf(a.Bucket), "--bucket", a.Bucket, "--trust", key+".pub", "--join", strings.Join(join, ","))
		a.args = append(a.args, w.options.AgentFlags...)
		if len(join) == 1 {
			join = append(join, a.addr.String()+":"+gossipPort)
		}
	}
	if w.options.Certificates {
		w.certify()
	}
	if w.options.Fleet {
		w.addFleet()
	}
}

// addToken makes the seeder's operator token.
func (w *World) addToken() {
	w.t().Helper()
	file := filepath.Join(w.dir, "operator.token")
	err := operator.WriteToken(file)
	if err == nil && w.Seeder.uid != 0 {
		err = os.Chown(file, w.Seeder.uid, w.Seeder.uid)
	}
	token, readErr := operator.ReadToken(file)
	if err = errors.Join(err, readErr); err != nil {
		w.t().Fatal(err)
	}
	w.Seeder.Token = string(token)
	w.Seeder.args = append(w.Seeder.args, "--operator-token", file)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// member makes a member that does not run yet.
func (w *World) member(role, bucket, upLine string) *Member {
	w.t().Helper()
	number := len(w.Agents)
	m := &Member{w: w, Name: role, Bucket: bucket, upLine: upLine, uid: w.firstUser()}
	if role == "agent" {
		m.Name = fmt.Sprintf("agent-%d", number)
		m.uid += number + 1
	}
	m.addr = w.address(1, m.uid)
	m.Dir = filepath.Join(w.dir, m.Name)
	url := "http://" + m.addr.String() + ":" + httpPort
	m.Client = &client.Client{URL: url, HTTP: &http.Client{Timeout: askTimeout, Transport: &http.Transport{DisableKeepAlives: true}}}
	m.args = []string{w.program(role), "run", "--listen", m.addr.String() + ":" + httpPort,
		"--gossip-listen", m.addr.String() + ":" + gossipPort, "--peer-listen", m.addr.String() + ":" + peerPort,
		"--data-dir", m.Dir, "--cache-size", or(w.options.CacheSize, "2GiB"), "--table", w.Ledger.Table(), "--arrivals-table", w.Arrivals.Name()}
	err := os.Mkdir(m.Dir, 0o755)
	uid := m.uid
	if networkFaults() != nil {
		m.uid = 0
		// All dial from the one address that loopback has.
		m.args = append(m.args, "--allow-peers", "127.0.0.1/32")
	} else if err == nil {
		if err = os.Chown(m.Dir, m.uid, m.uid); err == nil {
			err = route(m.uid, m.addr)
		}
	}
	if err == nil {
		m.stores = w.address(2, uid).String() + ":4566"
		m.Gate, err = newGate(m.Name, m.stores, w.address(3, uid).String()+":4566",
			filepath.Join(w.dir, m.Name+".calls"), w.options.Seed+uint64(number))
	}
	if err != nil {
		w.t().Fatal(err)
	}
	if m.uid != 0 && w.options.Link > 0 {
		m.Link(w.options.Link)
	}
	return m
}

// program is the file of a program that runs at first.
func (w *World) program(name string) string {
	if w.options.Programs != "" {
		return filepath.Join(w.options.Programs, name)
	}
	return host.bin(name)
}

// Members are the seeder and the agents.
func (w *World) Members() []*Member { return append([]*Member{w.Seeder}, w.Agents...) }

// ready waits until every member that runs says so and knows all others.
func (w *World) ready() {
	w.t().Helper()
	var running []*Member
	for _, m := range w.Members() {
		if m.running() {
			running = append(running, m)
		}
	}
	for _, m := range running {
		w.Until(m.Name+" is ready", func() bool { return m.Ready(context.Background()) == nil })
		if m == w.Seeder {
			continue
		}
		w.Until(m.Name+" knows everyone", func() bool {
			s, err := m.AgentStatus(context.Background())
			alive := 0
			if err == nil {
				for _, member := range s.Members {
					if member.State == "alive" {
						alive++
					}
				}
			}
			return alive == len(running)
		})
	}
}

// Until waits for a condition.
func (w *World) Until(what string, condition func() bool) {
	w.t().Helper()
	if !w.within(Timeout, condition) {
		w.t().Fatalf("not in %s: %s", Timeout, what)
	}
}

// within waits for a condition; false when the time is up.
func (w *World) within(d time.Duration, condition func() bool) bool {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return processtest.Until(ctx, "", func() (bool, error) { return condition(), nil }) == nil || condition()
}

// end stops the world, and says what its members have logged where the test has
// failed.
func (w *World) end() {
	w.ending.Store(true)
	w.heal()
	if w.watch != nil {
		w.watch.end()
	}
	var all sync.WaitGroup
	for _, m := range w.Members() {
		if m != nil {
			all.Go(m.Terminate)
		}
	}
	for _, h := range w.hosts {
		all.Go(func() { h.end(syscall.SIGTERM) })
	}
	all.Wait()
	for _, h := range w.hosts {
		if b, err := os.ReadFile(h.log()); err == nil {
			w.suspicious(h.Name, string(b))
			if w.t().Failed() {
				w.t().Logf("%s, last lines of %s:\n%s", h.Name, h.log(), lastLines(string(b)))
			}
		}
	}
	for _, m := range w.Members() {
		if m == nil || m.Gate == nil {
			continue
		}
		m.Gate.close()
		if b, err := os.ReadFile(m.log()); err == nil {
			w.suspicious(m.Name, string(b))
			if w.t().Failed() {
				w.t().Logf("%s, last lines of %s:\n%s", m.Name, m.log(), lastLines(string(b)))
			}
		}
	}
	if w.t().Failed() {
		host.failed()
		return
	}
	if err := os.RemoveAll(w.dir); err != nil {
		w.t().Error(err)
	}
}

// suspicious looks for what no log must ever say.
func (w *World) suspicious(name, log string) {
	for line := range strings.Lines(log) {
		for _, word := range []string{"panic:", "DATA RACE", "fatal error:", "level=ERROR msg=panic", "concurrent map"} {
			if strings.Contains(line, word) {
				w.t().Errorf("%s logged %q", name, strings.TrimSpace(line))
			}
		}
	}
}

// heal ends every fault of stores and network, and wakes whoever hangs.
func (w *World) heal() {
	w.Join()
	for _, m := range w.Members() {
		if m != nil && m.Gate != nil {
			m.Gate.Heal()
			m.Continue()
		}
	}
	for _, h := range w.Hosts() {
		h.Continue()
	}
}
