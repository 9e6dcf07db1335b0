package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
)

// A file that changes while it is uploaded is said to, and what came of it is not whole.
func TestPublishOfAFileThatChanges(t *testing.T) {
	const size = 8 << 20 // more than what is on the way at a time
	for how, change := range map[string]func(name string) error{
		"grows": func(name string) error {
			f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("more")
			return err
		},
		"is cut short": func(name string) error { return os.Truncate(name, 1000) },
		"is replaced": func(name string) error {
			if err := os.WriteFile(name+".new", make([]byte, size), 0o600); err != nil {
				return err
			}
			return os.Rename(name+".new", name)
		},
	} {
		t.Run(how, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "build.zip")
			if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
				t.Fatal(err)
			}
			whole := make(chan bool, 1)
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, err := io.ReadFull(r.Body, make([]byte, 1000))
				if err == nil {
					err = change(name)
				}
				if err != nil {
					t.Error(err)
				}
				n, err := io.Copy(io.Discard, r.Body)
				whole <- err == nil || n+1000 == size
			}))
			defer s.Close()
			err := app().Run([]string{"seeder", "publish", "--seeder", s.URL, name})
			if err == nil || !strings.Contains(err.Error(), name+" changed while it was uploaded") || strings.Contains(err.Error(), "no seeder answers") {
				t.Errorf("said: %v", err)
			}
			if <-whole {
				t.Error("the seeder took it for whole")
			}
		})
	}
}

// What cannot be a build is refused before anybody is asked.
func TestPublishOfWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	odd := filepath.Join(dir, "bad\xff.zip")
	if err := os.WriteFile(odd, []byte("x"), 0o600); err != nil {
		t.Skipf("no such names here: %v", err)
	}
	for name, want := range map[string]string{
		dir: "not a regular file", os.DevNull: "not a regular file", filepath.Join(dir, "none.zip"): "no such file", odd: "--key",
	} {
		err := app().Run([]string{"seeder", "publish", "--seeder", "http://127.0.0.1:1", name})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// What an execution takes over from the one before is printed, also to who does not wait.
func TestInheritedIsPrinted(t *testing.T) {
	a := &api.DeployAnswer{Superseded: "01K0Z4V5QW8TQ0H6Q9M3N7R2XD", Inherited: []string{"region-c-builds", "region-d-builds"}}
	if text := inherited(a); !strings.Contains(text, "region-c-builds, region-d-builds") || !strings.Contains(text, a.Superseded) {
		t.Errorf("printed %q", text)
	}
	if text := inherited(&api.DeployAnswer{Superseded: "x"}); text != "" {
		t.Errorf("printed %q of nothing", text)
	}
}
