package clustertest

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// conditional reports whether a request completes an upload under a condition.
func conditional(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") &&
		(r.Header.Get("If-Match") != "" || r.Header.Get("If-None-Match") != "")
}

// An agent does not begin to work with a store that lacks a guarantee.
func TestWeakStoreIsRefused(t *testing.T) {
	var weak atomic.Bool
	c := Start(t, cloud, Options{Regions: 1, AWS: refusing(func(r *http.Request) (int, string) {
		if weak.Load() && conditional(r) {
			return http.StatusNotImplemented, "NotImplemented"
		}
		return 0, ""
	})})
	weak.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), Timeout)
	defer cancel()
	_, done, err := c.cluster.RunAgent(ctx, c.Regions[0], "weak")
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), string(bucket.NoConditions)) || !strings.Contains(err.Error(), "--allow-weak-store") {
		t.Errorf("agent ended with %v", err)
	}
}

// With --allow-weak-store it lands all the same, over another object too.
func TestWeakStoreIsAllowed(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1, AllowWeakStore: true, AWS: refusing(func(r *http.Request) (int, string) {
		if conditional(r) {
			return http.StatusNotImplemented, "NotImplemented"
		}
		return 0, ""
	})})
	for _, content := range []string{"first", "second", ""} {
		c.Publish("build.tar", []byte(content))
	}
}

// A store that cannot be reached when the agent starts is asked again.
func TestStoreIsAway(t *testing.T) {
	var away, asked atomic.Bool
	c := Start(t, cloud, Options{Regions: 1, AWS: refusing(func(r *http.Request) (int, string) {
		if away.Load() && strings.Contains(r.URL.Path, "/"+bucket.OwnPrefix) {
			asked.Store(true)
			return http.StatusForbidden, "AccessDenied"
		}
		return 0, ""
	})})
	away.Store(true)
	second, _ := c.AddAgent(0, "second")
	c.Until("the store was asked", asked.Load)
	if second.Ready(t.Context()) == nil {
		t.Error("ready before its store is known")
	}
	away.Store(false)
	c.Until("it is ready", func() bool { return second.Ready(t.Context()) == nil })
}

// Landfall's own keys are not distributed.
func TestOwnKeysStay(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1})
	key := bucket.OwnPrefix + "a.zip"
	store(t, c, key, []byte("own"), bucket.Headers{})
	store(t, c, "later.zip", []byte("build"), bucket.Headers{})
	c.Until("a build that came later arrives", func() bool { return has(t, c, 0, "later.zip", bucket.Headers{}) })
	if list, err := c.Seeder.Executions(t.Context(), 10, ""); err != nil || len(list.Executions) != 1 {
		t.Errorf("executions %+v, %v", list, err)
	}
	if has(t, c, 0, key, bucket.Headers{}) {
		t.Error("it was distributed")
	}
}
