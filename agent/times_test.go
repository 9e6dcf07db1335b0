package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
)

func TestTook(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	none := time.Time{}
	for name, c := range map[string]struct {
		times times
		want  []int // seconds, now is at 100
	}{
		"waits for its turn": {times{}, []int{100, 0, 0, 0}},
		"in the swarm":       {times{at(1)}, []int{1, 99, 0, 0}},
		"landing":            {times{at(1), at(5)}, []int{1, 4, 95, 0}},
		"not recorded yet":   {times{at(1), at(5), at(6)}, []int{1, 4, 1, 94}},
		"recorded":           {times{at(1), at(5), at(6), at(8)}, []int{1, 4, 1, 2}},
		"was there already":  {times{at(1), none, none, at(2)}, []int{1, 0, 0, 1}},
		"another has landed": {times{at(1), at(5), none, at(9)}, []int{1, 4, 0, 4}},
	} {
		var got []int
		for _, d := range c.times.took(start, at(100)) {
			got = append(got, int(d.Seconds()))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// A stage is reached once, and none after a later one.
func TestReach(t *testing.T) {
	var got times
	for i, s := range []stage{turn, turn, recorded, whole, recorded} {
		got.reach(s, time.Unix(int64(i+1), 0))
	}
	if want := (times{turn: time.Unix(1, 0), recorded: time.Unix(3, 0)}); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

// From the complete object until the arrival is in the table, that is said.
func TestRecordingIsSaid(t *testing.T) {
	s := &shown{ann: &announce.Announcement{Size: 1}, state: api.StateLanding}
	if s.view(nil).Recording {
		t.Error("recording before the object is complete")
	}
	s.times.reach(complete, time.Now())
	if !s.view(nil).Recording {
		t.Error("complete in the bucket, and not recording")
	}
	s.times.reach(recorded, time.Now())
	if s.view(nil).Recording {
		t.Error("recording for ever")
	}
}
