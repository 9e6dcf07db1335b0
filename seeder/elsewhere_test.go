package seeder

import (
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// TestAgentRecordsElsewhere: an agent that writes rows which this seeder does not read is
// told of with what to give it; one that does not say, or of a seeder that reads none, is not.
func TestAgentRecordsElsewhere(t *testing.T) {
	long := strings.Repeat("r", 200)
	for _, c := range []struct{ reads, records, want string }{
		{"R", "R", ""}, {"R", "", ""}, {"", "R", ""},
		{"R", "Q", "agent a records arrivals in rows of table Q, this seeder reads table R; give agent a --arrivals-table R"},
		{"arn:aws:dynamodb:us-east-1:123456789012:table/R", "R", ""},
		{long, arrivals.New(nil, long).Told(), ""},
		{long, arrivals.New(nil, long+"x").Told(), "--arrivals-table rrr"},
	} {
		s := &Seeder{cfg: Config{Ledger: ledger.New(nil, "T")}}
		if c.reads != "" {
			s.cfg.Arrivals = arrivals.New(nil, c.reads)
		}
		err := s.recordsElsewhere(gossip.Member{Meta: gossip.Meta{ID: "a", ArrivalsTable: c.records}})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("reads %.20q, records %.20q: %v", c.reads, c.records, err)
		}
	}
	if told := arrivals.New(nil, long).Told(); len(told) != 64 {
		t.Errorf("a name of %d bytes is told", len(told))
	}
}
