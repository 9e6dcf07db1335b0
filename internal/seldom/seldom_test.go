package seldom

import (
	"strconv"
	"testing"
	"time"
)

func TestLines(t *testing.T) {
	now := time.Unix(0, 0)
	l := New(time.Minute, 8)
	l.now = func() time.Time { return now }
	for i, want := range []bool{true, false, false} {
		if _, due := l.Pass("a"); due != want {
			t.Errorf("line %d: %v", i, due)
		}
	}
	if _, due := l.Pass("b"); !due {
		t.Error("another cause is kept back")
	}
	now = now.Add(time.Minute)
	if omitted, due := l.Pass("a"); !due || omitted != 2 {
		t.Errorf("after the interval: %d, %v", omitted, due)
	}
	if omitted, due := l.Pass("a"); due || omitted != 0 {
		t.Errorf("at once again: %d, %v", omitted, due)
	}
}

// However many causes there are, so many lines pass in an interval and so many are
// remembered.
func TestCausesAreBounded(t *testing.T) {
	now := time.Unix(0, 0)
	const maxCauses = 8
	l := New(time.Minute, maxCauses)
	l.now = func() time.Time { return now }
	for range 2 {
		passed := 0
		for i := range 10 * maxCauses {
			if _, due := l.Pass(strconv.Itoa(i)); due {
				passed++
			}
		}
		if passed > maxCauses+1 || passed < maxCauses || len(l.causes) > maxCauses+1 {
			t.Errorf("%d lines passed, %d causes are remembered", passed, len(l.causes))
		}
		now = now.Add(time.Hour)
	}
}
