//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/seeder/client"
)

const (
	globalBucket = "global-builds"
	buildKey     = "build.zip"
	cloudPort    = 4566
	seederHTTP   = "127.0.0.1:7070"
	agentHTTP    = "127.0.0.1:7080"
	gossipPort   = 7946
	peerPort     = 6881
	// cloudURL is each member's own.
	cloudURL = "http://127.0.0.1:4566"
)

func regionalBucket(m *member) string { return fmt.Sprintf("region-%d-builds", m.index) }

// cloudOf speaks to the cloud beside a member.
func cloudOf(m *member) aws.Config {
	return aws.Config{
		Region:       "us-east-1",
		BaseEndpoint: aws.String(cloudURL),
		Credentials:  credentials.NewStaticCredentialsProvider("test", "test", ""),
		HTTPClient:   m.client(),
	}
}

// startClouds gives every member an S3 of its own; the first one's has the table
// as well, and the build.
func startClouds(ctx context.Context, r *trial) error {
	for _, m := range r.net.members {
		args := []string{filepath.Join(r.bins, "landfall-dev"), "cloud", "--listen", fmt.Sprintf("0.0.0.0:%d", cloudPort), "--dir", r.dataDir(m, "cloud")}
		if m.index > 0 {
			// In the world a region's S3 has other cores than its agent. Here eight
			// of them storing a part at the same moment would take those of the
			// seeder, whose link was seen to run dry each time.
			args = append([]string{"nice", "-n", "10"}, args...)
		}
		p, err := r.start(m, "cloud", nil, args...)
		if err != nil {
			return err
		}
		if err := p.waitFor(ctx, "S3 and DynamoDB are up"); err != nil {
			return err
		}
		name := regionalBucket(m)
		if m.index == 0 {
			name = globalBucket
		}
		if _, err := bucket.Create(ctx, cloudOf(m), name, ""); err != nil {
			return err
		}
	}
	source, err := bucket.Open(ctx, cloudOf(r.net.members[0]), globalBucket, bucket.Options{})
	if err != nil {
		return err
	}
	f, err := os.Open(r.file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = source.Upload(ctx, buildKey, f, r.cell.size(), bucket.Headers{ContentType: "application/zip"})
	return err
}

// landfall is the product: seeder, agents, clouds.
type landfall struct{ seederFlags, agentFlags []string }

func (landfall) name() string { return "landfall" }

func (l landfall) run(ctx context.Context, r *trial) error {
	if err := startClouds(ctx, r); err != nil {
		return err
	}
	first := r.net.members[0]
	table := command.OpenLedger(cloudOf(first), ledger.DefaultTable, "")
	if _, err := table.Create(ctx); err != nil {
		return err
	}
	keys := keyFiles{filepath.Join(r.dir, "seeder.key"), filepath.Join(r.dir, "gossip.key")}
	if _, err := announce.WriteSigningKey(keys.signing); err != nil {
		return err
	}
	if err := gossip.WriteKey(keys.gossip); err != nil {
		return err
	}
	seeder, err := r.start(first, "seeder", cloudEnv(first), append(append([]string{"seeder", "run",
		"--bucket", globalBucket, "--signing-key", keys.signing, "--listen", seederHTTP}, memberFlags(r, first, keys)...), l.seederFlags...)...)
	if err != nil {
		return err
	}
	client := &client.Client{URL: "http://" + seederHTTP, HTTP: first.client()}
	if err := until(ctx, "the seeder", func() (bool, error) { return client.Ready(ctx) == nil, seeder.alive() }); err != nil {
		return err
	}
	agents := make(map[string]*process)
	startAgent := func(m *member) error {
		p, err := r.start(m, "agent", cloudEnv(m), append(append([]string{"agent", "run",
			"--region", fmt.Sprintf("region-%d", m.index), "--bucket", regionalBucket(m), "--trust", keys.signing + ".pub",
			"--listen", agentHTTP, "--join", netip.AddrPortFrom(first.addr, gossipPort).String()}, memberFlags(r, m, keys)...), l.agentFlags...)...)
		agents[regionalBucket(m)] = p
		return err
	}
	good := r.net.members[1 : r.cell.Members+1]
	early, late := r.cell.split(good)
	for _, m := range early {
		if err := startAgent(m); err != nil {
			return err
		}
	}
	destinations := make([]string, 0, len(r.net.members)-1)
	for _, m := range r.net.members[1:] {
		destinations = append(destinations, regionalBucket(m))
	}
	bad := r.net.members[r.cell.Members+1:]
	for _, m := range bad {
		if err := startBad(r, m, keys.gossip); err != nil {
			return err
		}
	}
	for _, m := range early {
		if err := known(ctx, m, len(early)+len(bad)+1); err != nil {
			return err
		}
	}

	r.begin()
	answer, err := client.Deploy(ctx, api.DeployRequest{SourceBucket: globalBucket, SourceKey: buildKey, DestinationBuckets: destinations})
	if err != nil {
		return err
	}
	key := ledger.Key{FileKey: buildKey, SourceBucket: globalBucket}
	var record *ledger.Record
	err = until(ctx, "all arrivals", func() (bool, error) {
		if len(late) > 0 && time.Since(r.started) > r.cell.bound()/2 {
			for _, m := range late {
				if err := startAgent(m); err != nil {
					return false, err
				}
			}
			late = nil
		}
		record, err = table.Get(ctx, key)
		return err == nil && len(record.Successful) == len(good), err
	})
	if err != nil {
		return err
	}
	r.end()
	for _, m := range good {
		r.landed(m, record.Results[regionalBucket(m)].Timestamp)
		downloaded, err := logTime(agents[regionalBucket(m)].log, "downloaded")
		if err != nil {
			return err
		}
		r.downloaded(m, downloaded)
		if _, err := logTime(agents[regionalBucket(m)].log, "bad peer"); err == nil {
			r.result.Named++
		}
	}
	execution, err := client.Execution(ctx, answer.ExecutionID)
	if err != nil {
		return err
	}
	r.result.SeederPayload = execution.SentBytes
	pulled, err := logTime(seeder.log, "announced")
	r.result.Announced = pulled.Sub(r.started).Seconds()
	return err
}

// startBad starts the member that misbehaves.
func startBad(r *trial, m *member, gossipKey string) error {
	first := r.net.members[0].addr
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

// cloudEnv points the SDK of a member's process at its own S3 and the common
// table.
func cloudEnv(m *member) []string {
	return []string{
		"AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_ENDPOINT_URL_S3=" + cloudURL,
		fmt.Sprintf("AWS_ENDPOINT_URL_DYNAMODB=http://10.99.0.1:%d", cloudPort),
	}
}

// known waits until the agent knows so many members.
func known(ctx context.Context, m *member, members int) error {
	client := &client.Client{URL: "http://" + agentHTTP, HTTP: m.client()}
	return until(ctx, fmt.Sprintf("%s to know %d members", m.ns, members), func() (bool, error) {
		s, err := client.AgentStatus(ctx)
		return err == nil && len(s.Members) == members, nil
	})
}

// logTime is the time of the first line with a message in a JSON log.
func logTime(file, message string) (time.Time, error) {
	log, err := os.ReadFile(file)
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(log)) {
		var entry struct {
			Time time.Time
			Msg  string
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == message {
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
	first := r.net.members[0]
	early, late := r.cell.split(r.net.members[1:])
	copies := make(map[*member]*process)
	copyTo := func(m *member) (err error) {
		copies[m], err = r.start(first, fmt.Sprintf("copy-%d", m.index), cloudEnv(first), "bench", "copy", "--key", buildKey,
			"--from", globalBucket, "--to", regionalBucket(m), "--endpoint", fmt.Sprintf("http://%s:%d", m.addr, cloudPort))
		return err
	}
	r.begin()
	for _, m := range early {
		if err := copyTo(m); err != nil {
			return err
		}
	}
	left := slices.Clone(r.net.members[1:])
	err := until(ctx, "all copies", func() (bool, error) {
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
			if p == nil || p.alive() == nil {
				return false
			}
			if p.err != nil {
				err = p.alive()
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
