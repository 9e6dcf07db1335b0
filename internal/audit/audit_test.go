package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir string) *Log {
	t.Helper()
	l, err := Open(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func change(n int) api.Change {
	return api.Change{Time: time.Unix(int64(n), 0).UTC(), Action: "POST /deploy", Path: "/deploy", From: "127.0.0.1:1", Status: 202}
}

// What was added is there after the end, with what came before, the newest first.
func TestRecordOutlivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	for n := range 3 {
		l := open(t, dir)
		r := change(n)
		r.Operator, r.About = "ci", map[string]string{"key": "build.zip"}
		l.Add(r, true)
		l.Close()
		l.Close()
		l.Add(r, true) // too late, and no harm
	}
	// A crash in the middle of a line.
	f, err := os.OpenFile(filepath.Join(dir, File), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"time":"2027-01`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	l := open(t, dir)
	got, err := l.Newest(2)
	if err != nil || len(got) != 2 || got[0].Time.Unix() != 2 || got[1].Time.Unix() != 1 || got[0].About["key"] != "build.zip" {
		t.Errorf("%+v, %v", got, err)
	}
	l.Add(change(3), true)
	l.Close()
	if got, err := l.Newest(10); err != nil || len(got) != 4 || got[0].Time.Unix() != 3 {
		t.Errorf("after the half line: %+v, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(dir, File)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// However many changes there are, the files hold no more than the bound; the newest stay.
func TestRecordIsBounded(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	l.most = 512 << 10 // so that it does not take long; nothing is written yet
	line := change(0)
	line.Error = strings.Repeat("x", 10*maxText)
	line.About = map[string]string{"key": strings.Repeat("y", 10*maxText)}
	n := 0
	for more := true; more; n++ {
		r := line
		r.Time, r.About = time.Unix(int64(n), 0).UTC(), map[string]string{"key": line.About["key"]}
		for len(l.queue) == cap(l.queue) { // here nothing is to be lost
			time.Sleep(time.Millisecond)
		}
		l.Add(r, true)
		_, err := os.Stat(filepath.Join(dir, fmt.Sprintf("%s.%d", File, MaxFiles-1)))
		more = errors.Is(err, fs.ErrNotExist) || n%100 != 0
	}
	l.Close()
	all, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(all) != MaxFiles {
		t.Fatalf("%v, %v", all, err)
	}
	for _, name := range all {
		if info, err := os.Stat(name); err != nil || info.Size() > l.most {
			t.Errorf("%s: %v, %v", name, info.Size(), err)
		}
	}
	got, err := l.Newest(1 << 30)
	if err != nil || len(got) != MaxRead || got[0].Time.Unix() != int64(n-1) || got[MaxRead-1].Time.Unix() != int64(n-MaxRead) {
		t.Errorf("%d, %v", len(got), err)
	}
	if len(got[0].Error) > maxText+10 || len(got[0].About["key"]) > maxText+10 {
		t.Errorf("texts of %d and %d bytes", len(got[0].Error), len(got[0].About["key"]))
	}
}

// Those whom nobody knows push out nobody: most of theirs are only counted.
func TestStrangersAreCounted(t *testing.T) {
	l := open(t, t.TempDir())
	now := time.Unix(1000, 0)
	l.now = func() time.Time { return now }
	for n := range 10_000 {
		l.Add(change(n), false)
	}
	l.Add(change(-1), true)
	now = now.Add(2 * refusedEvery)
	for n := range 10 {
		l.Add(change(n), false)
	}
	l.Close()
	got, err := l.Newest(MaxRead)
	if err != nil || len(got) != refusedBurst+1+2 {
		t.Fatalf("%d records, %v", len(got), err)
	}
	if known := got[2]; known.Time.Unix() != -1 || known.Unrecorded != 10_000-refusedBurst {
		t.Errorf("%+v", known)
	}
}

// A disk that takes no more is an error, and a place that there is not.
func TestCannotBeWritten(t *testing.T) {
	l := open(t, t.TempDir())
	full, err := os.OpenFile("/dev/full", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	if _, err := l.append(full, change(1)); err == nil {
		t.Error("a full disk takes more")
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none"), nil); err == nil || !strings.Contains(err.Error(), "record of changes") {
		t.Errorf("no directory: %v", err)
	}
	if none := (*Log)(nil); !none.Add(change(1), false) {
		t.Error("without a record, a change is to be said")
	}
	(*Log)(nil).Close()
}
