//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/processtest"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/seeder/client"
)

const (
	globalBucket = "global-builds"
	buildKey     = "build.zip"
	cloudPort    = 4566
	seederPort   = 7070
	seederHTTP   = "127.0.0.1:7070"
	agentHTTP    = "127.0.0.1:7080"
	gossipPort   = 7946
	peerPort     = 6881
	cloudReady   = "S3 and DynamoDB are up"
	// cloudURL is each member's own.
	cloudURL = "http://127.0.0.1:4566"
)

func regionalBucket(m *member) string { return fmt.Sprintf("region-%d-builds", m.index) }

// cloudOf speaks to the cloud beside a member.
func cloudOf(m *member) aws.Config {
	cfg := processtest.AWS(cloudURL)
	cfg.HTTPClient = m.client()
	return cfg
}

// startClouds gives every region and the seeder an S3 of its own, the last one with
// the table as well, and starts the global bucket's.
func startClouds(ctx context.Context, r *trial) error {
	for _, m := range slices.Concat(r.regions, r.bad) {
		// In the world a region's S3 has other cores than its agent. Here eight
		// of them storing a part at the same moment would take those of the
		// seeder, whose link was seen to run dry each time.
		if err := startCloud(ctx, r, m, regionalBucket(m), "nice", "-n", "10"); err != nil {
			return err
		}
	}
	if r.store != r.seeder {
		if err := startCloud(ctx, r, r.seeder, ""); err != nil {
			return err
		}
	}
	return startStore(ctx, r)
}

// startStore starts the global bucket's S3, with the builds, unless a client is to
// bring them.
func startStore(ctx context.Context, r *trial) error {
	if err := startCloud(ctx, r, r.store, globalBucket); err != nil || r.client != nil {
		return err
	}
	source, err := bucket.Open(ctx, cloudOf(r.store), globalBucket, bucket.Options{})
	if err != nil {
		return err
	}
	put := func(b build) error {
		f, err := os.Open(b.file)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = source.Upload(ctx, b.key, f, b.size, bucket.Headers{ContentType: "application/zip"})
		return err
	}
	for _, b := range slices.Concat(r.builds, r.small) {
		if err := put(b); err != nil {
			return err
		}
	}
	return nil
}

// startCloud starts an S3 with a bucket, unless that is empty; before are words that
// go before the command's.
func startCloud(ctx context.Context, r *trial, m *member, name string, before ...string) error {
	p, err := r.start(m, "cloud", nil, append(before, filepath.Join(r.bins, "landfall-dev"),
		"cloud", "--listen", fmt.Sprintf("0.0.0.0:%d", cloudPort), "--dir", r.dataDir(m, "cloud"))...)
	if err != nil {
		return err
	}
	if err := p.WaitFor(ctx, cloudReady); err != nil || name == "" {
		return err
	}
	_, err = bucket.Create(ctx, cloudOf(m), name, "")
	return err
}

// landfall is the product: seeder, agents, clouds.
type landfall struct {
	tls                     bool // members speak it alone
	seederFlags, agentFlags []string
}

func (l landfall) name() string {
	if l.tls {
		return "landfall-tls"
	}
	return "landfall"
}

// certify has the members show certificates: it returns the flags of the seeder, and
// those of an agent.
func (l landfall) certify(r *trial) (seeder []string, agent func(*member) ([]string, error), err error) {
	agent = func(*member) ([]string, error) { return nil, nil }
	if !l.tls {
		return nil, agent, nil
	}
	of, err := newAuthority(r.dir)
	if err != nil {
		return nil, nil, err
	}
	flags := func(region, name string) ([]string, error) {
		dir, err := of.issue(region, name)
		return []string{"--tls", "require", "--identity", dir}, err
	}
	if seeder, err = flags("", "seeder"); err != nil {
		return nil, nil, err
	}
	for _, m := range r.regions {
		seeder = append(seeder, "--serves", fmt.Sprintf("region-%d=%s", m.index, regionalBucket(m)))
	}
	return seeder, func(m *member) ([]string, error) {
		return flags(fmt.Sprintf("region-%d", m.index), fmt.Sprintf("agent-%d", m.index))
	}, nil
}

func (l landfall) run(ctx context.Context, r *trial) error {
	if err := startClouds(ctx, r); err != nil {
		return err
	}
	table := command.OpenLedger(cloudOf(r.seeder), ledger.DefaultTable, "")
	if _, err := table.Create(ctx); err != nil {
		return err
	}
	keys := keyFiles{filepath.Join(r.dir, "seeder.key"), filepath.Join(r.dir, "gossip.key")}
	if _, err := signing.WriteKey(keys.signing); err != nil {
		return err
	}
	if err := gossip.WriteKey(keys.gossip); err != nil {
		return err
	}
	listen, open := seederHTTP, []string(nil)
	if r.client != nil {
		listen, open = netip.AddrPortFrom(r.seeder.addr, seederPort).String(), []string{"--insecure"}
	}
	secureSeeder, secure, err := l.certify(r)
	if err != nil {
		return err
	}
	seeder, err := r.start(r.seeder, "seeder", cloudEnv(r.store), slices.Concat([]string{"seeder", "run",
		"--bucket", globalBucket, "--signing-key", keys.signing, "--listen", listen}, open, memberFlags(r, r.seeder, keys), secureSeeder, l.seederFlags)...)
	if err != nil {
		return err
	}
	client := &client.Client{URL: "http://" + listen, HTTP: r.seeder.client()}
	if err := processtest.Until(ctx, "the seeder", func() (bool, error) { return client.Ready(ctx) == nil, seeder.Alive() }); err != nil {
		return err
	}
	agents := make(map[string]*process)
	startAgent := func(m *member) error {
		secured, err := secure(m)
		if err != nil {
			return err
		}
		p, err := r.start(m, "agent", cloudEnv(m), slices.Concat([]string{"agent", "run",
			"--region", fmt.Sprintf("region-%d", m.index), "--bucket", regionalBucket(m), "--trust", keys.signing + ".pub",
			"--listen", agentHTTP, "--join", netip.AddrPortFrom(r.seeder.addr, gossipPort).String()}, memberFlags(r, m, keys), secured, l.agentFlags)...)
		agents[regionalBucket(m)] = p
		return err
	}
	startAgents := func(members []*member) error {
		for _, m := range members {
			if err := startAgent(m); err != nil {
				return err
			}
		}
		return nil
	}
	early, late := r.cell.split(r.regions)
	if err := startAgents(early); err != nil {
		return err
	}
	var destinations []string
	for _, m := range slices.Concat(r.regions, r.bad) {
		destinations = append(destinations, regionalBucket(m))
	}
	for _, m := range r.bad {
		if err := startBad(r, m, keys.gossip); err != nil {
			return err
		}
	}
	for _, m := range early {
		if err := known(ctx, m, len(early)+len(r.bad)+1); err != nil {
			return err
		}
	}
	// publish runs the command on a member, as a user would.
	publish := func(m *member, name string, args ...string) error {
		p, err := r.start(m, name, nil, append([]string{"seeder", "publish", "--seeder", "http://" + listen, "--to", strings.Join(destinations, ","), "--no-wait"}, args...)...)
		r.publishing = append(r.publishing, p)
		return err
	}
	atHalf := []func() error{func() error { return startAgents(late) }}
	var urgent func(b build) error
	var urgentSince time.Time
	if r.cell.Urgent {
		flags, err := priorityFlags(r)
		if err != nil {
			return err
		}
		urgent = func(b build) error {
			urgentSince = time.Now()
			return publish(r.seeder, "publish-"+b.key, append(flags, "s3://"+globalBucket+"/"+b.key)...)
		}
		if err := urgent(r.small[0]); err != nil {
			return err
		}
		records, err := arrivals(ctx, r, table, r.small[:1], nil)
		if err != nil {
			return err
		}
		r.result.Alone, r.result.Priority = lastArrival(records[0]).Sub(urgentSince).Seconds(), flags != nil
		atHalf = append(atHalf, func() error { return urgent(r.small[1]) })
	}

	r.begin()
	if r.client != nil {
		if err := publish(r.client, "publish", "--key", buildKey, r.builds[0].file); err != nil {
			return err
		}
	} else {
		var group errgroup.Group
		for _, b := range r.builds {
			group.Go(func() error {
				_, err := client.Deploy(ctx, api.DeployRequest{SourceBucket: globalBucket, SourceKey: b.key, DestinationBuckets: destinations})
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
	}
	records, err := arrivals(ctx, r, table, r.builds, atHalf)
	if err != nil {
		return err
	}
	r.end()
	if r.cell.Urgent {
		small, err := arrivals(ctx, r, table, r.small[1:], nil)
		if err != nil {
			return err
		}
		r.result.Urgent = lastArrival(small[0]).Sub(urgentSince).Seconds()
	}
	for i, record := range records {
		if len(records) > 1 {
			r.result.Everywhere = append(r.result.Everywhere, lastArrival(record).Sub(r.started).Seconds())
		}
		execution, err := client.Execution(ctx, record.ExecutionID)
		if err != nil {
			return err
		}
		r.result.SeederPayload += execution.SentBytes
		for _, m := range r.regions {
			r.landed(m, record.Results[regionalBucket(m)].Timestamp)
			downloaded, err := logTime(agents[regionalBucket(m)].Log, "downloaded", r.builds[i].key)
			if err != nil {
				return err
			}
			r.downloaded(m, downloaded)
		}
	}
	for _, m := range r.regions {
		if _, err := logTime(agents[regionalBucket(m)].Log, "bad peer", ""); err == nil {
			r.result.Named++
		}
	}
	pulled, err := logTime(seeder.Log, "announced", buildKey)
	r.result.Announced = pulled.Sub(r.started).Seconds()
	return err
}

// priorityFlags are what makes a build go before others, nil where this version knows
// no such thing.
func priorityFlags(r *trial) ([]string, error) {
	help, err := output(filepath.Join(r.bins, "seeder"), "publish", "--help")
	if err != nil || !strings.Contains(help, "--priority") {
		return nil, err
	}
	return []string{"--priority", "high"}, nil
}

// arrivals waits until builds have landed everywhere and returns their items. What is
// to happen at half the bound is done meanwhile.
func arrivals(ctx context.Context, r *trial, table *ledger.Ledger, builds []build, atHalf []func() error) ([]*ledger.Record, error) {
	records := make([]*ledger.Record, len(builds))
	waitingFor := 0
	err := processtest.Until(ctx, "all arrivals", func() (bool, error) {
		if time.Since(r.started) > r.cell.bound()/2 {
			for _, f := range atHalf {
				if err := f(); err != nil {
					return false, err
				}
			}
			atHalf = nil
		}
		for ; waitingFor < len(builds); waitingFor++ {
			record, err := table.Get(ctx, ledger.Key{FileKey: builds[waitingFor].key, SourceBucket: globalBucket})
			switch {
			case errors.Is(err, ledger.ErrNotFound): // a file is still on its way up
				return false, r.failed()
			case err != nil:
				return false, err
			case len(record.Successful) < len(r.regions):
				return false, r.failed()
			}
			records[waitingFor] = record
		}
		return true, nil
	})
	return records, err
}

// lastArrival is when a build had landed everywhere.
func lastArrival(record *ledger.Record) (last time.Time) {
	for _, result := range record.Results {
		if result.Success && result.Timestamp.After(last) {
			last = result.Timestamp
		}
	}
	return last
}

// startBad starts the member that misbehaves.
func startBad(r *trial, m *member, gossipKey string) error {
	first := r.seeder.addr
	_, err := r.start(m, "bad", nil, "bench", "bad-peer",
		"--behaviour", r.cell.Bad, "--bucket", regionalBucket(m),
		"--peer-listen", netip.AddrPortFrom(m.addr, peerPort).String(),
		"--gossip-listen", netip.AddrPortFrom(m.addr, gossipPort).String(),
		"--gossip-key", gossipKey,
		"--join", netip.AddrPortFrom(first, gossipPort).String(),
		"--seeder", netip.AddrPortFrom(first, peerPort).String())
	return err
}

type keyFiles struct{ signing, gossip string }

func memberFlags(r *trial, m *member, keys keyFiles) []string {
	return []string{
		"--gossip-listen", netip.AddrPortFrom(m.addr, gossipPort).String(),
		"--peer-listen", netip.AddrPortFrom(m.addr, peerPort).String(),
		"--gossip-key", keys.gossip,
		"--data-dir", r.dataDir(m, "landfall"),
		"--log-format", "json",
	}
}

// cloudEnv points the SDK of a process at a member's S3 and the common table.
func cloudEnv(m *member) []string {
	return append(processtest.AWSEnv(fmt.Sprintf("http://%s:%d", m.addr, cloudPort)),
		fmt.Sprintf("AWS_ENDPOINT_URL_DYNAMODB=http://10.99.0.1:%d", cloudPort))
}

// known waits until the agent knows so many members.
func known(ctx context.Context, m *member, members int) error {
	client := &client.Client{URL: "http://" + agentHTTP, HTTP: m.client()}
	return processtest.Until(ctx, fmt.Sprintf("%s to know %d members", m.ns, members), func() (bool, error) {
		s, err := client.AgentStatus(ctx)
		return err == nil && len(s.Members) == members, nil
	})
}

// logTime is the time of the first line with a message about a build, or about any
// where key is empty, in a JSON log.
func logTime(file, message, key string) (time.Time, error) {
	log, err := os.ReadFile(file)
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(log)) {
		var entry struct {
			Time     time.Time
			Msg, Key string
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == message && (key == "" || entry.Key == key) {
			return entry.Time, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s: no line says %q", file, message)
}

// fanOut is the direct way: the source's object is copied to every regional S3
// from where it is, all at the same time.
type fanOut struct{}

func (fanOut) name() string { return "fan-out" }

func (fanOut) run(ctx context.Context, r *trial) error {
	if err := startClouds(ctx, r); err != nil {
		return err
	}
	early, late := r.cell.split(r.regions)
	copies := make(map[*member]*process)
	copyTo := func(m *member) (err error) {
		copies[m], err = r.start(r.seeder, fmt.Sprintf("copy-%d", m.index), cloudEnv(r.store), "bench", "copy", "--key", buildKey,
			"--from", globalBucket, "--to", regionalBucket(m), "--endpoint", fmt.Sprintf("http://%s:%d", m.addr, cloudPort))
		return err
	}
	r.begin()
	for _, m := range early {
		if err := copyTo(m); err != nil {
			return err
		}
	}
	left := slices.Clone(r.regions)
	err := processtest.Until(ctx, "all copies", func() (bool, error) {
		if len(late) > 0 && time.Since(r.started) > r.cell.bound()/2 {
			for _, m := range late {
				if err := copyTo(m); err != nil {
					return false, err
				}
			}
			late = nil
		}
		var err error
		left = slices.DeleteFunc(left, func(m *member) bool {
			p := copies[m]
			if p == nil || p.Alive() == nil {
				return false
			}
			if p.Err != nil {
				err = p.Alive()
			}
			r.downloaded(m, time.Now())
			r.landed(m, time.Now())
			return true
		})
		return len(left) == 0, err
	})
	r.end()
	return err
}
