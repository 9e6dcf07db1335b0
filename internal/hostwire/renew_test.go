package hostwire

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// streams reports why a host gets no stream; nil where it does.
func streams(t *testing.T, at *serving, own *identity.Source) error {
	t.Helper()
	stream, err := Dial(t.Context(), DialConfig{URL: at.url, TLS: ClientTLS(own), Hello: hello()})
	if err == nil {
		stream.Close()
	}
	return err
}

// renewer is that of a host, which knows one agent.
func renewer(at *serving, own *identity.Source) *call.Renewer {
	return &call.Renewer{
		Source: own, Client: NewRenewals(own), Logger: slog.New(slog.DiscardHandler),
		Seeders: func() []string { return []string{strings.TrimPrefix(at.url, "https://")} },
	}
}

// A host renews its certificate at an agent of its region that has the key of the region's
// authority, and of nothing else: when it is a third of a day old, after a month off, and not
// after RenewFor. Who has expired gets a certificate and no stream.
func TestHostsRenew(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		name      string
		away      time.Duration
		due, back bool
	}{
		{"after 7 hours", 7 * time.Hour, false, true},
		{"after 9 hours", 9 * time.Hour, true, true},
		{"after a month off", 31 * day, true, true},
		{"after four months off", 121 * day, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var now atomic.Int64
			now.Store(time.Now().UnixNano())
			clock := identity.Clock(func() time.Time { return time.Unix(0, now.Load()) })
			dir, err := ca.Init(filepath.Join(t.TempDir(), "ca"), "prod", []string{"region-a"}, clock)
			if err != nil {
				t.Fatal(err)
			}
			region, err := ca.OpenRegion(dir.RegionDir("region-a"), "prod", "region-a", clock)
			if err != nil {
				t.Fatal(err)
			}
			files := func(id identity.ID) identity.Files {
				of, err := dir.For(id)
				if err != nil {
					t.Fatal(err)
				}
				key := identitytest.Key(t)
				chain, err := of.Issue(id, key.Public())
				if err != nil {
					t.Fatal(err)
				}
				f := identity.FilesIn(t.TempDir())
				identitytest.Write(t, f, key, chain, dir.Certificate())
				return f
			}
			host := files(identity.ID{Cluster: "prod", Kind: identity.Host, Region: "region-a", Name: "host-1"})
			now.Add(int64(c.away))
			agent := identitytest.Open(t, files(identity.ID{Cluster: "prod", Kind: identity.Agent, Region: "region-a", Name: "agent-1"}), clock)
			s := serve(t, ServeConfig{Identity: agent, Handle: echo, Renew: region.RenewFor})
			own, err := identity.Open(host, clock)
			if !c.back {
				if err == nil || !strings.Contains(err.Error(), "seeder ca issue") {
					t.Errorf("not told what to do: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := streams(t, s, own); (own.Expired() == nil) != (err == nil) {
				t.Errorf("before it is renewed, expired %v: %v", own.Expired(), err)
			}
			r := renewer(s, own)
			if r.Due() != c.due {
				t.Errorf("due: %t", r.Due())
			}
			if err := r.Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := streams(t, s, own); err != nil || r.Due() || own.Expired() != nil {
				t.Errorf("renewed: %v, due %t, %v", err, r.Due(), own.Expired())
			}
			if left := own.Expires().Sub(clock.Now()); left > day || left < 23*time.Hour {
				t.Errorf("it holds for %s", left)
			}
		})
	}
}

// A host whose certificate is of an authority that has ended, as the certificate has with it,
// gets its next one of the region's next authority: whether that came in time or not.
func TestHostsOutliveTheirAuthority(t *testing.T) {
	const day = 24 * time.Hour
	for name, next := range map[string]time.Duration{"replaced in time": 364*day + time.Hour, "replaced too late": 380 * day} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			var now atomic.Int64
			at := func(d time.Duration) { now.Store(begin.Add(d).UnixNano()) }
			at(0)
			clock := identity.Clock(func() time.Time { return time.Unix(0, now.Load()) })
			dir, err := ca.Init(filepath.Join(t.TempDir(), "ca"), "prod", []string{"region-a"}, clock)
			if err != nil {
				t.Fatal(err)
			}
			region, err := ca.OpenRegionDir(dir.RegionDir("region-a"), "prod", "region-a", clock)
			if err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			ctx, cancel := context.WithCancel(t.Context())
			write := func(id identity.ID) string {
				to := t.TempDir()
				if _, err := dir.Write(id, to); err != nil {
					t.Fatal(err)
				}
				return to
			}
			at(364 * day)
			host := write(identity.ID{Cluster: "prod", Kind: identity.Host, Region: "region-a", Name: "host-1"})
			cancel() // looks once
			if region.Run(ctx, slog.New(slog.NewTextHandler(&log, nil))); !strings.Contains(log.String(), "ends soon") {
				t.Errorf("nobody was warned: %s", &log)
			}
			at(next)
			if err := dir.AddRegion("region-a"); err != nil {
				t.Fatal(err)
			}
			minuteAgo := time.Now().Add(-time.Minute) // what was written just now is left alone
			if err := os.Chtimes(filepath.Join(dir.RegionDir("region-a"), "ca.pem"), minuteAgo, minuteAgo); err != nil {
				t.Fatal(err)
			}
			if !region.Refresh(slog.New(slog.DiscardHandler)) || region.Refresh(slog.New(slog.DiscardHandler)) {
				t.Fatal("read again when it has not changed, or not when it has")
			}
			at(385 * day)
			agent, err := identity.Open(identity.FilesIn(write(identity.ID{Cluster: "prod", Kind: identity.Agent, Region: "region-a", Name: "agent-1"})), clock)
			if err != nil {
				t.Fatal(err)
			}
			s := serve(t, ServeConfig{Identity: agent, Handle: echo, Renew: region.RenewFor})
			own, err := identity.Open(identity.FilesIn(host), clock)
			if err != nil {
				t.Fatal(err)
			}
			if err := streams(t, s, own); err == nil {
				t.Error("a certificate that has ended gets a stream")
			}
			r := renewer(s, own)
			if err := r.Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := streams(t, s, own); err != nil {
				t.Error(err)
			}
		})
	}
}

// Nobody else gets a certificate there, and there is none without the authority's key.
func TestWhoMayRenew(t *testing.T) {
	cluster := identitytest.New(t, "prod", nil)
	region, err := cluster.Root.Region("region-a")
	if err != nil {
		t.Fatal(err)
	}
	agent := cluster.Source(t, cluster.Agent("region-a", "agent-1"))
	with := serve(t, ServeConfig{Identity: agent, Handle: echo, Renew: region.RenewFor})
	without := serve(t, ServeConfig{Identity: agent, Handle: echo})
	for name, c := range map[string]struct {
		own    *identity.Source
		at     *serving
		reason string
	}{
		"an agent of the region":   {cluster.Source(t, cluster.Agent("region-a", "agent-2")), with, "is no host of region-a"},
		"a host of another region": {cluster.Source(t, cluster.Host("region-b", "host-1")), with, "is no host of region-a"},
		"without the key":          {cluster.Source(t, cluster.Host("region-a", "host-1")), without, "--host-authority"},
	} {
		client := NewRenewals(c.own)
		client.client.Transport.(*http.Transport).TLSClientConfig = c.own.Client(proto, nil) // whoever answers
		addr := strings.TrimPrefix(c.at.url, "https://")
		r := call.Renewer{Source: c.own, Client: client, Seeders: func() []string { return []string{addr} }, Logger: slog.New(slog.DiscardHandler)}
		if err := r.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := client.Renew(t.Context(), addr, make([]byte, maxRequest+1)); err == nil {
			t.Errorf("%s: a request that is too long", name)
		}
	}
}
