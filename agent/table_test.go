package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/signing"
)

// logLines is a log that hands on each line.
type logLines chan string

func (l logLines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default: // nobody reads so many
	}
	return len(p), nil
}

// TestAnotherTable: an agent whose arrivals the seeder does not see says so and is not
// ready; one that would lose arrivals of others does not go on.
func TestAnotherTable(t *testing.T) {
	const arn = `"TableArn":"arn:aws:dynamodb:us-east-1:123456789012:table/T"`
	for name, c := range map[string]struct {
		table, seeders, rows string
		ready, ends          bool
		advice               string
	}{
		"the same":                        {arn, "us-east-1/123456789012/T", "R", true, false, ""},
		"a seeder that does not say":      {arn, "", "", true, false, ""},
		"another region":                  {arn, "eu-west-1/123456789012/T", "R", false, false, "--table-region eu-west-1"},
		"a replica of an eventual table":  {arn + `,"Replicas":[{"RegionName":"eu-west-1"}]`, "eu-west-1/123456789012/T", "", false, true, ""},
		"a replica of a consistent table": {arn + `,"Replicas":[{"RegionName":"eu-west-1"}],"MultiRegionConsistency":"STRONG"`, "eu-west-1/123456789012/T", "", true, false, ""},
		"another table of arrivals":       {arn, "us-east-1/123456789012/T", "Q", false, false, "--arrivals-table Q"},
		"another table of arrivals alone": {arn, "", "Q", false, false, "--arrivals-table Q"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, b := openStores(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintf(w, `{"Table":{"TableStatus":"ACTIVE","KeySchema":[{"AttributeName":"fileKey","KeyType":"HASH"},{"AttributeName":"sourceBucket","KeyType":"RANGE"}],%s}}`, c.table)
			}))
			table := ledger.New(dynamodb.NewFromConfig(cfg), "T")
			if err := table.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			store, err := cache.Open(t.TempDir(), 1<<30, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { store.Close() })
			public, _, err := ed25519.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			seeder, err := gossip.New(gossip.Config{
				Meta: gossip.Meta{ID: "s", Role: gossip.Seeder, Table: c.seeders, ArrivalsTable: c.rows}, Listen: "127.0.0.1:0",
				Book: announce.NewBook(signing.TrustIn(signing.Ed25519Key(public)), nil), OnDocument: func(announce.Added) {}, Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			log := make(logLines, 1000)
			a, err := New(Config{
				Region: "region-a", Bucket: b, Ledger: table, Arrivals: arrivals.New(dynamodb.NewFromConfig(cfg), "arn:aws:dynamodb:us-east-1:123456789012:table/R"), Cache: store, Peers: listenAnywhere(t), HTTP: listenAnywhere(t),
				Gossip: gossip.Config{Meta: gossip.Meta{ID: "a"}, Listen: "127.0.0.1:0", Join: []string{seeder.Addr()}},
				Trust:  signing.TrustIn(signing.Ed25519Key(public)), Logger: slog.New(slog.NewTextHandler(log, nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			seeding, running := make(chan error, 1), make(chan error, 1)
			go func() { seeding <- seeder.Run(ctx) }()
			go func() { running <- a.Run(ctx) }()
			defer func() {
				cancel()
				<-seeding
				if err := <-running; err != nil {
					t.Error(err)
				}
			}()
			if c.ends {
				err := <-running
				if !errors.Is(err, ledger.ErrGlobalTable) || !strings.Contains(err.Error(), "--table-region eu-west-1") {
					t.Errorf("ended with %v", err)
				}
				running <- nil
				return
			}
			if !c.ready {
				for line := range log {
					if strings.Contains(line, "level=WARN") && strings.Contains(line, c.advice) {
						break
					}
				}
			}
			eventually(func() bool {
				return slices.ContainsFunc(a.gossip.Members(), func(m gossip.Member) bool { return m.Role == gossip.Seeder })
			})
			err = a.tableDiffers()
			if (err == nil) != c.ready || err != nil && a.ready() == nil {
				t.Errorf("ready: %v", err)
			}
			if got := a.gossip.Members()[0]; got.Table != "us-east-1/123456789012/T" || got.ArrivalsTable != "R" {
				t.Errorf("tells of tables %q and %q", got.Table, got.ArrivalsTable)
			}
		})
	}
}
