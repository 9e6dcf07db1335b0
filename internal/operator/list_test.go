package operator

import (
	"context"
	"encoding/base64"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2027, 1, 31, 12, 0, 0, 0, time.UTC)

func TestOperators(t *testing.T) {
	file := filepath.Join(t.TempDir(), "operators")
	if _, err := NewAccess("", file); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "seeder operator add") {
		t.Errorf("without a file: %v", err)
	}
	if err := Remove(file, "ci"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed from no file: %v", err)
	}
	ci, err := Add(file, "ci", Publish, noon)
	if err != nil {
		t.Fatal(err)
	}
	ann, err := Add(file, "ann", Admin, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ci", "", "Ann", "a b", "a\nb", "-x", strings.Repeat("a", 65)} {
		if _, err := Add(file, name, View, noon); err == nil {
			t.Errorf("%q was added", name)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(text), string(ci)) || strings.Contains(string(text), string(ann)) {
		t.Errorf("the file has a token: %s, %v", text, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	a, err := NewAccess("the-token-of-all-roles", file)
	if err != nil {
		t.Fatal(err)
	}
	before := noon.Add(-time.Second)
	for given, want := range map[string]struct {
		at   time.Time
		name string
		role Role
		err  error
	}{
		"":                        {before, "", 0, ErrMissing},
		"wrong":                   {before, "", 0, ErrWrong},
		strings.Repeat("a", 5000): {before, "", 0, ErrWrong},
		string(ci):                {before, "ci", Publish, nil},
		string(ann):               {noon.Add(1e6 * time.Hour), "ann", Admin, nil},
		"the-token-of-all-roles":  {noon, TokenName, Admin, nil},
	} {
		got, err := a.Who(given, want.at)
		if got.Name != want.name || got.Role != want.role || !errors.Is(err, want.err) {
			t.Errorf("%.10q: %s %s, %v", given, got.Name, got.Role, err)
		}
	}
	if got, err := a.Who(string(ci), noon); !errors.Is(err, ErrExpired) || got.Name != "ci" || !strings.Contains(err.Error(), "2027-01-31T12:00:00Z") {
		t.Errorf("expired: %+v, %v", got, err)
	}
	if err := Remove(file, "bob"); !errors.Is(err, ErrNoOperator) {
		t.Errorf("removed bob: %v", err)
	}
	if err := Remove(file, "ci"); err != nil {
		t.Fatal(err)
	}
	list, err := ReadList(file)
	if shown := List(list, noon); err != nil || len(shown) != 1 || shown[0].Name != "ann" || shown[0].Expires != nil || shown[0].Role != "admin" {
		t.Errorf("%+v, %v", shown, err)
	}
	if a, err := NewAccess("", ""); a != nil || err != nil {
		t.Errorf("no token is asked for: %v, %v", a, err)
	}
}

func TestListRefuses(t *testing.T) {
	hash := func(b byte) string {
		return hashPrefix + base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat(string(rune(b)), 32)))
	}
	for text, want := range map[string]string{
		"# none\n\n  \n": "",
		"ci view never " + hash('a') + "\n\tbob admin 2027-01-31T00:00:00Z " + hash('b'): "",
		"ci view never " + hash('a') + "\nci view never " + hash('b'):                    "line 2: ci is there twice",
		"ci view never " + hash('a') + "\nbob view never " + hash('a'):                   "line 2: bob has another's token",
		"ci view never":                         "3 words",
		"ci root never " + hash('a'):            `role is "root"`,
		"ci anyone never " + hash('a'):          `role is "anyone"`,
		"ci nobody never " + hash('a'):          `role is "nobody"`,
		"ci view tomorrow " + hash('a'):         "expiry is",
		"CI view never " + hash('a'):            "name is",
		"ci view never md5:abcd":                "hash of ci",
		"ci view never " + hash('a') + "x":      "hash of ci",
		"ci view never sha256:****":             "hash of ci",
		strings.Repeat("a", maxLine+1) + " b c": "at most 512",
	} {
		list, err := parseList(text)
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), hash('a')[10:])) {
			t.Errorf("%.80q: %d, %v, want %q", text, len(list), err, want)
		}
	}
	var many strings.Builder
	for i := range maxOperators + 1 {
		sum := [32]byte{byte(i), byte(i >> 8)}
		many.WriteString(Operator{Name: "n" + base64.RawURLEncoding.EncodeToString(nil) + time.Duration(i).String(), Role: View, hash: sum}.line())
	}
	if _, err := parseList(strings.ReplaceAll(many.String(), "µ", "u")); err == nil || !strings.Contains(err.Error(), "more than 1000") {
		t.Errorf("too many: %v", err)
	}
	file := filepath.Join(t.TempDir(), "operators")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadList(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("everybody may read it: %v", err)
	}
}

// The file is read again when it changes, and what cannot be read changes nothing.
func TestAccessIsReadAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "operators")
	first, err := Add(file, "first", View, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewAccess("", file)
	if err != nil {
		t.Fatal(err)
	}
	said := make(lines, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.run(ctx, slog.New(slog.NewTextHandler(said, nil)), 10*time.Millisecond)
	}()
	second, err := Add(file, "second", Admin, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	said.await(t, "operators changed")
	if o, err := a.Who(string(second), noon); err != nil || o.Role != Admin {
		t.Errorf("%+v, %v", o, err)
	}
	if err := Remove(file, "first"); err != nil {
		t.Fatal(err)
	}
	said.await(t, "operators changed")
	if _, err := a.Who(string(first), noon); !errors.Is(err, ErrWrong) {
		t.Errorf("removed: %v", err)
	}
	if err := os.WriteFile(file, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	said.await(t, "operators not read again")
	if o, err := a.Who(string(second), noon); err != nil || o.Role != Admin {
		t.Errorf("after nonsense: %+v, %v", o, err)
	}
	cancel()
	<-done
}

// lines is a log that hands on each line.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func (l lines) await(t *testing.T, want string) {
	t.Helper()
	for line := range l {
		if strings.Contains(line, want) {
			return
		}
	}
}
