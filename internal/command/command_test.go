package command

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestInterspersed(t *testing.T) {
	app := &cli.App{
		Flags: []cli.Flag{String("dir", "", "")},
		Commands: []*cli.Command{{Name: "publish", Flags: []cli.Flag{
			String("dir", "", ""), String("key", "", ""), Bool("no-wait", ""), Output(),
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
		{"app --dir x publish build.zip", "app publish --dir x build.zip"},
		{"app --dir=x publish build.zip --no-wait", "app publish --dir=x --no-wait build.zip"},
		{"app --dir publish", "app --dir publish"},
		{"app --dir publish publish", "app publish --dir publish"},
		{"app --dir x", "app --dir x"},
		{"app --dir x unknown", "app --dir x unknown"},
		{"app --dir x -- publish", "app --dir x -- publish"},
		{"app --help publish", "app --help publish"},
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

// Compose and unit files write "not set" as an empty variable; elements of lists go
// missing the same way.
func TestEmptyIsUnset(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		args string
		want string
	}{
		{nil, "", "127.0.0.1:1 on [] .zip 5"},
		{map[string]string{"LISTEN": "", "FALLBACK": "", "JOIN": "", "SUFFIX": "", "PARALLEL": ""}, "", "127.0.0.1:1 on [] .zip 5"},
		{map[string]string{"LISTEN": " \t", "FALLBACK": " ", "JOIN": "  ", "SUFFIX": "\n", "PARALLEL": " "}, "", "127.0.0.1:1 on [] .zip 5"},
		{map[string]string{"LISTEN": ":2", "FALLBACK": "false", "JOIN": " a, ,b,", "SUFFIX": ".tar", "PARALLEL": "6"}, "", ":2 off [a b] .tar 6"},
		{map[string]string{"JOIN": ",", "LISTEN": ""}, "--join x,,y --join , --suffix=", "127.0.0.1:1 on [x y]  5"},
		{map[string]string{"JOIN": "a"}, "--join=", "127.0.0.1:1 on [] .zip 5"},
		{nil, "--advertise= --fallback=false", "127.0.0.1:1 off [] .zip 5"},
		{nil, "--listen=", "--listen is empty"},
		{nil, "--key=", "--key is empty"},
		{nil, "--bucket=", "--bucket is empty"},
	} {
		for name, value := range c.env {
			t.Setenv("LANDFALL_"+name, value)
		}
		var got string
		app := &cli.App{Commands: []*cli.Command{{
			Name: "run",
			Flags: []cli.Flag{
				Required("bucket", ""), String("listen", "127.0.0.1:1", ""), Switch("fallback", true, ""), Strings("join", ""),
				Text("suffix", ".zip", ""), Int("parallel", 5, ""), String("advertise", "", ""), File("key", ""),
			},
			Action: func(c *cli.Context) error {
				on := map[bool]string{true: "on", false: "off"}[c.Bool("fallback")]
				got = fmt.Sprintf("%s %s %v %s %d", c.String("listen"), on, c.StringSlice("join"), c.String("suffix"), c.Int("parallel"))
				return nil
			},
		}}}
		err := Run(t.Context(), app, append([]string{"app", "run", "--bucket", "b"}, strings.Fields(c.args)...))
		if usage := (UsageError{}); errors.As(err, &usage) {
			got = err.Error()
		} else if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("%v %q: %q, want %q", c.env, c.args, got, c.want)
		}
		for name := range c.env {
			os.Unsetenv("LANDFALL_" + name)
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

func TestAsCalled(t *testing.T) {
	const text = "no table: make it with `seeder init`, or `agent run --help`; seeder is up"
	for program, want := range map[string]string{
		"seeder":      text,
		"bin/agent":   "no table: make it with `bin/seeder init`, or `bin/agent run --help`; seeder is up",
		"/a b/seeder": "no table: make it with `'/a b/seeder' init`, or `'/a b/agent' run --help`; seeder is up",
	} {
		if got := asCalled(program, text); got != want {
			t.Errorf("%s: %s", program, got)
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
