package goal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/signing"
)

func aRecall(version int64, sums ...string) *Recall {
	return &Recall{Version: version, SourceBucket: "global-builds", SHA256: sums, By: "carol", Issued: noon}
}

// TestRecall signs lists of recalls, and keeps the greatest, over a restart too.
func TestRecall(t *testing.T) {
	dir := t.TempDir()
	s := openShelf(t, dir)
	if s.Recalled(composite) || s.Wire(Recalls) != nil {
		t.Error("recalled by nobody")
	}
	for i, c := range []struct {
		of    *Recall
		added bool
		err   error
		has   bool
	}{
		{aRecall(5, composite), true, nil, true},
		{aRecall(5, composite), false, nil, true},
		{aRecall(5), false, ErrContradiction, true},
		{aRecall(4), false, ErrOld, true},
		{aRecall(6), true, nil, false},
		{aRecall(7, composite), true, nil, true},
	} {
		added, err := s.Add(sign(t, c.of))
		if added != c.added || !errors.Is(err, c.err) || s.Recalled(composite) != c.has {
			t.Errorf("%d: %v, %v, recalled: %v", i, added, err, s.Recalled(composite))
		}
	}
	again := openShelf(t, dir)
	if !again.Recalled(composite) || len(again.Wire(Recalls)) == 0 || again.Recalled("other") {
		t.Error("forgotten over a restart")
	}
	if err := os.WriteFile(filepath.Join(dir, recallFile), sign(t, aGoal(1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if odd, err := OpenShelf(dir, trust); err == nil || odd.Recalled(composite) {
		t.Errorf("a goal is taken for a list of recalls: %v", err)
	}
}

// TestRecallBounds: a list is what its own bounds say, and signed by who is trusted with all.
func TestRecallBounds(t *testing.T) {
	var most []string
	for i := range MaxRecalled + 1 {
		most = append(most, fmt.Sprintf("LCa0a2j/xo/5m0U8HTBBNBNCLXBkg7+g+YpeiGJm564=-%d", 1000+i))
	}
	slices.Sort(most)
	if wire := sign(t, aRecall(1, most[:MaxRecalled]...)); len(wire) > MaxLength {
		t.Errorf("%d bytes", len(wire))
	}
	for name, r := range map[string]*Recall{
		"too many":      aRecall(1, most...),
		"version":       aRecall(0),
		"no digest":     aRecall(1, "abc"),
		"twice":         aRecall(1, composite, composite),
		"out of order":  aRecall(1, most[1], most[0]),
		"who":           {Version: 1, SourceBucket: "global-builds", By: string(make([]byte, maxBy+1)), Issued: noon},
		"no bucket":     {Version: 1, Issued: noon},
		"far ahead":     {Version: 1, SourceBucket: "global-builds", Issued: noon.Add(2 * executionid.MaxAhead)},
		"version ahead": {Version: noon.Add(2 * executionid.MaxAhead).Unix(), SourceBucket: "global-builds", Issued: noon},
	} {
		wire, err := Sign(t.Context(), key, r)
		if err == nil {
			_, err = Open(wire, trust, noon)
		}
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wire := sign(t, aRecall(1, composite))
	for rule, ok := range map[string]bool{"": true, ":bucket=global-builds": true, ":bucket=other-builds": false, ":prefix=web/": false} {
		trust, err := signing.OpenTrust([]string{key.Public().String() + rule}, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(wire, trust, noon.Add(time.Minute)); ok != (err == nil) || !ok && !errors.Is(err, ErrUntrusted) {
			t.Errorf("a key that is trusted with %q: %v", rule, err)
		}
	}
}

// TestRecallBeat: a list of recalls that is kept back shows as age, or is named, beside goals
// that are the newest.
func TestRecallBeat(t *testing.T) {
	dir := t.TempDir()
	s := openShelf(t, dir)
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	add := func(doc any) {
		t.Helper()
		if added, err := s.Add(sign(t, doc)); err != nil || !added {
			t.Fatalf("%T: %t, %v", doc, added, err)
		}
	}
	age := func(minutes int, want time.Duration, behind ...string) {
		t.Helper()
		if got, known, names := s.Age(at(minutes)); !known || got != want || !slices.Equal(names, behind) {
			t.Errorf("%s, known %t, behind %q; want %s, %q", got, known, names, want, behind)
		}
	}
	add(aGoal(1))
	add(&Beat{Time: at(0), Versions: map[string]int64{"web": 1}})
	age(1, time.Minute) // from a seeder that says nothing of recalls
	add(&RecallBeat{Time: at(0)})
	age(1, time.Minute)
	add(&Beat{Time: at(3), Versions: map[string]int64{"web": 1}})
	age(4, 4*time.Minute) // goals alone come on
	add(&RecallBeat{Time: at(3), Version: 7})
	age(4, time.Minute, Recalls) // the list does not
	if !s.RecallsBehind() {
		t.Error("not behind")
	}
	s = openShelf(t, dir)
	age(4, time.Minute, Recalls)
	list := aRecall(7, composite)
	add(list)
	age(4, time.Minute)
	if known, err := s.Add(sign(t, &RecallBeat{Time: at(2), Version: 9})); known || err != nil {
		t.Errorf("an older beat is taken: %v", err)
	}
	for name, b := range map[string]*RecallBeat{
		"version":       {Time: noon, Version: -1},
		"far ahead":     {Time: noon.Add(2 * executionid.MaxAhead)},
		"version ahead": {Time: noon, Version: noon.Add(2 * executionid.MaxAhead).Unix()},
	} {
		wire, err := Sign(t.Context(), key, b)
		if err == nil {
			_, err = Open(wire, trust, noon)
		}
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
