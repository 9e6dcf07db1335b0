package host

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/release"
	"github.com/landfall-dist/landfall/internal/signing"
)

// TestHost: a host fetches what its goal names, switches when it has leave, puts the old
// build back when the new one is bad, and goes back without a byte moved.
func TestHost(t *testing.T) {
	dir := t.TempDir()
	a := newAgent(t)
	hooks := func(c *Config) {
		c.Hooks.Exec = `[ "$(cat current/version)" != "build 3" ] || { echo broken thing; exit 4; }; echo "$LANDFALL_BUILD $LANDFALL_PHASE" >>log`
		c.Hooks.Check = `[ -e current/version ]`
	}
	h := startHost(t, dir, hooks, a.url)
	if code, body := h.get(t, "/healthz"); code != 200 {
		t.Errorf("/healthz: %d %s", code, body)
	}
	if code, body := h.get(t, "/readyz"); code != 503 || !strings.Contains(body, "no goal has come yet") {
		t.Errorf("/readyz before there is a goal: %d %s", code, body)
	}
	one, two, three := newBuild(t, 1), newBuild(t, 2), newBuild(t, 3)
	for _, b := range []*testBuild{one, two, three} {
		a.has(b)
	}

	// The gate is closed: it is fetched and unpacked, and nothing runs.
	closed := goalOf(10, one, nil)
	closed.Regions[testRegion] = goal.Region{Cut: goal.Circle}
	a.say(sign(t, closed, key), one.recipe)
	until(t, "the first build is held", func() bool { return h.Status().Services[0].State == goal.Ready })
	if s := h.Status().Services[0]; a.last().Wants != "" || s.Running != "" || s.Goal != 10 {
		t.Errorf("with a closed gate: %+v", s)
	}
	if code, body := h.get(t, "/readyz"); code != 503 || !strings.Contains(body, "no build runs yet") {
		t.Errorf("/readyz with a closed gate: %d %s", code, body)
	}

	// It is open: the host wants leave, and waits for it.
	a.say(sign(t, goalOf(11, one, nil), key))
	a.await("it wants leave", func(s hostwire.ServiceState) bool { return s.Wants == one.goal.ExecutionID && s.State == goal.Ready })
	for _, wrong := range []*hostwire.Leave{{Service: "web", Version: 10, Seconds: 30}, {Service: "web", Version: 11, Seconds: 0}, {Service: "other", Version: 11, Seconds: 30}} {
		a.say(wrong)
	}
	if runs(t, dir) != "" {
		t.Error("it has switched by a leave for another version, service or time")
	}
	a.say(&hostwire.Leave{Service: "web", Version: 11, Seconds: 30})
	s := a.await("the first build runs", func(s hostwire.ServiceState) bool { return s.State == goal.Healthy })
	if s.Running != one.goal.ExecutionID || runs(t, dir) != "build 1" {
		t.Errorf("%+v, runs %q", s, runs(t, dir))
	}
	until(t, "/readyz", func() bool { code, _ := h.get(t, "/readyz"); return code == 200 })

	// The next one, whose beginning is a switch that is said.
	a.say(sign(t, goalOf(20, two, one), key), two.recipe)
	a.await("the second is held", func(s hostwire.ServiceState) bool { return s.Wants == two.goal.ExecutionID })
	if code, body := h.get(t, "/readyz"); code != 200 {
		t.Errorf("/readyz while it waits for its turn: %d %s", code, body)
	}
	a.say(&hostwire.Leave{Service: "web", Version: 20, Seconds: 30})
	a.await("the second runs", func(s hostwire.ServiceState) bool {
		return s.State == goal.Healthy && s.Running == two.goal.ExecutionID
	})

	// One that is bad: the old one is put back, and one attempt is all there is.
	a.say(sign(t, goalOf(30, three, two), key), three.recipe)
	a.await("the third is held", func(s hostwire.ServiceState) bool { return s.Wants == three.goal.ExecutionID })
	a.say(&hostwire.Leave{Service: "web", Version: 30, Seconds: 30})
	s = a.await("the third has failed", func(s hostwire.ServiceState) bool { return s.State == goal.Failed })
	if s.Running != two.goal.ExecutionID || s.Wants != "" || s.Phase != "failed" || !strings.Contains(s.Error, "exec: exit status 4") || s.Output != "broken thing" || runs(t, dir) != "build 2" {
		t.Errorf("%+v, runs %q", s, runs(t, dir))
	}
	a.say(&hostwire.Leave{Service: "web", Version: 30, Seconds: 30})
	if code, body := h.get(t, "/readyz"); code != 200 {
		t.Errorf("/readyz with the build of before in its place again: %d %s", code, body)
	}
	st := h.Status()
	if len(st.Services) != 1 || st.Services[0].State != goal.Failed || st.Services[0].Output != "broken thing" || st.Services[0].Key != "web-2.zip" || len(st.Builds) != 2 || st.Agent != a.url || st.Region != testRegion || st.GoalAge == nil {
		t.Errorf("%+v", st)
	}

	// Back to the first, over the second: what is a release is not fetched anew.
	before := a.sent(one)
	back := goalOf(40, one, one)
	back.Now = true
	a.say(sign(t, back, key), one.recipe)
	a.await("it wants the first again", func(s hostwire.ServiceState) bool { return s.Wants == one.goal.ExecutionID })
	a.say(&hostwire.Leave{Service: "web", Version: 40, Seconds: 30})
	a.await("the first runs again", func(s hostwire.ServiceState) bool {
		return s.State == goal.Healthy && s.Running == one.goal.ExecutionID
	})
	if got := a.sent(one); runs(t, dir) != "build 1" || got != before {
		t.Errorf("runs %q, %d bytes were sent for it", runs(t, dir), got-before)
	}
	until(t, "builds that no goal names are let go", func() bool { return len(h.fetch.Builds()) == 0 })

	// An older goal, one that nobody trusted has signed, and one for a service that is not
	// here change nothing.
	stranger := newKey()
	a.say(sign(t, goalOf(35, two, nil), key), sign(t, goalOf(50, two, nil), stranger), sign(t, goalOf(41, one, one), key))
	until(t, "goal 41", func() bool { return h.shelf.Goal("web").Version == 41 })
	if got := h.shelf.Goal("web").Version; got != 41 {
		t.Errorf("goal %d", got)
	}
	log, err := os.ReadFile(filepath.Join(dir, "web", "log"))
	if want := "web-1.zip exec\nweb-2.zip exec\nweb-2.zip back-exec\nweb-1.zip exec\n"; err != nil || string(log) != want {
		t.Errorf("ran %q, %v, want %q", log, err, want)
	}

	// After a restart, with no agent, it is still so.
	h.stop()
	a.stop()
	again := startHost(t, dir, hooks, a.url)
	until(t, "/readyz after a restart without an agent", func() bool { code, _ := again.get(t, "/readyz"); return code == 200 })
	if v := again.Status(); v.Agent != "" || v.Region != testRegion || v.Services[0].Goal != 41 {
		t.Errorf("%+v", v)
	}
}

// TestReadiness: a host is in service with a build that its goal names and that is healthy.
func TestReadiness(t *testing.T) {
	dir := t.TempDir()
	a := newAgent(t)
	hooks := func(c *Config) {
		c.health = time.Millisecond
		c.Hooks.Check = `[ ! -e ill ] && [ "$(cat current/version)" = "build 1" ]`
		c.Hooks.CheckTimeout = time.Second
	}
	h := startHost(t, dir, hooks, a.url)
	one, two, three := newBuild(t, 1), newBuild(t, 2), newBuild(t, 3)
	for _, b := range []*testBuild{one, two, three} {
		a.has(b)
	}
	ready := func(why string) {
		t.Helper()
		until(t, "/readyz: "+why, func() bool { code, _ := h.get(t, "/readyz"); return code == 200 })
	}
	unready := func(why string) {
		t.Helper()
		until(t, "/readyz: "+why, func() bool { code, body := h.get(t, "/readyz"); return code == 503 && strings.Contains(body, why) })
	}
	a.say(sign(t, goalOf(10, one, nil), key), one.recipe)
	unready("waits for leave")
	a.say(&hostwire.Leave{Service: "web", Version: 10, Seconds: 30})
	ready("the first runs")

	ill := filepath.Join(dir, "web", "ill")
	for _, say := range [][]hostwire.Message{nil, {sign(t, goalOf(20, two, one), key), two.recipe}} { // as target, and as stable build
		if say != nil {
			a.say(say...)
			a.await("the second wants leave", func(s hostwire.ServiceState) bool { return s.Wants == two.goal.ExecutionID })
		}
		if err := os.WriteFile(ill, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		unready("exit status 1")
		if err := os.Remove(ill); err != nil {
			t.Fatal(err)
		}
		ready("it is well again")
	}

	// The second one's check says no, and the first is put back.
	a.say(&hostwire.Leave{Service: "web", Version: 20, Seconds: 30})
	a.await("the second has failed", func(s hostwire.ServiceState) bool { return s.State == goal.Failed })
	ready("the first runs again")

	// No goal names what it runs any more, as when a whole region goes back: it is in service
	// until its turn comes. A host that begins like that is not.
	a.say(sign(t, goalOf(30, three, three), key), three.recipe)
	a.await("the third wants leave", func(s hostwire.ServiceState) bool { return s.Wants == three.goal.ExecutionID })
	ready("it waits for its turn")
	held := goalOf(31, three, three)
	held.Held = []string{"host-1"}
	h.stop()
	h = startHost(t, dir, hooks, a.url)
	unready("waits for leave")
	a.say(sign(t, held, key))
	ready("it is to stay with what it runs")
}

// TestRecalled: a build that is recalled is neither started nor fetched or served, whatever the goal says,
// and is once that is taken back.
func TestRecalled(t *testing.T) {
	dir := t.TempDir()
	a := newAgent(t)
	h := startHost(t, dir, nil, a.url)
	one, two := newBuild(t, 1), newBuild(t, 2)
	a.has(one)
	a.has(two)
	a.say(sign(t, goalOf(10, one, nil), key), one.recipe)
	a.await("the first wants leave", func(s hostwire.ServiceState) bool { return s.Wants == one.goal.ExecutionID })
	a.say(&hostwire.Leave{Service: "web", Version: 10, Seconds: 30})
	a.await("the first runs", func(s hostwire.ServiceState) bool { return s.State == goal.Healthy })
	a.say(sign(t, goalOf(20, two, one), key), two.recipe)
	a.await("the second is in its place", func(s hostwire.ServiceState) bool { return s.Wants == two.goal.ExecutionID })
	recall := func(version int64, sums ...string) *hostwire.Goal {
		wire, err := goal.Sign(t.Context(), key, &goal.Recall{Version: version, SourceBucket: "global-builds", SHA256: sums, Issued: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		return &hostwire.Goal{Wire: wire}
	}
	a.say(recall(5, two.goal.SHA256))
	s := a.await("it says why it does not switch", func(s hostwire.ServiceState) bool { return s.State == goal.Failed })
	if s.Wants != "" || s.Running != one.goal.ExecutionID || s.Phase != "recall" || !strings.Contains(s.Error, "recalled") {
		t.Errorf("%+v", s)
	}
	a.say(&hostwire.Leave{Service: "web", Version: 20, Seconds: 30})
	until(t, "its bytes are let go", func() bool { _, known := h.fetch.Known(two.goal.ExecutionID); return !known })
	if runs(t, dir) != "build 1" {
		t.Errorf("runs %q", runs(t, dir))
	}
	h.stop()
	h = startHost(t, dir, nil, a.url)
	if !h.shelf.Recalled(two.goal.SHA256) {
		t.Error("forgotten over a restart")
	}
	a.say(recall(4), recall(6)) // an older list changes nothing
	a.await("it wants the second again", func(s hostwire.ServiceState) bool { return s.Wants == two.goal.ExecutionID })
}

// TestAnotherAgent: when a host's agent is gone it goes to another that it has heard of,
// and says all; when the first is back, it goes home.
func TestAnotherAgent(t *testing.T) {
	first, second := newAgent(t), newAgent(t)
	h := startHost(t, t.TempDir(), func(c *Config) { c.home = 50 * time.Millisecond }, first.url, second.url)
	if h.link.order("")[0] != first.url {
		first, second = second, first
	}
	until(t, "a stream to the first", func() bool { at := h.link.at.Load(); return at != nil && at.url == first.url })
	if order := h.link.order(first.url); order[0] != second.url || order[1] != first.url {
		t.Errorf("after the first is lost: %v", order)
	}
	addr := strings.TrimPrefix(first.url, "http://")
	first.stop()
	until(t, "a stream to the second", func() bool { at := h.link.at.Load(); return at != nil && at.url == second.url })
	second.mu.Lock()
	hello := second.hellos[len(second.hellos)-1]
	second.mu.Unlock()
	if hello.Host != "host-1" || hello.Zone != "a" || hello.Labels["rack"] != "7" || hello.Program == "" || hello.PeerPort == 0 || len(hello.Services) != 1 || hello.Services[0].State != goal.Waiting {
		t.Errorf("%+v", hello)
	}
	back := newAgentAt(t, addr)
	until(t, "a stream to the first again", func() bool { at := h.link.at.Load(); return at != nil && at.url == back.url })
	until(t, "the second has no stream", func() bool { second.mu.Lock(); defer second.mu.Unlock(); return second.stream == nil })
}

// TestRefusedArchive: what cannot be unpacked is said, and nothing switches to it.
func TestRefusedArchive(t *testing.T) {
	a := newAgent(t)
	h := startHost(t, t.TempDir(), nil, a.url)
	b := newBuild(t, 1)
	evil := remade(t, []byte("neither a zip nor a tar.gz, and long enough to be a build"))
	a.has(evil)
	a.say(sign(t, goalOf(1, evil, nil), key), evil.recipe)
	s := a.await("it is refused", func(s hostwire.ServiceState) bool { return s.State == goal.Failed })
	if s.Phase != "place" || !strings.Contains(s.Error, "neither a zip nor a tar.gz") || s.Wants != "" {
		t.Errorf("%+v", s)
	}
	// A recipe that leads to other bytes than the goal's is not believed.
	other := newBuild(t, 2)
	wrong := *b
	wrong.known, wrong.content = other.known, other.content
	lie := *other.recipe
	lie.ExecutionID, lie.Key = b.goal.ExecutionID, b.goal.Key
	if other.known.Size != b.known.Size {
		t.Fatal("the builds of this test are to be of one length")
	}
	a.has(&wrong)
	a.say(sign(t, goalOf(2, b, nil), key), &lie)
	hellos := func() int { a.mu.Lock(); defer a.mu.Unlock(); return len(a.hellos) }
	until(t, "another agent is asked", func() bool { return hellos() > 1 })
	if s := a.last(); s.Wants != "" || h.services["web"].release.Placed(b.goal.ExecutionID) {
		t.Errorf("wrong bytes are taken for the goal's: %+v", s)
	}
}

// TestInterruptedSwitch: a host that is ended in the midst of a switch goes on with it.
func TestInterruptedSwitch(t *testing.T) {
	dir := t.TempDir()
	a := newAgent(t)
	hooks := func(c *Config) { c.Hooks.Exec = `[ -e go ] || { touch begun; exec sleep 1000; }` }
	h := startHost(t, dir, hooks, a.url)
	b := newBuild(t, 1)
	a.has(b)
	a.say(sign(t, goalOf(1, b, nil), key), b.recipe)
	a.await("it is held", func(s hostwire.ServiceState) bool { return s.Wants != "" })
	a.say(&hostwire.Leave{Service: "web", Version: 1, Seconds: 30})
	until(t, "the hook runs", func() bool { _, err := os.Stat(filepath.Join(dir, "web", "begun")); return err == nil })
	h.stop()
	if err := os.WriteFile(filepath.Join(dir, "web", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again := startHost(t, dir, hooks, a.url)
	until(t, "it runs", func() bool { code, _ := again.get(t, "/readyz"); return code == 200 })
	if st := again.services["web"].release.State(); st.Phase != release.Done || st.Attempt != 2 || runs(t, dir) != "build 1" {
		t.Errorf("%+v", st)
	}
	until(t, "the agent knows", func() bool { return a.last().State == goal.Healthy })
}

func TestConfig(t *testing.T) {
	good := Config{Name: "h", Agents: []string{"http://x"}, Dir: t.TempDir(), Services: []string{"web"}, Trust: signing.TrustIn(), Logger: slog.New(slog.DiscardHandler)}
	for name, spoil := range map[string]func(*Config){
		"no name":              func(c *Config) { c.Name = "" },
		"a name with space":    func(c *Config) { c.Name = "a b" },
		"no service":           func(c *Config) { c.Services = nil },
		"a service twice":      func(c *Config) { c.Services = []string{"a", "a"} },
		"a hidden service":     func(c *Config) { c.Services = []string{".landfall"} },
		"too many services":    func(c *Config) { c.Services = make([]string, hostwire.MaxServices+1) },
		"no agent":             func(c *Config) { c.Agents = nil },
		"a relative path":      func(c *Config) { c.Dir = "x" },
		"too many releases":    func(c *Config) { c.Hooks.Keep = maxKeep + 1 },
		"less than none":       func(c *Config) { c.HooksOf = map[string]release.Config{"web": {Keep: -1}} },
		"a hook for days":      func(c *Config) { c.Hooks.HookTimeout = maxHookTime + 1 },
		"a relative directory": func(c *Config) { c.HooksOf = map[string]release.Config{"web": {Dir: "x"}} },
		"a label that is long": func(c *Config) { c.Labels = map[string]string{"a": strings.Repeat("x", 100)} },
	} {
		c := good
		spoil(&c)
		if err := c.check(); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if err := good.check(); err != nil {
		t.Error(err)
	}
}
