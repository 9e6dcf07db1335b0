package ca

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

// TestClocksAnHourOff: a certificate that was made now is accepted where it is an hour earlier
// or later, and not where it is earlier than that.
func TestClocksAnHourOff(t *testing.T) {
	noon := time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)
	now := noon.Add(-72 * time.Hour)
	clock := func() time.Time { return now }
	d, err := Init(filepath.Join(t.TempDir(), "ca"), "prod", []string{"region-a"}, clock)
	if err != nil {
		t.Fatal(err)
	}
	now = noon
	_, agent, host := ids()
	var sources []*identity.Source
	for _, id := range []identity.ID{agent, host} {
		out := filepath.Join(t.TempDir(), id.Name)
		if _, err := d.Write(id, out); err != nil {
			t.Fatal(err)
		}
		s, err := identity.Open(identity.FilesIn(out), clock)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, s)
	}
	for off, want := range map[time.Duration]error{
		-time.Hour - time.Second: identity.ErrNotYet, -time.Hour: nil, 0: nil, time.Hour: nil,
	} {
		now = noon.Add(off)
		for i, s := range sources {
			if _, err := s.Verify(sources[1-i].Chain()); !errors.Is(err, want) {
				t.Errorf("%s by %s, %s later than it was made: %v, expected %v", sources[1-i].ID(), s.ID(), off, err, want)
			}
		}
	}
}
