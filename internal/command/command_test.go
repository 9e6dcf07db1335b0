package command

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestInterspersed(t *testing.T) {
	app := &cli.App{
		Flags: []cli.Flag{String("dir", "", "")},
		Commands: []*cli.Command{{Name: "publish", Flags: []cli.Flag{
			String("key", "", ""), Bool("no-wait", ""), Output(),
		}}},
	}
	for _, c := range []struct{ in, want string }{
		{"app", "app"},
		{"app --dir x", "app --dir x"},
		{"app publish build.zip", "app publish build.zip"},
		{"app publish build.zip --no-wait", "app publish --no-wait build.zip"},
		{"app publish build.zip --key a -o json", "app publish --key a -o json build.zip"},
		{"app publish build.zip --key=a", "app publish --key=a build.zip"},
		{"app publish --no-wait build.zip --key a", "app publish --no-wait --key a build.zip"},
		{"app publish --key a -- --odd", "app publish --key a -- --odd"},
		{"app publish -", "app publish -"},
		{"app unknown x --dir y", "app unknown x --dir y"},
	} {
		if got := interspersed(app, strings.Fields(c.in)); !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s: %v, want %s", c.in, got, c.want)
		}
	}
}

// A key is whatever somebody has called an object: it must not look like lines or
// attributes of the log.
func TestKeysInLogs(t *testing.T) {
	key := "a.zip\ntime=2026-01-01T00:00:00Z level=ERROR msg=\"all is lost\" executionId=x\x1b[31m"
	for _, format := range []string{"text", "json"} {
		var log bytes.Buffer
		app := &cli.App{Flags: LogFlags(), Action: func(c *cli.Context) error {
			logger, err := Logger(c, &log)
			if err == nil {
				logger.Info("heard", "key", key)
			}
			return err
		}}
		if err := app.Run([]string{"app", "--log-format", format}); err != nil {
			t.Fatal(err)
		}
		if s := log.String(); strings.Count(s, "\n") != 1 || strings.Contains(s, "\x1b") || !strings.Contains(s, `\nt`) {
			t.Errorf("%s: %q", format, s)
		}
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "4096": 4096, "1KiB": 1 << 10, "20GiB": 20 << 30, "1.5MiB": 3 << 19, "500MB": 500e6, "7B": 7,
	} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("%s: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "x", "-1", "1 parsec", "9e30", "NaN"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q: %d", in, got)
		}
	}
	for in, want := range map[string]int64{"1Gbit": 125e6, "400Mbit/s": 50e6, "0.5Kbit": 62, "50MB": 50e6, "1MiB/s": 1 << 20, "": -1, "1 parsec": -1, "-1Mbit": -1, "NaNGbit": -1, "9e30Gbit": -1} {
		if got, err := ParseRate(in); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for in, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 19: "1.5 MiB", 5 << 40: "5.0 TiB"} {
		if got := FormatSize(in); got != want {
			t.Errorf("%d: %s, want %s", in, got, want)
		}
	}
}

func TestPlain(t *testing.T) {
	if got := Plain("a\x1b[2J\u009b\u202e\xff\né"); got != "a�[2J����é" {
		t.Errorf("%q", got)
	}
	if got := plainLines("one\x1b\ntwo"); got != "one�\ntwo" {
		t.Errorf("%q", got)
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{
		"build.zip": "build.zip", "http://127.0.0.1:7070": "http://127.0.0.1:7070",
		"": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'", "~": "'~'", "a\\b": `'a\b'`,
	} {
		if got := Quote(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"run", "publish", "list", "status", "cancel", "retry", "init", "keygen", "health"}
	for in, want := range map[string]string{
		"statsu": "status", "pubish": "publish", "lst": "list", "cancle": "cancel", "nonsense": "", "": "", "xyz": "",
	} {
		if got := nearest(in, names); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}
