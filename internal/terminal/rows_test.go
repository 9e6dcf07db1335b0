package terminal

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-runewidth"

	"github.com/landfall-dist/landfall/internal/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares what is shown with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (-update writes it anew): got\n%swant\n%s", file, got, want)
	}
}

const mib = 1 << 20

// began is when the examples did.
var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// underWay is an execution with destinations of every kind, some seconds in.
func underWay(seconds int64) *api.Execution {
	return &api.Execution{
		ExecutionID: "01K0Z4V5QW8TQ0H6Q9M3N7R2XD", Status: "IN_PROGRESS", Phase: api.PhaseDistributing,
		Key: "build.zip", SourceBucket: "global-builds", Size: 1000 * mib, StartTime: began,
		Destinations: []api.Destination{
			{Bucket: "acme-production-builds-ap-southeast-2", State: api.StateDownloading, VerifiedBytes: 12 * mib * seconds, LandedBytes: 8 * mib * seconds},
			{Bucket: "acme-production-builds-eu-west-1", Region: "eu", State: api.StateLanded, VerifiedBytes: 1000 * mib, LandedBytes: 1000 * mib, Seconds: 12.34},
			{Bucket: "region-a-builds", State: api.StateLanding, VerifiedBytes: 1000 * mib, LandedBytes: 90 * mib * seconds},
			{Bucket: "region-b-builds", State: api.StateFailed, VerifiedBytes: 100 * mib, Error: "no space"},
			{Bucket: "region-c-builds", State: api.StateUnserved, Error: "no living member serves this bucket"},
			{Bucket: "region-d-builds", State: api.StateQueued},
			{Bucket: "\x1b[31mregion\u202e", State: "\x1b]0;title\a"},
		},
	}
}

// shown is the frame after ten seconds.
func shown(e func(seconds int64) *api.Execution) frame {
	b := newExecutionBars(nil)
	var f frame
	for s := range int64(11) {
		f = b.frame(e(s), began.Add(time.Duration(s)*time.Second))
	}
	return f
}

func TestFrames(t *testing.T) {
	pulling := func(seconds int64) *api.Execution {
		e := underWay(0)
		e.Phase, e.PulledBytes = api.PhasePulling, 50*mib*seconds
		e.Destinations = e.Destinations[5:6]
		return e
	}
	regions := func(seconds int64) *api.Execution {
		e := underWay(seconds)
		e.Destinations = e.Destinations[2:6]
		return e
	}
	for _, width := range []int{20, 40, 60, 80, 120} {
		var out strings.Builder
		for _, f := range []frame{shown(underWay), shown(pulling), shown(regions)} {
			for _, line := range f.lines(width, 24, false) {
				if n := runewidth.StringWidth(line); n >= width {
					t.Errorf("%d columns of %d: %s", n, width, line)
				}
				out.WriteString(line + "\n")
			}
			out.WriteString("\n")
		}
		golden(t, fmt.Sprintf("frame-%d.txt", width), out.String())
	}
}

// TestFrameSizes draws on terminals of all sizes: nothing is wider or higher.
func TestFrameSizes(t *testing.T) {
	f := shown(underWay)
	f.head = []string{"a head that is longer than some of these terminals are wide"}
	for width := 1; width <= 200; width++ {
		for _, height := range []int{1, 2, 3, 5, 8, 50} {
			lines := f.lines(width, height, false)
			if len(lines) > max(height-1, 1) {
				t.Errorf("%d×%d: %d lines", width, height, len(lines))
			}
			for _, line := range lines {
				if n := runewidth.StringWidth(line); n > max(width-1, 1) {
					t.Errorf("%d×%d: %d columns: %s", width, height, n, line)
				}
			}
		}
	}
}

func TestFrameColours(t *testing.T) {
	text := strings.Join(shown(underWay).lines(80, 24, true), "\n")
	if n := strings.Count(text, "\x1b"); n != 4 {
		t.Errorf("%d escapes, want one word green and one red:\n%q", n, text)
	}
	for _, want := range []string{"\x1b[32mlanded in 12.3 s\x1b[0m", "\x1b[31mfailed\x1b[0m"} {
		if !strings.Contains(text, want) {
			t.Errorf("without %q:\n%q", want, text)
		}
	}
}

func TestRowsThatDoNotFit(t *testing.T) {
	e := underWay(0)
	e.Destinations = nil
	for i := range 30 {
		state := api.StateDownloading
		if i%2 == 0 {
			state = api.StateLanded
		}
		e.Destinations = append(e.Destinations, api.Destination{Bucket: fmt.Sprintf("region-%02d", i), State: state})
	}
	lines := newExecutionBars(nil).frame(e, began).lines(80, 12, false)
	text := strings.Join(lines, "\n")
	if len(lines) != 11 || strings.Contains(text, "landed in") || !strings.Contains(text, "… and 21 more\n15 of 30 landed") {
		t.Errorf("%d lines:\n%s", len(lines), text)
	}
}

func TestCutMiddle(t *testing.T) {
	for _, c := range []struct {
		in    string
		width int
		want  string
	}{
		{"region-a-builds", 15, "region-a-builds"},
		{"region-a-builds", 11, "regio…uilds"},
		{"region-a-builds", 2, "r…"},
		{"建物建物建物", 8, "建物… 物"},
		{"", 0, ""},
		{"abc", 0, ""},
	} {
		if got := cutMiddle(c.in, c.width); got != c.want || runewidth.StringWidth(got) > c.width {
			t.Errorf("%s in %d: %q, want %q", c.in, c.width, got, c.want)
		}
	}
}

func TestShorten(t *testing.T) {
	for _, c := range []struct {
		most     int
		in, want string
	}{
		{15, "region-a-builds region-b-builds", "region-a-builds region-b-builds"},
		{10, "region-a-builds region-b-builds", "region-a region-b"},
		{5, "region-a-builds region-b-builds", "a b"},
		{8, "builds-eu-west-1 builds-ap-west-1", "eu ap"},
		{9, "builds-eu-west-1 builds-ap-west-1", "builds-eu builds-ap"},
		{10, "builds-eu-west-1 builds-ap-southeast-2", "eu-west-1 ap-so…st-2"},
		{5, "region-a-builds", "re…ds"},
		{5, "builds builds", "bu…ds bu…ds"},
	} {
		var rows []row
		for _, name := range strings.Fields(c.in) {
			rows = append(rows, row{name: name})
		}
		rows = append(rows, row{name: "pull", fixed: true})
		names, _ := shorten(rows, c.most)
		if got := strings.Join(names[:len(names)-1], " "); got != c.want || names[len(names)-1] != "pull" {
			t.Errorf("%s in %d: %s, want %s", c.in, c.most, got, c.want)
		}
	}
}

func TestFold(t *testing.T) {
	if got := fold("one two  three-is-long four", 9); got != "one two\nthree-is-long\nfour" {
		t.Errorf("%q", got)
	}
}

func TestShortRate(t *testing.T) {
	for rate, want := range map[float64]string{1: "1B/s", 1023: "1023B/s", 1.2 * mib: "1.2M/s", 12.7 * mib: "12M/s", 1023.9 * mib: "1023M/s"} {
		if got := shortRate(rate); got != want || len(got) > 7 {
			t.Errorf("%v: %s, want %s", rate, got, want)
		}
	}
}
