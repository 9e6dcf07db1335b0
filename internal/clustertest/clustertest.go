// Package clustertest gives a test a seeder and agents of any number of regions,
// with real gossip, real peers and the embedded S3 and DynamoDB, in three lines:
//
//	cloud, stop := cloudtest.Start() // in TestMain
//	c := clustertest.Start(t, cloud, clustertest.Options{Regions: 2})
//	e := c.Publish("build.zip", content)
package clustertest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/api/apitest"
	"github.com/landfall-dist/landfall/internal/devcloud/cloudtest"
	"github.com/landfall-dist/landfall/internal/devcluster"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/tracing"
	"github.com/landfall-dist/landfall/seeder/client"
)

// Timeout bounds every wait; a test that runs into it has failed.
const Timeout = 60 * time.Second

// LandsWithin is an arrival time-out that a test can wait for, and that is long enough
// for an agent to land a small build, whatever else the machine does.
const LandsWithin = 5 * time.Second

// pollInterval is how often a wait looks.
const pollInterval = 20 * time.Millisecond

// Options change what Start sets up.
type Options struct {
	// Regions is the number of destinations, each with one agent but for the
	// last Unserved of them.
	Regions, Unserved int
	// AWS takes the place of the cloud's own settings; nil for those.
	AWS *aws.Config
	// NoServices: there are no tables of services.
	NoServices bool
	// Table is one that is there, for several clusters; empty for one of its own.
	Table string
	// SourceBuckets are those that POST /deploy may name beside the global bucket.
	SourceBuckets []string
	// FallbackAfter and MaxActive are the agents'; 0 for their defaults.
	FallbackAfter time.Duration
	MaxActive     int
	// CacheSize is each member's, in bytes; 0 for more than tests need.
	CacheSize int64
	// ArrivalTimeout is the seeder's; 0 for its default.
	ArrivalTimeout time.Duration
	// Before is called when the buckets exist and nothing runs yet.
	Before func(c *Cluster)
	// Unready: nobody waits until the seeder is ready.
	Unready bool
	// BuildSource is the seeder's.
	BuildSource string
	// Webhook is the URL that the seeder's notices go to; empty for none.
	Webhook string
	// OperatorToken is the members', and that of Cluster.Seeder and Agents; empty for none.
	OperatorToken operator.Token
	// Operators is the members' file of named operators; empty for none.
	Operators string
	// CloseReading has the members ask for a token from who only reads, too.
	CloseReading bool
	// Contract is what HTTP is held to; nil for one of the cluster's own.
	Contract *apitest.Contract
	// Uplink is the seeder's, in bytes/s; 0 for not known.
	Uplink int64
	// Limits are each member's.
	Limits api.LimitsChange
	// AllowWeakStore is all members'.
	AllowWeakStore bool
	// TLS says with which members it is spoken; empty for nobody.
	TLS identity.Mode
	// Fleet has every agent serve hosts.
	Fleet bool
	// Tracer draws the work of all members; nil draws nothing.
	Tracer *tracing.Tracer
	// Log gets what the members log, as JSON; nil for the test's own log.
	Log io.Writer
}

// Cluster is a running seeder with agents.
type Cluster struct {
	t     testing.TB
	cloud *cloudtest.Cloud
	cfg   devcluster.Config
	opts  Options
	// Global is the global bucket; Regions the regions' names.
	Global  string
	Regions []string
	// Seeder speaks to the seeder, Agents to the agents in order of regions. The HTTP
	// of each fails the test where something is not as docs/openapi.yaml says.
	Seeder *client.Client
	Agents []*client.Client
	// Ledger is the table.
	Ledger *ledger.Ledger

	cluster    *devcluster.Cluster
	stop       func()
	stopSeeder func()
}

// unique keeps the names of regions, and so of buckets, apart between tests.
var unique atomic.Int64

// Start runs a cluster until the test ends.
func Start(t testing.TB, cloud *cloudtest.Cloud, o Options) *Cluster {
	t.Helper()
	c := &Cluster{t: t, cloud: cloud, opts: o, Global: cloud.Bucket(t)}
	n := unique.Add(1)
	for i := range o.Regions {
		c.Regions = append(c.Regions, fmt.Sprintf("region-%c-%d", 'a'+i, n))
	}
	c.cfg = devcluster.Config{
		Dir:            t.TempDir(),
		AWS:            cloud.AWS,
		Global:         c.Global,
		Regions:        c.Regions,
		Unserved:       o.Unserved,
		SourceBuckets:  o.SourceBuckets,
		BuildSource:    o.BuildSource,
		Webhook:        o.Webhook,
		OperatorToken:  o.OperatorToken,
		Operators:      o.Operators,
		CloseReading:   o.CloseReading,
		Poll:           50 * time.Millisecond,
		ArrivalTimeout: o.ArrivalTimeout,
		FallbackAfter:  o.FallbackAfter,
		MaxActive:      o.MaxActive,
		CacheSize:      o.CacheSize,
		Uplink:         o.Uplink,
		AllowWeakStore: o.AllowWeakStore,
		Limits:         o.Limits,
		TLS:            o.TLS,
		Fleet:          o.Fleet,
		Tracer:         o.Tracer,
		Version:        "test",
		Logger:         slog.New(slog.NewTextHandler(newLogTo(t), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	if c.cfg.Table = o.Table; o.Table == "" {
		c.cfg.Table = cloud.Table(t)
	}
	c.cfg.Arrivals = c.cfg.Table + "-arrivals"
	if !o.NoServices {
		c.cfg.Services = services.Names{Services: c.cfg.Table + "-services", Deployments: c.cfg.Table + "-deployments", Logs: c.cfg.Table + "-logs"}
	}
	if c.opts.Contract == nil {
		c.opts.Contract = apitest.Load(t)
	}
	if o.Log != nil {
		c.cfg.Logger = slog.New(slog.NewJSONHandler(o.Log, nil))
	}
	if o.AWS != nil {
		c.cfg.AWS = *o.AWS
	}
	if err := devcluster.Init(t.Context(), c.cfg); err != nil {
		t.Fatal(err)
	}
	c.Ledger = devcluster.Ledger(c.cfg)
	if o.Before != nil {
		o.Before(c)
	}
	c.start()
	t.Cleanup(func() { c.Stop() })
	return c
}

// logTo writes log lines to the test's own log until the test is over: memberlist
// does not wait for its last probes.
type logTo struct {
	t    testing.TB
	mu   sync.Mutex
	over bool
}

func newLogTo(t testing.TB) *logTo {
	l := &logTo{t: t}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.over = true
	})
	return l
}

func (l *logTo) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.t.Log(string(bytes.TrimSpace(p)))
	}
	return len(p), nil
}

func (c *Cluster) start() {
	c.t.Helper()
	cluster, err := devcluster.New(c.t.Context(), c.cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.cluster = cluster
	c.stopSeeder = c.background("seeder", cluster.Detach())
	stopAgents := c.background("cluster", cluster.Run)
	c.stop = sync.OnceFunc(func() {
		var wg sync.WaitGroup
		wg.Go(c.stopSeeder)
		wg.Go(stopAgents)
		wg.Wait()
	})
	c.Seeder = c.client("seeder", cluster.SeederURL)
	c.Agents = nil
	c.Until("everyone is ready", func() bool { return c.opts.Unready || c.Seeder.Ready(c.t.Context()) == nil })
	for _, u := range cluster.AgentURLs {
		a := c.client("agent", u)
		c.Agents = append(c.Agents, a)
		c.Until("everyone is ready", func() bool { return a.Ready(c.t.Context()) == nil })
	}
}

func (c *Cluster) client(role, url string) *client.Client {
	return &client.Client{URL: url, Token: string(c.opts.OperatorToken), HTTP: &http.Client{Transport: c.opts.Contract.Transport(c.t, role, http.DefaultTransport)}}
}

// background runs something until stop is called.
func (c *Cluster) background(name string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("%s ended: %v", name, err)
		}
	})
}

// StopSeeder ends the seeder alone.
func (c *Cluster) StopSeeder() { c.stopSeeder() }

// StartSeeder starts the seeder that StopSeeder has ended again, on the same data.
func (c *Cluster) StartSeeder() {
	c.t.Helper()
	run, err := c.cluster.NewSeeder(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	c.stopSeeder = c.background("seeder", run)
	c.Seeder = c.client("seeder", c.cluster.SeederURL)
	c.Until("the seeder is ready", func() bool { return c.Seeder.Ready(c.t.Context()) == nil })
}

// Dir is where the agent of an id keeps its data.
func (c *Cluster) Dir(id string) string { return filepath.Join(c.cfg.Dir, id) }

// Stop ends all members; what they keep on disk stays.
func (c *Cluster) Stop() { c.stop() }

// Restart ends all members and starts them again on the same data.
func (c *Cluster) Restart() {
	c.t.Helper()
	c.Stop()
	c.start()
}

// AddAgent runs one more agent of the i-th region until the test ends or stop is
// called. The same id again finds the same data.
func (c *Cluster) AddAgent(i int, id string) (agent *client.Client, stop func()) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	url, done, err := c.cluster.RunAgent(ctx, c.Regions[i], id)
	if err != nil {
		cancel()
		c.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("agent %s ended: %v", id, err)
		}
	})
	c.t.Cleanup(stop)
	return c.client("agent", url), stop
}

// Until waits for a condition.
func (c *Cluster) Until(what string, condition func() bool) {
	c.t.Helper()
	deadline := time.After(Timeout)
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			c.t.Fatalf("not in %s: %s", Timeout, what)
		}
	}
}

// Bucket is the i-th region's.
func (c *Cluster) Bucket(i int) string { return devcluster.BucketOf(c.Regions[i]) }

// FleetURL is where the i-th region's agent has its hosts' streams, with Options.Fleet.
func (c *Cluster) FleetURL(i int) string { return c.cluster.FleetURLs[c.Regions[i]][0] }

// Key is the public key that the seeder signs with.
func (c *Cluster) Key() string { return c.cluster.Key.Public().String() }

// Put stores an object in the global bucket, as any S3 client would.
func (c *Cluster) Put(key string, content []byte, metadata map[string]string) {
	c.t.Helper()
	_, err := c.cloud.S3.PutObject(c.t.Context(), &s3.PutObjectInput{
		Bucket: aws.String(c.Global), Key: aws.String(key), Body: bytes.NewReader(content),
		ContentType: aws.String("application/zip"), Metadata: metadata,
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// Deploy puts an object under a key that the watcher leaves alone, or any other,
// and asks for its distribution.
func (c *Cluster) Deploy(key string, to ...string) *api.DeployAnswer {
	c.t.Helper()
	answer, err := c.Seeder.Deploy(c.t.Context(), api.DeployRequest{SourceBucket: c.Global, SourceKey: key, DestinationBuckets: to})
	if err != nil {
		c.t.Fatal(err)
	}
	return answer
}

// Publish uploads content through the seeder and waits until it has arrived
// everywhere.
func (c *Cluster) Publish(key string, content []byte) *api.Execution {
	c.t.Helper()
	if _, err := c.Seeder.Upload(c.t.Context(), key, bytes.NewReader(content), int64(len(content)), "application/zip"); err != nil {
		c.t.Fatal(err)
	}
	return c.Await(c.Deploy(key).ExecutionID, "COMPLETED")
}

// Await waits until an execution has a status.
func (c *Cluster) Await(id, status string) *api.Execution {
	c.t.Helper()
	var e *api.Execution
	c.Until(fmt.Sprintf("execution %s is %s", id, status), func() bool {
		var err error
		e, err = c.Seeder.Execution(c.t.Context(), id)
		return err == nil && e.Status == status
	})
	return e
}

// Object reads an object from a bucket; nil when there is none.
func (c *Cluster) Object(bucket, key string) ([]byte, *s3.GetObjectOutput) {
	c.t.Helper()
	out, err := c.cloud.S3.GetObject(c.t.Context(), &s3.GetObjectInput{Bucket: aws.String(bucket), Key: aws.String(key)})
	if err != nil {
		return nil, nil
	}
	defer out.Body.Close()
	b, err := io.ReadAll(out.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return b, out
}

// Holds fails the test unless every region holds exactly content under key.
func (c *Cluster) Holds(key string, content []byte) {
	c.t.Helper()
	for i := range c.Regions {
		if got, _ := c.Object(c.Bucket(i), key); got == nil || !bytes.Equal(got, content) {
			c.t.Errorf("%s in %s: %d bytes, not the %d published", key, c.Bucket(i), len(got), len(content))
		}
	}
}

// Record reads the item of a key.
func (c *Cluster) Record(key string) *ledger.Record {
	c.t.Helper()
	r, err := c.Ledger.Get(c.t.Context(), ledger.Key{FileKey: key, SourceBucket: c.Global})
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}
