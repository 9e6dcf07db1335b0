package fresh

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// age is how long ago the last file was written, as write says; each time another.
var age = time.Hour

// write replaces a file by one that was written a while ago.
func write(t *testing.T, file, text string) {
	t.Helper()
	age -= time.Second
	then := time.Now().Add(-age)
	if err := errors.Join(os.WriteFile(file+".new", []byte(text), 0o600), os.Chtimes(file+".new", then, then), os.Rename(file+".new", file)); err != nil {
		t.Fatal(err)
	}
}

// A value is read again when one of its files is another one, and what cannot be read
// changes nothing and is said once.
func TestRefresh(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	read := func() (string, error) {
		x, err := os.ReadFile(a)
		if err != nil {
			return "", err
		}
		y, err := os.ReadFile(b)
		if strings.Contains(string(y), "bad") {
			err = errors.New("it is bad")
		}
		return string(x) + string(y), err
	}
	write(t, a, "1")
	if _, err := Open(read, a, b); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	write(t, b, "2")
	v, err := Open(read, a, b)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		change  func()
		changed bool
		err     string
		want    string
	}{
		{func() {}, false, "", "12"},
		{func() { write(t, b, "3") }, true, "", "13"},
		{func() {}, false, "", "13"},
		{func() { write(t, a, "4") }, true, "", "43"},
		{func() { write(t, b, "bad") }, false, "it is bad", "43"},
		{func() {}, false, "", "43"}, // said already
		{func() { os.Remove(b) }, false, "no such file", "43"},
		{func() { os.Remove(b) }, false, "", "43"},
		{func() { write(t, b, "5") }, true, "", "45"},
		{func() { write(t, b, "bad") }, false, "it is bad", "45"},
		{func() { write(t, b, "6") }, true, "", "46"},
		{func() { write(t, b, "bad") }, false, "it is bad", "46"}, // again, since it was good meanwhile
		{func() { write(t, b, "7"); os.Chmod(b, 0o640) }, true, "", "47"},
	} {
		step.change()
		changed, err := v.Refresh()
		if changed != step.changed || (err == nil) != (step.err == "") || err != nil && !strings.Contains(err.Error(), step.err) || v.Load() != step.want {
			t.Errorf("%d: %v, %v, %q", i, changed, err, v.Load())
		}
	}
}

// What an editor has emptied, or has written by half, is not read before it has done.
func TestBeingWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a")
	write(t, file, "one two")
	read := func() (string, error) {
		b, err := os.ReadFile(file)
		return string(b), err
	}
	during := func() {}
	v, err := Open(func() (string, error) { defer during(); return read() }, file)
	if err != nil {
		t.Fatal(err)
	}
	unchanged := func(when string) {
		t.Helper()
		if changed, err := v.Refresh(); changed || err != nil || v.Load() != "one two" {
			t.Errorf("%s: %v, %v, %q", when, changed, err, v.Load())
		}
	}
	for _, text := range []string{"", "three"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		unchanged("being written")
	}
	if got, err := Settled(read, file); got != "" || !errors.Is(err, ErrUnsettled) {
		t.Errorf("being written: %q, %v", got, err)
	}
	write(t, file, "three")
	during = func() { os.Remove(file) }
	unchanged("removed while it was read")
	write(t, file, "three")
	during = func() { write(t, file, "three four") }
	unchanged("written while it was read")
	during = func() {}
	if changed, err := v.Refresh(); !changed || err != nil || v.Load() != "three four" {
		t.Errorf("written: %v, %v, %q", changed, err, v.Load())
	}
	// By a clock that runs ahead of ours: it would never become old enough.
	if err := errors.Join(os.WriteFile(file, []byte("five"), 0o600), os.Chtimes(file, time.Time{}, time.Now().Add(time.Hour))); err != nil {
		t.Fatal(err)
	}
	if got, err := Settled(read, file); got != "five" || err != nil {
		t.Errorf("from the future: %q, %v", got, err)
	}
}

func TestWatch(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a")
	write(t, file, "1")
	v, err := Open(func() (string, error) {
		b, err := os.ReadFile(file)
		if string(b) == "bad" {
			err = errors.New("it is bad")
		}
		return string(b), err
	}, file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	changed, failed, done := make(chan string, 10), make(chan error, 10), make(chan struct{})
	go func() {
		defer close(done)
		v.Watch(ctx, time.Millisecond, func(s string) { changed <- s }, func(err error) { failed <- err })
	}()
	write(t, file, "2")
	if got := <-changed; got != "2" {
		t.Errorf("changed to %q", got)
	}
	write(t, file, "bad")
	if err := <-failed; v.Load() != "2" {
		t.Errorf("%v, %q", err, v.Load())
	}
	cancel()
	<-done
	(*Value[int])(nil).Watch(t.Context(), time.Hour, nil, nil) // returns
	if changed, err := Of(3).Refresh(); changed || err != nil || Of(3).Load() != 3 {
		t.Error("what is no file's has changed")
	}
}
