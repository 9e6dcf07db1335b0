package command

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/landfall-dist/landfall/internal/awserr"
)

// TestStartWithoutTheTable: a seeder that has found its tables starts while they do not answer,
// and knows where they are; one that has not, or is told of another table, ends, and so does
// an agent, and who is told that a table is not there.
func TestStartWithoutTheTable(t *testing.T) {
	const (
		there = iota
		away
		unknown
		noArrivals
	)
	var state atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		arrivals := strings.Contains(string(body), `"Rows"`)
		switch s := state.Load(); {
		case s == away:
			w.WriteHeader(http.StatusServiceUnavailable)
		case s == unknown, s == noArrivals && arrivals:
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"__type":"com.amazonaws.dynamodb.v20120810#ResourceNotFoundException","message":"not found"}`) //nolint:errcheck // the client's error shows it
		default:
			name, keys := "Copies", [2]string{"fileKey", "sourceBucket"}
			if arrivals {
				name, keys = "Rows", [2]string{"destinationBucket", "id"}
			}
			fmt.Fprintf(w, `{"Table":{"TableStatus":"ACTIVE","TableArn":"arn:aws:dynamodb:eu-west-1:123456789012:table/%s","Replicas":[{"RegionName":"us-east-1"}],
				"KeySchema":[{"AttributeName":%q,"KeyType":"HASH"},{"AttributeName":%q,"KeyType":"RANGE"}]}}`, name, keys[0], keys[1])
		}
	}))
	defer server.Close()
	cfg := aws.Config{
		Region: "eu-west-1", BaseEndpoint: &server.URL, Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, Retryer: func() aws.Retryer { return aws.NopRetryer{} },
	}
	dir := t.TempDir()
	start := func(kind, table string) (m *Member, said string, err, errArrivals error) {
		var log lines
		m = &Member{DataDir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil)), Ledger: OpenLedger(cfg, table, ""), Arrivals: OpenArrivals(cfg, "Rows", "")}
		if err = m.findTable(t.Context(), kind); err == nil && kind == "seeder" {
			errArrivals = m.FindArrivals(t.Context())
		}
		return m, log.String(), err, errArrivals
	}

	state.Store(away)
	if _, _, err, _ := start("seeder", "Copies"); !awserr.Unreached(err) {
		t.Errorf("never found, and away: %v", err)
	}
	state.Store(there)
	found, said, err, errArrivals := start("seeder", "Copies")
	if err != nil || errArrivals != nil || said != "" {
		t.Fatalf("%v, %v, %q", err, errArrivals, said)
	}
	state.Store(away)
	again, said, err, errArrivals := start("seeder", "Copies")
	if err != nil || errArrivals != nil || strings.Count(said, "WITHOUT THE TABLE") != 2 {
		t.Errorf("found, and away: %v, %v, %q", err, errArrivals, said)
	}
	if got, want := again.Ledger.Place(), found.Ledger.Place(); got.String() != "eu-west-1/123456789012/Copies" || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the table is at %v, and was at %v", got, want)
	}
	if _, _, err, _ := start("seeder", "Others"); !awserr.Unreached(err) {
		t.Errorf("another table, and away: %v", err)
	}
	if _, _, err, _ := start("agent", "Copies"); !awserr.Unreached(err) {
		t.Errorf("an agent: %v", err)
	}
	state.Store(unknown)
	if _, _, err, _ := start("seeder", "Copies"); err == nil || awserr.Unreached(err) {
		t.Errorf("there is no table: %v", err)
	}
	// It runs without a table of arrivals, and the next one needs none.
	state.Store(noArrivals)
	if _, _, err, errArrivals := start("seeder", "Copies"); err != nil || errArrivals == nil {
		t.Errorf("no table of arrivals: %v, %v", err, errArrivals)
	}
	state.Store(away)
	if _, _, err, errArrivals := start("seeder", "Copies"); err != nil || !awserr.Unreached(errArrivals) {
		t.Errorf("no table of arrivals is known, and it is away: %v, %v", err, errArrivals)
	}
	if err := os.WriteFile(filepath.Join(dir, knownTablesFile), []byte(`{"table": `+strings.Repeat(" ", maxKnownTables)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, said, err, _ := start("seeder", "Copies"); !awserr.Unreached(err) || !strings.Contains(said, "not known any more") {
		t.Errorf("a file too long, and away: %v, %q", err, said)
	}
}
