package goal

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/signing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	key   = signing.Ed25519(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)))
	other = signing.Ed25519(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize)))
	trust = signing.TrustIn(key.Public())
	noon  = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
)

const composite = "LCa0a2j/xo/5m0U8HTBBNBNCLXBkg7+g+YpeiGJm564=-3"

func build(n int) Build {
	return Build{SourceBucket: "global-builds", Key: fmt.Sprintf("web/%d.zip", n), ExecutionID: fmt.Sprintf("01J00000000000000000000%03d", n), Size: 7, SHA256: composite}
}

func aGoal(version int64) *Goal {
	stable := build(1)
	return &Goal{
		Service: "web", Version: version, Deployment: "01K00000000000000000000001", Target: build(2), Stable: &stable,
		Regions: map[string]Region{"region-a": {Open: true, Cut: Circle / 2}, "region-b": {Cut: Circle / 2}, "region-c": {Open: true, Cut: Circle, Skipped: true}},
		Issued:  noon, MaxUnavailable: "10%",
	}
}

func sign(t testing.TB, doc any) []byte {
	t.Helper()
	wire, err := Sign(context.Background(), key, doc)
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

// halves are a host below the middle of the circle, and one that is not.
func halves() (below, above string) {
	for i := 0; below == "" || above == ""; i++ {
		if name := fmt.Sprintf("host-%d", i); HashOf("web", name) < Circle/2 {
			below = name
		} else {
			above = name
		}
	}
	return below, above
}

func TestHashOf(t *testing.T) {
	// Every version has to place hosts alike: SHA-256 of "web", NUL, "host-0" begins so.
	if got := fmt.Sprintf("%08x", HashOf("web", "host-0")); got != "a87b9977" {
		t.Errorf("host-0 lies at %s", got)
	}
	if HashOf("web", "host-0") == HashOf("api", "host-0") {
		t.Error("a host lies at the same place in two services")
	}
}

func TestFor(t *testing.T) {
	below, above := halves()
	g := aGoal(1)
	g.Held = []string{"held"}
	for _, c := range []struct{ region, host, want string }{
		{"region-a", below, g.Target.ExecutionID},
		{"region-a", above, g.Stable.ExecutionID},
		{"region-b", below, g.Stable.ExecutionID}, // the gate is closed
		{"region-x", below, g.Stable.ExecutionID},
		{"region-a", "held", ""},
	} {
		got := ""
		if b := g.For(c.region, c.host); b != nil {
			got = b.ExecutionID
		}
		if got != c.want {
			t.Errorf("%s of %s is to run %q, expected %q", c.host, c.region, got, c.want)
		}
	}
	if g.Done = true; g.For("region-x", above) != &g.Target || g.For("region-b", below) != g.Stable {
		t.Error("done: a region that was not named runs the target, one that was keeps to its cut")
	}
	if g.Done, g.Stable = false, nil; g.For("region-a", above) != nil {
		t.Error("there is something to run before the first deployment")
	}
}

func TestLeave(t *testing.T) {
	below, above := halves()
	g := aGoal(1)
	stable, target := g.Stable.ExecutionID, g.Target.ExecutionID
	for _, c := range []struct {
		why                   string
		paused                bool
		region, host, running string
		want                  bool
	}{
		{"its turn", false, "region-a", below, stable, true},
		{"it runs that", false, "region-a", below, target, false},
		{"a new host", false, "region-a", above, "", true},
		{"back from the target", true, "region-a", above, target, true},
		{"paused", true, "region-a", below, stable, false},
		{"paused, a new host", true, "region-a", below, "", true},
		{"skipped", false, "region-c", below, stable, false},
	} {
		if g.Paused = c.paused; g.Leave(c.region, c.host, c.running) != c.want {
			t.Errorf("%s: not %v", c.why, c.want)
		}
	}
	if g.Paused, g.Stable = true, nil; g.Leave("region-a", below, "") {
		t.Error("a host begins with the target of a paused first deployment")
	}
}

func TestSignOpen(t *testing.T) {
	g := aGoal(3)
	wire := sign(t, g)
	if !bytes.HasPrefix(wire, []byte("landfall-goal-v1\n")) {
		t.Errorf("begins with %q", wire[:20])
	}
	doc, err := Open(wire, trust, noon)
	if got, ok := doc.(*Goal); !ok || err != nil || got.Target != g.Target || *got.Stable != *g.Stable || !maps.Equal(got.Regions, g.Regions) || got.Version != 3 {
		t.Errorf("%+v, %v", doc, err)
	}
	b := sign(t, &Beat{Time: noon, Versions: map[string]int64{"web": 3}})
	if doc, err := Open(b, trust, noon); err != nil || doc.(*Beat).Versions["web"] != 3 {
		t.Errorf("%+v, %v", doc, err)
	}
	for i := range wire {
		bad := bytes.Clone(wire)
		bad[i] ^= 1
		if _, err := Open(bad, trust, noon); err == nil {
			t.Fatalf("byte %d changed and nobody saw", i)
		}
	}
	foreign, _ := Sign(t.Context(), other, g)
	narrow, err := signing.OpenTrust([]string{key.Public().String() + ":prefix=api/"}, "")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		wire  []byte
		trust *signing.Trust
		want  error
	}{
		"another key":                 {foreign, trust, ErrUntrusted},
		"a key for other builds":      {wire, narrow, ErrUntrusted},
		"a beat called a goal":        {append([]byte("landfall-goal-v1\n"), bytes.TrimPrefix(b, []byte("landfall-beat-v1\n"))...), trust, ErrUntrusted},
		"too long":                    {append(bytes.Clone(wire), make([]byte, MaxLength)...), trust, ErrInvalid},
		"nothing":                     {nil, trust, ErrInvalid},
		"only its first line":         {[]byte("landfall-goal-v1\n"), trust, ErrInvalid},
		"a version of next year":      {sign(t, aGoal(noon.AddDate(1, 0, 0).Unix())), trust, ErrInvalid},
		"issued the day after":        {sign(t, func() *Goal { g := aGoal(1); g.Issued = noon.Add(2 * executionid.MaxAhead); return g }()), trust, ErrInvalid},
		"a beat of the day after too": {sign(t, &Beat{Time: noon.Add(2 * executionid.MaxAhead)}), trust, ErrInvalid},
	} {
		if _, err := Open(c.wire, c.trust, noon); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNewer: a goal that a newer seeder has signed, and this version does not understand, says
// of which service it is; nobody else's does.
func TestNewer(t *testing.T) {
	signed := func(by signing.Signer, change func(map[string]any)) []byte {
		t.Helper()
		text, err := json.Marshal(aGoal(3))
		doc := make(map[string]any)
		if err == nil {
			err = json.Unmarshal(text, &doc)
		}
		var wire []byte
		if err == nil {
			change(doc)
			wire, err = envelope.Sign(t.Context(), by, goalKind, doc)
		}
		if err != nil {
			t.Fatal(err)
		}
		return wire
	}
	ofLater := func(doc map[string]any) { doc["window"] = "at night" }
	narrow, err := signing.OpenTrust([]string{key.Public().String() + ":prefix=api/"}, "")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		wire  []byte
		trust *signing.Trust
		newer bool
	}{
		"a field of later":              {signed(key, ofLater), trust, true},
		"a value of later":              {signed(key, func(doc map[string]any) { doc["maxUnavailable"] = "a rack" }), trust, true},
		"a type of later":               {signed(key, func(doc map[string]any) { doc["regions"] = []string{"region-a"} }), trust, true},
		"somebody else's":               {signed(other, ofLater), trust, false},
		"of builds that are not theirs": {signed(key, ofLater), narrow, false},
		"of no service":                 {signed(key, func(doc map[string]any) { ofLater(doc); doc["service"] = "../web" }), trust, false},
		"of no version":                 {signed(key, func(doc map[string]any) { ofLater(doc); doc["version"] = 0 }), trust, false},
		"of next year":                  {signed(key, func(doc map[string]any) { ofLater(doc); doc["version"] = noon.AddDate(1, 0, 0).Unix() }), trust, false},
		"of a build of later":           {signed(key, func(doc map[string]any) { doc["target"] = "web-2.zip" }), trust, false},
	} {
		_, err := Open(c.wire, c.trust, noon)
		newer := new(NewerError)
		switch is := errors.As(err, &newer); {
		case err == nil, is != c.newer:
			t.Errorf("%s: %v", name, err)
		case is && (newer.Service != "web" || newer.Version != 3 || !errors.Is(err, ErrInvalid)):
			t.Errorf("%s: %+v", name, newer)
		}
	}
	shelf := openShelf(t, "")
	if added, err := shelf.Add(signed(key, ofLater)); added || !errors.Is(err, ErrInvalid) || shelf.Goal("web") != nil {
		t.Errorf("%v, %v", added, err)
	}
}

// TestBounds has every bound gone over: nothing of that can be signed.
func TestBounds(t *testing.T) {
	names := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("%063d", i))
		}
		return out
	}
	for name, change := range map[string]func(*Goal){
		"no version":            func(g *Goal) { g.Version = 0 },
		"no service":            func(g *Goal) { g.Service = "" },
		"service called head":   func(g *Goal) { g.Service = Head },
		"service in a folder":   func(g *Goal) { g.Service = "../web" },
		"hidden service":        func(g *Goal) { g.Service = ".web" },
		"service's long name":   func(g *Goal) { g.Service = strings.Repeat("a", 64) },
		"region":                func(g *Goal) { g.Regions["Region"] = Region{} },
		"cut":                   func(g *Goal) { g.Regions["a"] = Region{Cut: Circle + 1} },
		"cut below 0":           func(g *Goal) { g.Regions["a"] = Region{Cut: -1} },
		"regions":               func(g *Goal) { addAll(g.Regions, names(MaxRegions+1)) },
		"held":                  func(g *Goal) { g.Held = names(MaxHeld + 1) },
		"host's name":           func(g *Goal) { g.Held = []string{"a/b"} },
		"share":                 func(g *Goal) { g.MaxUnavailable = "101%" },
		"deployment":            func(g *Goal) { g.Deployment = "x" },
		"operator":              func(g *Goal) { g.By = strings.Repeat("a", maxBy+1) },
		"key":                   func(g *Goal) { g.Target.Key = strings.Repeat("a", 1025) },
		"bucket":                func(g *Goal) { g.Target.SourceBucket = "" },
		"execution":             func(g *Goal) { g.Target.ExecutionID = strings.ToLower(g.Target.ExecutionID) },
		"size":                  func(g *Goal) { g.Target.Size = 6 << 40 },
		"composite":             func(g *Goal) { g.Target.SHA256 = strings.TrimSuffix(composite, "-3") },
		"parts":                 func(g *Goal) { g.Target.SHA256 = strings.TrimSuffix(composite, "3") + "10001" },
		"open, and not known":   func(g *Goal) { g.Target.SHA256 = "" },
		"done, and not known":   func(g *Goal) { g.Target.SHA256, g.Regions, g.Done = "", nil, true },
		"stable, and not known": func(g *Goal) { g.Stable.SHA256 = "" },
	} {
		g := aGoal(1)
		if change(g); !errors.Is(g.check(), ErrInvalid) {
			t.Errorf("%s: %v", name, g.check())
		}
		if _, err := Sign(t.Context(), key, g); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: signed: %v", name, err)
		}
	}
	big := aGoal(1)
	big.Target.Key, big.Stable.Key, big.Held = strings.Repeat("k", 1024), strings.Repeat("k", 1024), names(MaxHeld)
	big.Regions, big.By = make(map[string]Region), strings.Repeat("a", maxBy)
	for _, n := range names(MaxRegions) {
		big.Regions[n] = Region{Open: true, Cut: Circle - 1, Skipped: true}
	}
	beat := &Beat{Time: noon, Versions: make(map[string]int64)}
	for _, n := range names(MaxServices) {
		beat.Versions[n] = 1 << 40
	}
	for _, doc := range []any{big, beat} {
		if _, err := Open(sign(t, doc), trust, noon); err != nil {
			t.Errorf("the longest %T there may be: %v", doc, err)
		}
	}
	beat.Versions["one-more"] = 1
	for _, b := range []*Beat{beat, {Versions: map[string]int64{"web": 0}}, {Versions: map[string]int64{"a/b": 1}}} {
		if _, err := Sign(t.Context(), key, b); !errors.Is(err, ErrInvalid) {
			t.Errorf("signed: %v", err)
		}
	}
	if _, err := Sign(t.Context(), key, new(Counts)); !errors.Is(err, ErrInvalid) {
		t.Errorf("signed: %v", err)
	}
}

func addAll(regions map[string]Region, names []string) {
	for _, n := range names {
		regions[n] = Region{}
	}
}

func TestShare(t *testing.T) {
	for share, want := range map[Share][4]int{ // of 0, 1, 10 and 1000; then what Within has of 10
		"":       {0, 0, 0, 0},
		"0":      {0, 0, 0, 0},
		"0%":     {0, 0, 0, 0},
		"0.00%":  {0, 0, 0, 0},
		"3":      {0, 1, 3, 3},
		"20%":    {0, 1, 2, 200},
		"1%":     {0, 1, 1, 10},
		"0.1%":   {0, 1, 1, 1},
		"29%":    {0, 1, 2, 290},
		"100%":   {0, 1, 10, 1000},
		"nobody": {0, 0, 0, 0},
	} {
		for i, n := range []int{0, 1, 10, 1000} {
			if got := share.Of(n); got != want[i] {
				t.Errorf("%s of %d: %d, expected %d", share, n, got, want[i])
			}
		}
	}
	if Share("1%").Within(10) != 0 || Share("29%").Within(100) != 29 || Share("3").Within(10) != 3 {
		t.Error("Within is not rounded down")
	}
	for _, s := range []Share{"-1", "+1", "101%", "1000001", "1e2%", "%", ".%", " 1", "10 %", "1_0", "100.1%", "0.00000001%"} {
		if s.Check() == nil {
			t.Errorf("%q is a share", s)
		}
	}
	if !Share("100.0%").Whole() || Share("99%").Whole() || Share("100").Whole() {
		t.Error("which share is whole")
	}
}

func TestCountsCheck(t *testing.T) {
	c := Counts{Service: "web", InStates: InStates{Hosts: 3}, Failures: []Failure{{Host: "a", Phase: strings.Repeat("p", 100), Error: strings.Repeat("é", MaxError), Output: strings.Repeat("é", MaxOutput) + "!"}}}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	f := c.Failures[0]
	if len(f.Phase) > 32 || len(f.Error) > MaxError || len(f.Output) > MaxOutput || !strings.HasSuffix(f.Output, "é!") {
		t.Errorf("%d, %d and %d bytes", len(f.Phase), len(f.Error), len(f.Output))
	}
	for _, bad := range []Counts{
		{Service: "a/b"}, {Service: "web", InStates: InStates{Sick: -1}}, {Service: "web", Below: -1}, {Service: "web", Silent: -1}, {Service: "web", Silent: MaxHosts + 1}, {Service: "web", InStates: InStates{Hosts: MaxHosts + 1}},
		{Service: "web", Failures: make([]Failure, MaxFailures+1)}, {Service: "web", Failures: []Failure{{Host: "../a"}}},
		{Service: "web", Zones: make([]Zone, MaxZones+1)}, {Service: "web", Zones: []Zone{{Zone: "b"}, {Zone: "a"}}}, {Service: "web", Zones: make([]Zone, 2)},
		{Service: "web", Zones: []Zone{{Zone: strings.Repeat("z", MaxZone+1)}}}, {Service: "web", Zones: []Zone{{Zone: "a", InStates: InStates{Ready: -1}}}},
		{Service: "web", Zones: []Zone{{Zone: "a", InStates: InStates{OnTarget: MaxHosts + 1}}}},
	} {
		if !errors.Is(bad.Check(), ErrInvalid) {
			t.Errorf("%+v passes", bad)
		}
	}
}

func TestZones(t *testing.T) {
	var a Zone
	for _, state := range []string{Waiting, Ready, Switching, Healthy, Healthy, Failed, Absent, Sick} {
		a.Count(state, state == Healthy, state == Sick)
	}
	if want := (Zone{InStates: InStates{Hosts: 8, Waiting: 1, Ready: 1, Switching: 1, Healthy: 2, Failed: 1, Absent: 1, Sick: 1, OnTarget: 2, HoldStable: 1}}); a != want {
		t.Errorf("%+v, want %+v", a, want)
	}
	b, c := a, Zone{Zone: "c", InStates: InStates{Hosts: 1, Ready: 1}}
	a.Zone, b.Zone = "a", "b"
	twice := a
	twice.Add(a.InStates)
	if twice.Hosts != 16 || twice.Healthy != 4 || twice.Sick != 2 {
		t.Errorf("%+v", twice)
	}
	first, second := []Zone{a, b}, []Zone{a, c}
	if got, want := JoinZones(first, second), []Zone{twice, b, c}; !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if !slices.Equal(first, []Zone{a, b}) || !slices.Equal(second, []Zone{a, c}) {
		t.Error("what was joined has changed")
	}
	if got := JoinZones(nil, first); !slices.Equal(got, first) || &got[0] == &first[0] {
		t.Errorf("with none: %+v", got)
	}
	if got := Largest([]Zone{c, b, twice, {Zone: "0"}}, 2); got[0].Zone != "a" || got[1].Zone != "b" || len(got) != 2 {
		t.Errorf("the largest: %+v", got)
	}
}

func TestNextVersion(t *testing.T) {
	if got := NextVersion(noon, 5); got != noon.Unix() {
		t.Error("of an old table:", got)
	}
	if got := NextVersion(noon, noon.Unix()+100); got != noon.Unix()+101 {
		t.Error("of a clock that was set back:", got)
	}
}

func openShelf(t *testing.T, dir string) *Shelf {
	t.Helper()
	s, err := OpenShelf(dir, trust)
	if err != nil {
		t.Fatal(err)
	}
	s.now = func() time.Time { return noon }
	return s
}

func TestShelf(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "goals")
	s := openShelf(t, dir)
	if _, known, _ := s.Age(noon); known {
		t.Error("an age of nothing")
	}
	second := sign(t, aGoal(2))
	for _, c := range []struct {
		wire  []byte
		added bool
		err   error
	}{
		{sign(t, aGoal(1)), true, nil},
		{second, true, nil},
		{second, false, nil},
		{sign(t, aGoal(1)), false, ErrOld},
		{sign(t, func() *Goal { g := aGoal(2); g.By = "another"; return g }()), false, ErrContradiction},
		{[]byte("nonsense"), false, ErrInvalid},
		{sign(t, &Beat{Time: noon.Add(time.Minute), Versions: map[string]int64{"web": 3}}), true, nil},
		{sign(t, &Beat{Time: noon}), false, nil},
	} {
		if added, err := s.Add(c.wire); added != c.added || !errors.Is(err, c.err) {
			t.Errorf("added: %v, %v; expected %v, %v", added, err, c.added, c.err)
		}
	}
	for range 2 { // then from the disk
		age, known, behind := s.Age(noon.Add(3 * time.Minute))
		if !known || age != 2*time.Minute || !slices.Equal(behind, []string{"web"}) {
			t.Errorf("age %s, %v, behind %v", age, known, behind)
		}
		if g := s.Goal("web"); g == nil || g.Version != 2 || !bytes.Equal(s.Wire("web"), second) || len(s.Goals()) != 1 || s.Wire("") == nil {
			t.Fatalf("%+v", g)
		}
		s = openShelf(t, dir)
	}
	if s.Goal("api") != nil || s.Wire("api") != nil {
		t.Error("there is a goal that nobody has added")
	}
}

// TestGoalKeptBack: who passes beats on and keeps one goal back is seen by its age.
func TestGoalKeptBack(t *testing.T) {
	s, err := OpenShelf("", trust, "web", "api")
	if err != nil {
		t.Fatal(err)
	}
	s.now = func() time.Time { return noon }
	add := func(doc any) {
		t.Helper()
		if _, err := s.Add(sign(t, doc)); err != nil {
			t.Fatal(err)
		}
	}
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	expect := func(minutes int, want time.Duration, names ...string) {
		t.Helper()
		if age, known, behind := s.Age(at(minutes)); !known || age != want || !slices.Equal(behind, names) {
			t.Errorf("after %d minutes: age %s, %v, behind %v; expected %s, %v", minutes, age, known, behind, want, names)
		}
	}
	add(aGoal(2))
	for minute := range 10 {
		// From minute 3 on there is a newer goal, from 5 on one of a service that has none here;
		// of another service, which is not this one's, nothing lacks.
		versions := map[string]int64{"web": 2, "worker": 7}
		if minute >= 3 {
			versions["web"] = 3
		}
		if minute >= 5 {
			versions["api"] = 1
		}
		s.now = func() time.Time { return at(minute) }
		add(&Beat{Time: at(minute), Versions: versions})
		switch {
		case minute < 3:
			expect(minute, 0)
		case minute < 5:
			expect(minute, time.Duration(minute-3)*time.Minute, "web")
		default:
			expect(minute, time.Duration(minute-3)*time.Minute, "api", "web")
		}
	}
	add(aGoal(3)) // comes at last
	expect(9, 4*time.Minute, "api")
}

// TestShelfOnDisk reads what is damaged, or is no one's any more.
func TestShelfOnDisk(t *testing.T) {
	dir := t.TempDir()
	s := openShelf(t, dir)
	for _, service := range []string{"web", "api"} {
		g := aGoal(1)
		g.Service = service
		if _, err := s.Add(sign(t, g)); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("api.goal", s.Wire("api")[:200])
	write("moved.goal", s.Wire("web"))
	write("README", nil)
	again, err := OpenShelf(dir, trust)
	if again == nil || len(again.Goals()) != 1 || err == nil || !strings.Contains(err.Error(), "api.goal") || !strings.Contains(err.Error(), "moved.goal") || strings.Contains(err.Error(), "README") {
		t.Fatalf("%v, %v", again, err)
	}
	if foreign, err := OpenShelf(dir, signing.TrustIn(other.Public())); len(foreign.Goals()) != 0 || !errors.Is(err, ErrUntrusted) {
		t.Errorf("goals of a key that is not trusted: %v", err)
	}
	if memory, err := OpenShelf("", trust); err != nil || memory == nil {
		t.Error(err)
	} else if added, err := memory.Add(sign(t, aGoal(1))); !added || err != nil {
		t.Error(added, err)
	}
}

// TestRecheck: what a key has signed that is trusted no more is dropped, however great its
// versions, and comes from no disk either; what others have signed then counts.
func TestRecheck(t *testing.T) {
	revoked := filepath.Join(t.TempDir(), "revoked")
	revoke := func(text string) {
		t.Helper()
		if err := os.WriteFile(revoked, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	revoke("")
	trust, err := signing.OpenTrust([]string{key.Public().String(), other.Public().String()}, revoked)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := OpenShelf(dir, trust)
	if err != nil {
		t.Fatal(err)
	}
	s.now = func() time.Time { return noon }
	by := func(signer signing.Signer, doc any) []byte {
		t.Helper()
		wire, err := Sign(t.Context(), signer, doc)
		if err != nil {
			t.Fatal(err)
		}
		return wire
	}
	add := func(wire []byte) {
		t.Helper()
		if added, err := s.Add(wire); !added || err != nil {
			t.Fatalf("%v, %v", added, err)
		}
	}
	api := aGoal(7)
	api.Service = "api"
	add(by(other, api))
	add(by(key, aGoal(100)))
	add(by(key, &Recall{Version: 100, SourceBucket: "global-builds", SHA256: []string{api.Target.SHA256}, Issued: noon}))
	add(by(key, &Beat{Time: noon.Add(time.Hour), Versions: map[string]int64{"api": 100}}))
	add(by(key, &RecallBeat{Time: noon.Add(time.Hour), Version: 101}))
	if dropped := s.Recheck(); dropped != nil {
		t.Errorf("with all trusted, %q were dropped", dropped)
	}
	revoke(key.Public().String())
	if changed, err := trust.Reload(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if dropped := s.Recheck(); !slices.Equal(dropped, []string{"", Recalls, RecallBeats, "web"}) {
		t.Errorf("dropped: %q", dropped)
	}
	if s.Goal("web") != nil || s.Wire("") != nil || s.Wire(Recalls) != nil || s.Wire(RecallBeats) != nil || s.Recalled(api.Target.SHA256) || s.RecallsBehind() {
		t.Error("something of it is left")
	}
	if age, known, behind := s.Age(noon.Add(time.Minute)); !known || age != time.Minute || len(behind) != 0 {
		t.Errorf("age %s, %v, behind %q", age, known, behind)
	}
	if g := s.Goal("api"); g == nil || g.Version != 7 {
		t.Errorf("the other's is %+v", g)
	}
	if _, err := s.Add(by(key, aGoal(101))); !errors.Is(err, ErrUntrusted) {
		t.Errorf("its next one: %v", err)
	}
	add(by(other, aGoal(2)))
	again, err := OpenShelf(dir, trust)
	if err == nil || again.Goal("web").Version != 2 || again.Goal("api").Version != 7 || again.Wire(Recalls) != nil {
		t.Errorf("from the disk: %+v, %v", again.Goals(), err)
	}
}

func TestShelfIsBounded(t *testing.T) {
	s := openShelf(t, "")
	for i := range MaxServices + 1 {
		g := aGoal(1)
		g.Service = fmt.Sprintf("s-%d", i)
		if added, err := s.Add(sign(t, g)); added != (i < MaxServices) || errors.Is(err, ErrInvalid) != (i >= MaxServices) {
			t.Fatalf("service %d: %v, %v", i, added, err)
		}
	}
}

// FuzzGoal goes past the signature.
func FuzzGoal(f *testing.F) {
	body, err := json.Marshal(aGoal(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"service":"web"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		g := new(Goal)
		if (signing.Opened{Body: body}).Decode(g) != nil || g.check() != nil {
			return
		}
		g.For("region-a", "host")
		g.Leave("region-a", "host", "")
		if n := g.MaxUnavailable.Of(10); n < 0 || n > 10 {
			t.Errorf("%d of 10 may be unavailable", n)
		}
		if _, err := Sign(t.Context(), key, g); err != nil && !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
	})
}

// With clocks an hour off, at seeders, agents and hosts, goals and recalls are taken and versions
// grow. A beat that is no newer than the last one by the seeders' clocks is left out.
func TestClocksAnHourOff(t *testing.T) {
	for _, seeders := range [][]time.Duration{{time.Hour, 0, -time.Hour}, {-time.Hour, 0, time.Hour}} {
		for _, host := range []time.Duration{-time.Hour, 0, time.Hour} {
			s := openShelf(t, "")
			now := noon
			s.now = func() time.Time { return now.Add(host) }
			last, recalls := int64(0), int64(0)
			beat := time.Time{}
			for i, seeder := range seeders {
				g := aGoal(NextVersion(now.Add(seeder), last))
				g.Issued = now.Add(seeder)
				if added, err := s.Add(sign(t, g)); !added || err != nil || g.Version <= last {
					t.Errorf("host %s off, seeder %d %s off: version %d after %d, %v, %v", host, i, seeder, g.Version, last, added, err)
				}
				last = g.Version
				r := aRecall(NextVersion(now.Add(seeder), recalls), composite)
				r.Issued = now.Add(seeder)
				if added, err := s.Add(sign(t, r)); !added || err != nil || r.Version <= recalls {
					t.Errorf("host %s off, seeder %d %s off: recalls %d after %d, %v, %v", host, i, seeder, r.Version, recalls, added, err)
				}
				recalls = r.Version
				for _, doc := range []any{
					&Beat{Time: now.Add(seeder), Versions: map[string]int64{"web": last}}, &RecallBeat{Time: now.Add(seeder), Version: recalls},
				} {
					if added, err := s.Add(sign(t, doc)); added != now.Add(seeder).After(beat) || err != nil {
						t.Errorf("host %s off, seeder %d %s off: %T: %v, %v", host, i, seeder, doc, added, err)
					}
				}
				if now.Add(seeder).After(beat) {
					beat = now.Add(seeder)
				}
				if age, known, behind := s.Age(now.Add(host)); !known || age < 0 || age > 2*time.Hour || len(behind) > 0 {
					t.Errorf("age %s, %v", age, known)
				}
				now = now.Add(time.Minute)
			}
		}
	}
}
