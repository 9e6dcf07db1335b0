package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/clustertest"
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

// What is published with a priority has it, a file from its first byte on.
func TestPublishWithPriority(t *testing.T) {
	c := clustertest.Start(t, cloud, clustertest.Options{Regions: 1})
	to, err := url.Parse(c.Seeder.URL)
	if err != nil {
		t.Fatal(err)
	}
	uploads := make(chan string, 1) // with which priority
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = to.Host
		if r.In.Method == http.MethodPut {
			uploads <- r.In.URL.Query().Get("priority")
		}
	}})
	defer proxy.Close()
	publish := func(args ...string) {
		t.Helper()
		if out, err := binary(nil, append(append([]string{"publish"}, args...), "--seeder", proxy.URL)...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	has := func(key, priority string) {
		t.Helper()
		e, err := c.Seeder.ByKey(t.Context(), key)
		if err != nil || e.Priority != priority || e.Status != "COMPLETED" || c.Record(key).High != (priority == api.PriorityHigh) {
			t.Errorf("%s: %+v, in the table high: %v; %v", key, e, c.Record(key).High, err)
		}
	}
	for key, priority := range map[string]string{"urgent.zip": api.PriorityHigh, "usual.zip": api.PriorityNormal} {
		publish(build(t, key), "--priority", priority)
		want := api.Priority(priority == api.PriorityHigh)
		if sent := <-uploads; sent != want {
			t.Errorf("%s was uploaded with priority %q", key, sent)
		}
		has(key, want)
	}
	c.Put("stored.bin", []byte("stored"), nil)
	publish("s3://"+c.Global+"/stored.bin", "--priority", "high")
	has("stored.bin", api.PriorityHigh)
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
