package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/devcluster"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/release"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/terminal"
	"github.com/landfall-dist/landfall/internal/tracing"
	"github.com/landfall-dist/landfall/seeder/client"
)

const (
	globalBucket = "global-builds"
	awsRegion    = "us-east-1"
	accessKey    = "test"
	secretKey    = "test"

	seederHTTP   = "127.0.0.1:7070"
	seederGossip = "127.0.0.1:7946"
	seederPeers  = "127.0.0.1:6881"
	// firstAgentPort is the HTTP port of the first region's agent.
	firstAgentPort = 7081

	// thirdRegion is the one for which the demo has a line to paste, and a certificate.
	thirdRegion = "region-c"

	// firstHostPort is the HTTP port of the first region's first host, maxHosts bounds the
	// hosts of a region: all are in this process.
	firstHostPort, maxHosts = 7201, 100
	// firstStreamPort is where the first region's agent has its hosts' streams.
	firstStreamPort = 7091

	// demoCommit is the commit that POST /builds finds in the demo.
	demoCommit = "abc123"
	// followInterval is how often the bars are brought up to date.
	followInterval = 200 * time.Millisecond
	// readyInterval and readyTimeout bound the wait for the members.
	readyInterval, readyTimeout = 50 * time.Millisecond, 30 * time.Second
)

// show is the demo in front of a running cluster.
type show struct {
	out     io.Writer
	dir     string
	log     string
	cloud   string
	regions []string
	publish string
	exit    bool
	// hosts are in each region, and run services.
	hosts    int
	services []string
	limits   api.LimitsChange
	tls      identity.Mode
	logger   *slog.Logger
	tracer   *tracing.Tracer
}

func (s *show) config() devcluster.Config {
	source := url.URL{Scheme: "file", Path: filepath.Join(s.dir, "builds")}
	return devcluster.Config{
		Dir: s.dir,
		AWS: aws.Config{
			Region:       awsRegion,
			BaseEndpoint: aws.String(s.cloud),
			Credentials:  credentials.NewStaticCredentialsProvider(accessKey, secretKey, ""),
		},
		Global:       globalBucket,
		Table:        ledger.DefaultTable,
		Arrivals:     arrivals.DefaultTable,
		Services:     services.DefaultNames(),
		Regions:      s.regions,
		TLS:          s.tls,
		Expected:     []string{thirdRegion},
		SeederHTTP:   seederHTTP,
		SeederGossip: seederGossip,
		SeederPeers:  seederPeers,
		AgentHTTP:    func(i int) string { return fmt.Sprintf("127.0.0.1:%d", firstAgentPort+i) },
		Hosts: devcluster.Hosts{
			PerRegion: s.hosts, Services: s.services, Hooks: release.Config{Unpack: true},
			Streams: func(i int) string { return fmt.Sprintf("127.0.0.1:%d", firstStreamPort+i) },
			HTTP:    func(i int) string { return fmt.Sprintf("127.0.0.1:%d", firstHostPort+i) },
		},
		BuildSource: source.String(),
		Limits:      s.limits,
		Tracer:      s.tracer,
		Version:     command.Version(),
		Logger:      s.logger,
	}
}

func (s *show) open(ctx context.Context) (*devcluster.Cluster, error) {
	fmt.Fprintf(s.out, "Landfall on this machine: %s\n", strings.Join(s.regions, ", "))
	cfg := s.config()
	if err := devcluster.Init(ctx, cfg); err != nil {
		return nil, err
	}
	if err := s.placeBuild(); err != nil {
		return nil, err
	}
	return devcluster.New(ctx, cfg)
}

// placeBuild puts what is published where POST /builds finds it as a commit's.
func (s *show) placeBuild() error {
	dir := filepath.Join(s.dir, "builds")
	if err := os.MkdirAll(dir, 0o700); err != nil || s.publish == "" {
		return err
	}
	to := filepath.Join(dir, demoCommit)
	if _, err := os.Stat(to); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	from, err := os.Open(s.publish)
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// perform publishes, shows the arrival and the addresses, and waits.
func (s *show) perform(ctx context.Context, c *devcluster.Cluster) error {
	if err := s.waitReady(ctx, append([]string{c.SeederURL}, c.AgentURLs...)); err != nil {
		return err
	}
	var failed error
	if s.publish != "" {
		e, err := s.distribute(ctx, &client.Client{URL: c.SeederURL})
		if err != nil {
			return err
		}
		if e.Status != string(ledger.Completed) {
			failed = fmt.Errorf("%s did not arrive everywhere; the log is %s", e.Key, s.log)
		}
		if s.exit {
			if failed != nil {
				return failed
			}
			return errArrived
		}
	}
	s.explain(c)
	<-ctx.Done()
	fmt.Fprintln(s.out, "\nstopped; the data stay in", s.dir)
	return nil
}

func (s *show) waitReady(ctx context.Context, urls []string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	for _, u := range urls {
		client := &client.Client{URL: u}
		for client.Ready(ctx) != nil {
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s is not ready: %w; the log is %s", u, ctx.Err(), s.log)
			case <-ticker.C:
			}
		}
	}
	return nil
}

func (s *show) distribute(ctx context.Context, client *client.Client) (*api.Execution, error) {
	file, err := os.Open(s.publish)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	key := filepath.Base(s.publish)
	fmt.Fprintf(s.out, "publishing %s (%s)\n\n", command.Plain(key), command.FormatSize(info.Size()))
	up, err := client.Upload(ctx, key, file, info.Size(), "application/zip")
	if err != nil {
		return nil, err
	}
	answer, err := client.Deploy(ctx, api.DeployRequest{SourceBucket: up.Bucket, SourceKey: up.Key})
	if err != nil {
		return nil, err
	}
	e, err := terminal.Follow(ctx, s.out, terminal.Live, followInterval, func(ctx context.Context) (*api.Execution, error) {
		return client.Execution(ctx, answer.ExecutionID)
	})
	if errors.Is(err, syscall.EPIPE) {
		err = nil // nobody looks any more; the members go on
	}
	return e, err
}

// explain prints what can be looked at and tried from another terminal.
func (s *show) explain(c *devcluster.Cluster) {
	p := func(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }
	p("\nLook at it:")
	p("  seeder     %s/", c.SeederURL)
	for i, u := range c.AgentURLs {
		p("  %-10s %s/", s.regions[i], u)
	}
	p("\nIn another terminal, first:")
	p("  export AWS_ENDPOINT_URL=%s AWS_REGION=%s AWS_DEFAULT_REGION=%s", s.cloud, awsRegion, awsRegion)
	p("  export AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s", accessKey, secretKey)
	p("then for example:")
	build := "FILE"
	if s.publish != "" {
		build = command.Quote(s.publish)
	}
	p("  bin/seeder publish %s", build)
	p("  bin/seeder list")
	p("  bin/agent status")
	s.explainHosts()
	p("\nAdd a third region:")
	bucket := devcluster.BucketOf(thirdRegion)
	p("  bin/seeder init --bucket %s --destinations %s && bin/agent run --region %s --bucket %s --join %s --trust %s%s --listen 127.0.0.1:%d --data-dir %s",
		globalBucket, bucket, thirdRegion, bucket, c.SeederGossip, command.Quote(filepath.Join(s.dir, "seeder.key.pub")),
		s.certified(thirdRegion), firstAgentPort+len(s.regions), command.Quote(filepath.Join(s.dir, devcluster.AgentOf(thirdRegion))))
	p("and send it a build:")
	p("  bin/seeder publish --to %s --key for-region-c.zip %s", bucket, build)
	p("(without --to builds go on to the regions that this was started with: --regions)")
	p("\nData: %s, log: %s", s.dir, s.log)
	p("Ctrl-C stops all of it.")
}

// explainHosts prints how the hosts are told to run a build; nothing without them.
func (s *show) explainHosts() {
	if s.hosts == 0 {
		return
	}
	p := func(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }
	key, first := "KEY", devcluster.HostOf(s.regions[0], 1)
	if s.publish != "" {
		key = command.Quote(filepath.Base(s.publish))
	}
	service := s.services[0]
	p("\n%d hosts in each region run %s; have them run a build, look, and have them go back:", s.hosts, strings.Join(s.services, ", "))
	p("  bin/seeder deploy %s %s --wave 20%%,100%% --bake 2s", service, key)
	p("  bin/seeder service %s", service)
	p("  bin/seeder hosts %s", service)
	p("  ls -l %s", command.Quote(filepath.Join(s.config().HostDir(first), service, "current")+"/"))
	p("  curl http://127.0.0.1:%d/status", firstHostPort)
	p("  bin/seeder rollback %s", service)
}

// certified are the flags with which a region's agent shows its certificate.
func (s *show) certified(region string) string {
	if s.tls == identity.Off {
		return ""
	}
	return fmt.Sprintf(" --tls %s --identity %s", s.tls, command.Quote(s.config().IdentityOf(devcluster.AgentOf(region))))
}
