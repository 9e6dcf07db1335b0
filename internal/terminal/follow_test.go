package terminal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/terminal/terminaltest"
)

// ended is how underWay went.
func ended() *api.Execution {
	e := underWay(10)
	at := began.Add(90 * time.Second)
	e.Status, e.Phase, e.CompletedAt = "FAILED", api.PhaseEnded, &at
	for i := range e.Destinations {
		d := &e.Destinations[i]
		d.Rate = 0
		switch d.State {
		case api.StateFailed, api.StateLanded:
		case api.StateUnserved:
			d.State, d.Error = api.StateFailed, "no progress for 30m0s: no living member serves this bucket"
		default:
			d.State, d.Error, d.Seconds = api.StateLanded, "", 80
			d.VerifiedBytes, d.LandedBytes = e.Size, e.Size
		}
	}
	return e
}

// answers gives one after the other, the last for ever.
func answers[T any](all ...T) func(context.Context) (*T, error) {
	return func(context.Context) (*T, error) {
		next := all[0]
		if len(all) > 1 {
			all = all[1:]
		}
		return &next, nil
	}
}

func TestFollowThroughAPipe(t *testing.T) {
	pulling := *underWay(0)
	pulling.Phase, pulling.PulledBytes = api.PhasePulling, 250*mib
	var out bytes.Buffer
	e, err := Follow(t.Context(), &out, Live, time.Millisecond, answers(pulling, *underWay(5), *underWay(6), *ended()))
	if err != nil || e.Status != "FAILED" {
		t.Fatalf("%v, %v", e, err)
	}
	golden(t, "pipe.txt", out.String())
}

func TestFollowAsJSON(t *testing.T) {
	var out bytes.Buffer
	if _, err := Follow(t.Context(), &out, JSONLines, time.Millisecond, answers(*underWay(5), *underWay(5), *ended())); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines for two answers that differ:\n%s", len(lines), out.String())
	}
	for i, want := range []*api.Execution{underWay(5), ended()} {
		var got api.Execution
		if err := json.Unmarshal([]byte(lines[i]), &got); err != nil {
			t.Fatalf("%v: %s", err, lines[i])
		}
		if got.Status != want.Status || got.Destinations[6].Bucket != want.Destinations[6].Bucket {
			t.Errorf("%s", lines[i])
		}
	}
	if strings.ContainsAny(out.String(), "\x1b\u202e\u009b") {
		t.Errorf("what a terminal obeys: %q", out.String())
	}
}

func TestFollowGivesUp(t *testing.T) {
	gone := &api.StatusError{Code: http.StatusGone, Body: api.Error{Error: "superseded"}}
	asked := 0
	_, err := Follow(t.Context(), io.Discard, Live, time.Microsecond, func(context.Context) (*api.Execution, error) {
		if asked++; asked == 3 {
			return nil, gone
		}
		return nil, errors.New("no answer")
	})
	if !errors.Is(err, gone) || asked != 3 {
		t.Errorf("%v after %d questions, want the answer that will not change", err, asked)
	}
	asked = 0
	nobody := errors.New("nobody there")
	get := func(context.Context) (*api.Execution, error) {
		asked++
		return nil, nobody
	}
	if _, err := Follow(t.Context(), io.Discard, Live, time.Microsecond, get); !errors.Is(err, nobody) || asked != patience+1 {
		t.Errorf("%v after %d questions", err, asked)
	}
}

// TestScreen draws frames over each other, in a terminal that becomes narrower
// between them.
// A proxy's 503 while the seeder restarts is waited out, and a host that says nothing is
// not waited for.
func TestFollowOverARestart(t *testing.T) {
	asked := 0
	get := func(ctx context.Context) (*api.Execution, error) {
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > askTimeout {
			t.Errorf("a question without a bound: %v %v", deadline, ok)
		}
		if asked++; asked < 4 {
			return nil, &api.StatusError{Code: http.StatusServiceUnavailable}
		}
		return ended(), nil
	}
	if e, err := Follow(t.Context(), io.Discard, Silent, time.Millisecond, get); err != nil || !e.Ended() || asked != 4 {
		t.Errorf("%v, %v after %d questions", e, err, asked)
	}
}

func TestScreen(t *testing.T) {
	seen := terminaltest.NewScreen(40)
	s := &screen{w: newlines{seen}, size: func() (int, int) { return 40, 24 }, coloured: true}
	b := newExecutionBars(s)
	for i := range int64(5) {
		b.update(underWay(i), began.Add(time.Duration(i)*time.Second))
	}
	b.trouble(errors.New("no answer"), began)
	if got := seen.String(); !strings.Contains(got, "the seeder does not answer") {
		t.Errorf("trouble is not shown:\n%s", got)
	}
	e := ended()
	b.update(e, began.Add(time.Minute))
	conclude(s, e)
	golden(t, "screen-40.txt", seen.String())
	if wrapped := seen.Wrapped(); len(wrapped) > 0 {
		t.Errorf("wrapped: %q", wrapped)
	}
	if unknown := seen.Unknown(); len(unknown) > 0 {
		t.Errorf("escapes that are not ours: %q", unknown)
	}

	s.drawn = []int{79, 20, 80}
	for width, want := range map[int]int{100: 3, 80: 3, 40: 5, 39: 7} {
		if got := s.above(width); got != want {
			t.Errorf("at %d columns the last frame takes %d lines, want %d", width, got, want)
		}
	}
}

// newlines does what a terminal does to them.
type newlines struct{ w io.Writer }

func (n newlines) Write(p []byte) (int, error) {
	_, err := n.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n")))
	return len(p), err
}

func TestWatchAgent(t *testing.T) {
	status := api.AgentStatus{Node: "agent-a\x1b[2J", Bucket: "region-a-builds", Region: "region-a", Version: "v1",
		Members: make([]api.Member, 3), BadPeers: make([]api.BadPeer, 1),
		Builds: []api.Build{
			{Key: "build.zip", ExecutionID: "1", Size: 100 * mib, State: api.StateDownloading, VerifiedBytes: 10 * mib, DownRate: 3 * mib, UpRate: mib},
			{Key: "old.zip", ExecutionID: "2", Size: mib, State: api.StateLanded, UpRate: mib},
			{Key: "bad.zip", ExecutionID: "3", Size: mib, State: api.StateFailed, Error: "access denied"},
		}}
	later := status
	later.Builds = append([]api.Build{}, status.Builds...)
	later.Builds[0].State = api.StateLanded

	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	get := answers(status, status, later)
	calls := 0
	err := WatchAgent(ctx, &out, Live, time.Millisecond, func(ctx context.Context) (*api.AgentStatus, error) {
		if calls++; calls > 5 {
			cancel()
			return nil, ctx.Err()
		}
		return get(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "agent-pipe.txt", out.String())

	b := &agentBars{}
	var text strings.Builder
	for _, width := range []int{40, 80} {
		b.frame(&status, began)
		status.Builds[0].VerifiedBytes += 5 * mib
		for _, line := range b.frame(&status, began.Add(time.Second)).lines(width, 24, false) {
			text.WriteString(line + "\n")
		}
	}
	golden(t, "agent-frame.txt", text.String())

	nobody := errors.New("nobody there")
	if err := WatchAgent(t.Context(), io.Discard, Live, time.Millisecond, func(context.Context) (*api.AgentStatus, error) { return nil, nobody }); !errors.Is(err, nobody) {
		t.Errorf("%v, want to hear at once that nobody is there", err)
	}
}

func TestWatchExecutions(t *testing.T) {
	page := api.Executions{Executions: []api.Execution{*underWay(5), *ended()}}
	page.Executions[1].ExecutionID, page.Executions[1].Key = "01K0Z4V5QW8TQ0H6Q9M3N7R2XA", "older.zip"
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	calls := 0
	if err := WatchExecutions(ctx, &out, Live, time.Millisecond, func(ctx context.Context) (*api.Executions, error) {
		if calls++; calls > 3 {
			cancel()
			return nil, ctx.Err()
		}
		return &page, nil
	}); err != nil {
		t.Fatal(err)
	}
	golden(t, "list-pipe.txt", out.String())
	s := &screen{w: io.Discard, size: func() (int, int) { return 80, 24 }}
	b := &listBars{screen: s}
	b.update(&page, began)
	golden(t, "list-frame.txt", strings.Join(b.last.lines(80, 24, false), "\n")+"\n")
}

func TestUpload(t *testing.T) {
	body := strings.NewReader("0123456789")
	seen := terminaltest.NewScreen(40)
	s := &screen{w: newlines{seen}, size: func() (int, int) { return 40, 24 }}
	u := &Upload{body: body, name: "build.zip", size: 10, stop: func() {}, screen: s, bars: newExecutionBars(s)}
	if _, err := io.CopyN(io.Discard, u, 5); err != nil {
		t.Fatal(err)
	}
	e := &api.Execution{Status: "IN_PROGRESS", Phase: api.PhaseUploading, Size: 10, PulledBytes: 5, Destinations: []api.Destination{
		{Bucket: "region-a-builds", State: api.StateLanding, VerifiedBytes: 4, LandedBytes: 2}, {Bucket: "region-b-builds", State: api.StateQueued},
	}}
	u.distributed(e, began)
	for _, want := range []string{"uplo", " 50%", "\na ", " 30% landing", "\nb ", "0 of 2 landed"} {
		if !strings.Contains(seen.String(), want) {
			t.Errorf("while it goes up, without %q:\n%s", want, seen)
		}
	}
	if n := strings.Count(seen.String(), "\n"); n > 4 {
		t.Errorf("%d lines:\n%s", n, seen)
	}
	if _, err := io.Copy(io.Discard, u); err != nil {
		t.Fatal(err)
	}
	u.Done()
	if got := seen.String(); strings.Contains(got, "\na ") { // Follow shows them anew
		t.Errorf("when it has gone up:\n%s", got)
	}
	if got := seen.String(); !strings.Contains(got, "100%") || !strings.Contains(got, "uplo") || len(seen.Wrapped()) > 0 {
		t.Errorf("%s", got)
	}
}

// TestJSON is the form that programs read: docs/cli.md says what the fields mean.
func TestJSON(t *testing.T) {
	var out bytes.Buffer
	if err := JSON(&out, ended()); err != nil {
		t.Fatal(err)
	}
	golden(t, "execution.json", out.String())
	out.Reset()
	if err := JSON(&out, map[string]string{"k": "\u009b31m\u202e\U000e0001<&>é"}); err != nil {
		t.Fatal(err)
	}
	if want := "{\n  \"k\": \"\\u009b31m\\u202e\\udb40\\udc01<&>é\"\n}\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// A pipe hears every stillEvery how things stand, and what happens after the last part.
func TestPipeIsNotSilent(t *testing.T) {
	var out strings.Builder
	l := &executionLines{lines: lines{w: &out, who: "seeder"}}
	e := &api.Execution{Status: "IN_PROGRESS", Phase: api.PhaseDistributing, Size: 100, Destinations: []api.Destination{
		{Bucket: "a", State: api.StateLanding, LandedBytes: 100}, {Bucket: "b", State: api.StateLanded},
	}}
	began := time.Unix(1, 0)
	l.update(e, began)
	said := out.Len()
	l.update(e, began.Add(stillEvery-1))
	if out.Len() != said {
		t.Errorf("said too early: %s", &out)
	}
	l.update(e, began.Add(stillEvery))
	l.update(e, began.Add(stillEvery+1))
	e.Destinations[0].Took = &api.Took{Recording: 1}
	l.update(e, began.Add(stillEvery+2))
	at := began.Add(stillEvery + 3)
	l.trouble(errors.New("refused\x1b"), at)
	l.trouble(errors.New("refused"), at.Add(stillEvery-1))
	l.trouble(errors.New("no host"), at.Add(stillEvery))
	l.update(e, at.Add(stillEvery+1))
	e.Destinations[0].State = api.StateLanded
	l.update(e, at.Add(stillEvery+2))
	l.update(e, at.Add(2*stillEvery+2))
	e.Phase, e.PulledBytes = api.PhasePulling, 30
	l.update(e, at.Add(3*stillEvery+2))
	e.Status = "COMPLETED"
	l.update(e, at.Add(4*stillEvery+2))
	if want := `a: completing
b: landed in 0.0 s
a: still completing
a: recording
the seeder does not answer, trying again: refused�
the seeder does not answer, trying again: no host
the seeder answers again
a: landed in 0.0 s
still IN_PROGRESS, distributing, 2 of 2 landed
the seeder still pulls the build: 30%
`; out.String() != want {
		t.Errorf("%q, want %q", &out, want)
	}
}

// Destinations without an agent are shown before a build is stuck on them.
func TestUnserved(t *testing.T) {
	page := &api.Executions{Unserved: []api.Unserved{
		{Bucket: "region-b-builds"}, {Bucket: "region-d-builds", Error: "agent d does not trust\x1b[2J"}, {Bucket: "region-c-builds"},
	}}
	want := "no agent serves region-b-builds, region-c-builds\nno agent serves region-d-builds: agent d does not trust\ufffd[2J\n"
	var list, lines strings.Builder
	if err := Executions(&list, page); err != nil || !strings.HasSuffix(list.String(), want) {
		t.Errorf("%v: %s", err, &list)
	}
	l := &listLines{}
	l.w = &lines
	l.update(page, began)
	l.update(page, began)
	l.update(&api.Executions{}, began)
	if want = "nothing has been distributed yet\n" + want + "each destination has an agent\n"; lines.String() != want {
		t.Errorf("%s, want %s", &lines, want)
	}
	b := &listBars{screen: &screen{w: io.Discard, size: func() (int, int) { return 80, 24 }}}
	b.update(page, began)
	if text := strings.Join(b.last.lines(80, 24, false), "\n"); !strings.HasPrefix(text, "no agent serves region-b-builds, region-c-builds\n") {
		t.Error(text)
	}
}

// Nor are the two that end with Ctrl-C alone.
func TestWatchIsNotSilent(t *testing.T) {
	var out strings.Builder
	l := &listLines{lines: lines{w: &out, who: "seeder"}}
	page := &api.Executions{Executions: []api.Execution{*underWay(10)}}
	l.update(page, began)
	l.update(page, began.Add(stillEvery-1))
	l.update(page, began.Add(stillEvery))
	l.trouble(errors.New("refused"), began.Add(stillEvery+1))
	page.Executions[0].Status = "COMPLETED"
	l.update(page, began.Add(stillEvery+2))
	l.update(page, began.Add(2*stillEvery+2))
	l.update(page, began.Add(stillEvery+2+idleEvery))
	want := `01K0Z4V5QW8TQ0H6Q9M3N7R2XD build.zip: IN_PROGRESS, distributing, 1 of 7 landed
01K0Z4V5QW8TQ0H6Q9M3N7R2XD build.zip: still IN_PROGRESS, distributing, 30% of all bytes, 1 of 7 landed
the seeder does not answer, trying again: refused
the seeder answers again
01K0Z4V5QW8TQ0H6Q9M3N7R2XD build.zip: COMPLETED, 1 of 7 landed
nothing is under way
`
	if out.String() != want {
		t.Errorf("%s, want %s", &out, want)
	}

	out.Reset()
	a := &agentLines{lines: lines{w: &out, who: "agent"}}
	s := &api.AgentStatus{Node: "agent-a", Bucket: "a-builds", Region: "a", Version: "v1"}
	a.update(s, began)
	a.update(s, began.Add(idleEvery))
	s.Builds = []api.Build{{Key: "k", Size: 100, State: api.StateDownloading, VerifiedBytes: 40, DownRate: 3 * mib}}
	b, at := &s.Builds[0], began.Add(idleEvery)
	for _, next := range []func(){
		func() {}, func() {},
		func() { b.State, b.LandedBytes = api.StateLanding, 50 },
		func() {},
		func() { b.LandedBytes = 100 },
		func() { b.Recording = true },
		func() { b.Error = "the table does not answer" },
		func() {},
		func() { b.State, b.Error = api.StateLanded, "" },
		func() {},
	} {
		next()
		at = at.Add(stillEvery)
		a.update(s, at)
	}
	a.trouble(errors.New("refused"), at.Add(1))
	want = `agent-a serves a-builds in a (v1)
no build has come by yet
nothing is under way
k: downloading
k: still downloading 40% 3.0 MiB/s
k: landing
k: still landing 50%
k: completing
k: recording
k: recording: the table does not answer
k: still recording: the table does not answer
k: landed
the agent does not answer, trying again: refused
`
	if out.String() != want {
		t.Errorf("%s, want %s", &out, want)
	}
}

// TestStages: completing, recording and waiting for the source are said in tables and bars.
func TestStages(t *testing.T) {
	s := &api.AgentStatus{Builds: []api.Build{
		{Key: "one", Size: 100, State: api.StateLanding, LandedBytes: 100},
		{Key: "two", ExecutionID: "2", Size: 100, State: api.StateLanding, LandedBytes: 100, Recording: true},
		{Key: "three", ExecutionID: "3", Size: 100, State: api.StateDownloading, VerifiedBytes: 40, Waiting: true},
		{Key: "four", ExecutionID: "4", Size: 100, State: api.StateQueued, Waiting: true},
	}}
	e := &api.Execution{Size: 100, Destinations: []api.Destination{
		{Bucket: "one", State: api.StateLanding, LandedBytes: 100, Took: &api.Took{Landing: 3}},
		{Bucket: "two", State: api.StateLanding, LandedBytes: 100, Took: &api.Took{Landing: 3, Recording: 1}},
	}}
	var agent, execution strings.Builder
	if err := errors.Join(AgentStatus(&agent, s), Execution(&execution, e)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"agent":             agent.String(),
		"execution":         execution.String(),
		"bars of the agent": strings.Join((&agentBars{}).frame(s, began).lines(80, 24, false), "\n"),
		"bars":              strings.Join(newExecutionBars(nil).frame(e, began).lines(80, 24, false), "\n"),
	} {
		if !strings.Contains(text, "completing") || !strings.Contains(text, "recording") {
			t.Errorf("%s:\n%s", name, text)
		}
		if n := strings.Count(text, "waiting for the source"); n != 2 && strings.HasSuffix(name, "agent") {
			t.Errorf("%s: waiting for the source %d times:\n%s", name, n, text)
		}
	}
	if text := stands(&s.Builds[2]); text != "waiting for the source, 40% is here" {
		t.Error(text)
	}
}

// TestUploadThroughAPipe: how far it is is said also while nothing is read.
func TestUploadThroughAPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		goingUp := api.Execution{Status: "IN_PROGRESS", Phase: api.PhaseUploading, Size: 3000, PulledBytes: 1000, Destinations: []api.Destination{
			{Bucket: "a", State: api.StateLanding, LandedBytes: 900}, {Bucket: "b", State: api.StateQueued},
		}}
		asked := 0
		get := func(context.Context) (*api.Execution, error) {
			if asked++; asked == 1 {
				return nil, errors.New("no execution yet")
			}
			return &goingUp, nil
		}
		body := NewUpload(&out, Live, "build.zip", strings.NewReader(strings.Repeat("x", 3000)), 3000, time.Second, get)
		if _, err := io.CopyN(io.Discard, body, 1500); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2*stillEvery + 1) // in the bubble's time
		if _, err := io.Copy(io.Discard, body); err != nil {
			t.Fatal(err)
		}
		time.Sleep(stillEvery)
		body.Done()
		time.Sleep(stillEvery)
		questions := asked
		goingUp.Phase, goingUp.Status, goingUp.Destinations[1].State = api.PhaseEnded, "COMPLETED", api.StateLanded
		if e, err := body.Follow(t.Context(), time.Second, get); err != nil || !e.Ended() || asked != questions+1 {
			t.Errorf("%+v, %v after %d questions more", e, err, asked-questions)
		}
		want := "a: landing 30%\nb: the build goes up 33%\n" +
			"uploading build.zip: 50% of 2.9 KiB, 100 B/s\nuploading build.zip: 50% of 2.9 KiB, 0 B/s\n" +
			"uploading build.zip: all is sent, the seeder stores it\nb: landed in 0.0 s\n"
		if !strings.HasPrefix(out.String(), want) || strings.Count(out.String(), "a: ") > 1 {
			t.Errorf("%s, want first %s", &out, want)
		}
	})
	var out bytes.Buffer
	if NewUpload(&out, Silent, "k", strings.NewReader("x"), 1, time.Second, nil).Done(); out.Len() > 0 {
		t.Errorf("shown: %s", &out)
	}
}
