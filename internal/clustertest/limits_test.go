package clustertest

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/seeder/client"
)

func rate(n int64) *api.Rate { r := api.Rate(n); return &r }

// waited is what a member says of how long transfers waited for the limit of a direction.
func waited(t *testing.T, member *client.Client, direction string) float64 {
	t.Helper()
	return scrapeOf(t, member).samples[`landfall_rate_limit_wait_seconds_total{direction="`+direction+`"}`]
}

// Each limit holds something back, shows everywhere, and changes for what waits already:
// with the least rates a build would take minutes, and without them it lands.
func TestLimits(t *testing.T) {
	const size = 60 << 20
	least := rate(limits.MinRate)
	for direction, change := range map[string]api.LimitsChange{
		"source":   {SourceRate: least},
		"upload":   {UploadRate: least},
		"download": {DownloadRate: least},
		"landing":  {LandingRate: least},
	} {
		t.Run(direction, func(t *testing.T) {
			t.Parallel()
			c := Start(t, cloud, Options{Regions: 2, Limits: change, FallbackAfter: 5 * time.Second, OperatorToken: "the-token-of-this-test"})
			members := append([]*client.Client{c.Seeder}, c.Agents...)
			held := members[1:]
			if direction == "source" || direction == "upload" {
				held = members[:1]
			}
			c.Put("build.bin", content(1, size), nil)
			id := c.Deploy("build.bin").ExecutionID
			for _, m := range held {
				c.Until("transfers wait", func() bool { return waited(t, m, direction) > 3 })
				if !strings.Contains(scrapeOf(t, m).text, `landfall_rate_limit_bytes_per_second{direction="`+direction+`"} 125000`) {
					t.Error("the limit is not among the metrics")
				}
			}
			for _, a := range c.Agents {
				s, err := a.AgentStatus(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if all, err := a.Limits(t.Context()); err != nil || !same(t, *all, s.Limits) || *all.LandingRate+all.UploadRate+all.DownloadRate+all.SourceRate != limits.MinRate {
					t.Errorf("limits are %+v, in the status %+v (%v)", all, s.Limits, err)
				}
			}
			if e, err := c.Seeder.Execution(t.Context(), id); err != nil || e.Ended() {
				t.Errorf("%d bytes went through at %d bytes/s: %+v, %v", size, limits.MinRate, e, err)
			}
			for _, m := range members {
				none := api.LimitsChange{UploadRate: rate(0), DownloadRate: rate(0), SourceRate: rate(0)}
				if m != c.Seeder {
					none.LandingRate = rate(0)
				}
				got, err := m.SetLimits(t.Context(), none)
				if err != nil || got.UploadRate+got.DownloadRate+got.SourceRate != 0 {
					t.Errorf("without limits: %+v, %v", got, err)
				}
			}
			c.Await(id, "COMPLETED")
		})
	}
}

// What a limit makes slow is not stuck: nobody reads from the source for its sake, no
// peer is blamed, none is connected anew, and it is in no error.
func TestSlowByALimitIsNotStuck(t *testing.T) {
	t.Parallel()
	// A chunk of 128 KiB takes longer than an agent waits for a peer.
	const builds, size, patience = 8, 256 << 10, 6 * time.Second
	log := &lines{}
	c := Start(t, cloud, Options{Regions: 1, FallbackAfter: patience, Log: log,
		Limits: api.LimitsChange{DownloadRate: rate(limits.MinRate)}})
	var ids []string
	for i := range builds {
		key := string(rune('a'+i)) + ".bin"
		c.Put(key, content(byte(i), size), nil)
		ids = append(ids, c.Deploy(key).ExecutionID)
	}
	for _, id := range ids {
		c.Await(id, "COMPLETED")
	}
	for _, a := range c.Agents {
		if waited(t, a, "download") < 2*patience.Seconds() {
			t.Error("the downloads were not slow")
		}
		s, err := a.AgentStatus(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(s.BadPeers) > 0 {
			t.Errorf("bad peers: %+v", s.BadPeers)
		}
		for _, b := range s.Builds {
			if b.SourceBytes > 0 || b.Error != "" {
				t.Errorf("%s: %d bytes from the source, %q", b.Key, b.SourceBytes, b.Error)
			}
		}
	}
	for _, line := range []string{
		"no peer has what is missing, reading it from the source bucket", "no peer has the build, reading it from the source bucket",
		"nothing comes from the peers, connecting to them anew", "waiting for another turn: there was no progress, and other builds wait", "bad peer",
	} {
		if said := log.of(line); len(said) > 0 {
			t.Errorf("the log has %v", said[0])
			log.mu.Lock()
			for _, l := range log.all {
				if l["key"] == said[0]["key"] {
					t.Log(l)
				}
			}
			log.mu.Unlock()
		}
	}
}

// Without the token nothing is changed, and what is wrong changes nothing.
func TestLimitsAreRefused(t *testing.T) {
	t.Parallel()
	c := Start(t, cloud, Options{Regions: 1, OperatorToken: "the-token-of-this-test"})
	for _, m := range []*client.Client{c.Seeder, c.Agents[0]} {
		before, err := m.SetLimits(t.Context(), api.LimitsChange{UploadRate: rate(300_000)})
		if err != nil {
			t.Fatal(err)
		}
		stranger := &client.Client{URL: m.URL, HTTP: m.HTTP}
		_, err = stranger.SetLimits(t.Context(), api.LimitsChange{UploadRate: rate(0)})
		var s *client.StatusError
		if !errors.As(err, &s) || s.Code != http.StatusUnauthorized {
			t.Errorf("without a token: %v", err)
		}
		_, err = m.SetLimits(t.Context(), api.LimitsChange{UploadRate: rate(0), SourceRate: rate(limits.MaxRate + 1)})
		if !errors.As(err, &s) || s.Code != http.StatusBadRequest || !strings.Contains(err.Error(), "sourceRate") {
			t.Errorf("beyond the bound: %v", err)
		}
		if now, err := stranger.Limits(t.Context()); err != nil || !same(t, *now, *before) {
			t.Errorf("they are %+v now, and were %+v (%v)", now, before, err)
		}
	}
}

func same(t *testing.T, a, b api.Limits) bool {
	t.Helper()
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	return string(x) == string(y)
}
