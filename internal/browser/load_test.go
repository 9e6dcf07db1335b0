//go:build linux

package browser

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/heapprofiler"
	"github.com/chromedp/cdproto/performance"
	"github.com/chromedp/chromedp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/chaos"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
)

const (
	// finished and running are the executions of TestLoad; running ones go to
	// everyone.
	finished, running = 495, 5
	// everyone is the number of agents, each of a region of its own.
	everyone = announce.MaxDestinations
	// updates is how many the page gets while it is measured.
	updates = 15
	// mostHeap bounds what the page keeps, in bytes.
	mostHeap = 50 << 20
)

var load = flag.Bool("browser.load", false, "measure the page with many executions and agents")

// TestLoad measures the page, and what it costs the seeder, with many executions and
// many agents, which are members of the cluster that tell of progress and do nothing.
func TestLoad(t *testing.T) {
	if !*load {
		t.Skip("measures for a minute; make bench-page runs it")
	}
	w := chaos.Start(t, chaos.Options{Agents: []int{1}, Seed: 6, Before: func(w *chaos.World) {
		for i := range finished {
			ended(t, w, fmt.Sprintf("releases/2026/build-%04d.zip", i))
		}
	}})
	var buckets []string
	for i := range everyone {
		buckets = append(buckets, fmt.Sprintf("simulated-%02d-builds", i))
	}
	var ids []string
	for i := range running {
		v := w.Put(fmt.Sprintf("running/%02d.bin", i), 16<<20)
		w.Loosen(v.Key)
		ids = append(ids, w.Deploy(v.Key, buckets...).ExecutionID)
	}
	simulate(t, w, buckets, ids)

	none := cost(t, w, func() { <-time.After(updates * time.Second) })
	t.Logf("no reader: the seeder takes %.1f ms of CPU each second for what the agents tell", none)
	quiet := newUpdates(t, w.Seeder.URL)
	began := time.Now()
	one := cost(t, w, func() { quiet.wait(t, updates) })
	t.Logf("a reader of the list: %.1f ms of the seeder's CPU each second more, %.1f kB/s", one-none, quiet.rate(began))
	quiet.stop()

	b := open(t, w.Seeder.URL+"/#"+ids[0])
	b.until("the list", fmt.Sprintf(`document.querySelectorAll("#list li").length === %d`, finished+running))
	b.until("the regions", fmt.Sprintf(`document.querySelectorAll("#regions li").length === %d`, everyone))
	b.until("links", `document.querySelectorAll("#graph path").length > 100`)
	b.run(`window.tasks = []; new PerformanceObserver((l) => tasks.push(...l.getEntries().map((e) => e.duration))).observe({ entryTypes: ["longtask"] })`)
	b.do(call(performance.Enable, performance.EnableParams{}))
	busy, script, layout, style := b.metric("TaskDuration"), b.metric("ScriptDuration"), b.metric("LayoutDuration"), b.metric("RecalcStyleDuration")
	heard := newUpdates(t, w.Seeder.URL+"?open=execution/"+ids[0]+"&open=swarm/"+ids[0])
	began = time.Now()
	two := cost(t, w, func() { heard.wait(t, updates) })
	t.Logf("a page with a chosen execution: %.1f ms of the browser's main thread an update, longest tasks over 50 ms: %s",
		1000*(b.metric("TaskDuration")-busy)/updates, eval[string](b, `JSON.stringify(tasks.sort((a, b) => b - a).slice(0, 3))`))
	t.Logf("of that, script %.1f ms, layout %.1f ms, style %.1f ms",
		1000*(b.metric("ScriptDuration")-script)/updates, 1000*(b.metric("LayoutDuration")-layout)/updates, 1000*(b.metric("RecalcStyleDuration")-style)/updates)
	t.Logf("it and another reader of the same: %.1f ms of the seeder's CPU each second more than none, %.1f kB/s to each", two-none, heard.rate(began))
	heard.stop()
	b.do(call(heapprofiler.CollectGarbage, cdp.Empty{}))
	heap := b.metric("JSHeapUsedSize")
	t.Logf("heap: %.1f MiB", heap/(1<<20))
	if heap > mostHeap {
		t.Errorf("the page keeps %.0f bytes, at most %d are allowed", heap, mostHeap)
	}
	b.keep("seeder-load") // after the measurement: an audit leaves work behind
}

// ended writes an execution into the table that was cancelled.
func ended(t *testing.T, w *chaos.World, key string) {
	begun, err := w.Ledger.Begin(t.Context(), ledger.Start{
		Key: ledger.Key{FileKey: key, SourceBucket: w.Global}, SourceETag: "etag", Size: 5 << 30,
		Destinations: []string{"elsewhere-0-builds", "elsewhere-1-builds"}, Now: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range begun.Record.Destinations {
		if _, err = w.Ledger.Fail(t.Context(), begun.Record.Key, begun.Record.ExecutionID, b, ledger.Result{Timestamp: time.Now(), Error: ledger.CancelledError}); err != nil {
			t.Fatal(err)
		}
	}
}

// simulate joins one agent for each bucket, that downloads each execution at its own
// pace, round and round, from all others.
func simulate(t *testing.T, w *chaos.World, buckets, ids []string) {
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	t.Cleanup(func() { cancel(); all.Wait() })
	for n, bucket := range buckets {
		id := fmt.Sprintf("simulated-agent-%02d", n)
		g, err := gossip.New(gossip.Config{
			Meta:   gossip.Meta{ID: id, Role: gossip.Agent, Region: fmt.Sprintf("simulated-%02d", n), Bucket: bucket, PeerPort: 1, HTTPPort: 1},
			Listen: "127.0.0.1:0", Join: []string{w.Seeder.GossipAddr()}, Book: announce.NewBook(nil, nil), Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			if err := g.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			ticker := time.NewTicker(time.Second)
			defer ticker.Stop()
			for step := int64(n); ; step++ {
				var progress []gossip.BuildProgress
				for _, e := range ids {
					done := step % 100 * (16 << 20) / 100
					progress = append(progress, gossip.BuildProgress{ExecutionID: e, State: api.StateDownloading, Verified: done, Landed: done / 2, DownRate: 160 << 10})
					var from []gossip.Link
					for other := range everyone {
						if other != n {
							from = append(from, gossip.Link{ID: fmt.Sprintf("simulated-agent-%02d", other), Bytes: done / everyone, Rate: 2 << 10})
						}
					}
					for _, l := range gossip.PackLinks(id, e, from) {
						g.ReportLinks(l)
					}
				}
				for _, p := range gossip.Pack(id, "simulated", bucket, progress) {
					g.Report(p)
				}
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
				}
			}
		})
	}
	w.Until("the seeder knows everyone", func() bool {
		e := w.Execution(ids[0])
		if e == nil {
			return false
		}
		for _, d := range e.Destinations {
			if d.State != api.StateDownloading {
				return false
			}
		}
		return true
	})
}

// metric is one of the browser's own.
func (b *tab) metric(name string) float64 {
	b.Helper()
	b.do(call(performance.Enable, performance.EnableParams{}))
	all := get(b, func(ctx context.Context, t *chromedp.Target) ([]*performance.Metric, error) {
		r, err := cdp.Call(ctx, t, performance.GetMetrics, cdp.Empty{})
		return r.Metrics, err
	})
	for _, m := range all {
		if m.Name == name {
			return m.Value
		}
	}
	b.Fatalf("the browser has no metric %s", name)
	return 0
}

// cpu is the CPU time that a member has taken, in seconds.
func cpu(t *testing.T, url string) float64 {
	t.Helper()
	res, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families["process_cpu_seconds_total"].GetMetric()[0].GetCounter().GetValue()
}

// cost is what the seeder takes while something is done, in ms of CPU each second.
func cost(t *testing.T, w *chaos.World, during func()) float64 {
	t.Helper()
	before, began := cpu(t, w.Seeder.URL), time.Now()
	during()
	return 1000 * (cpu(t, w.Seeder.URL) - before) / time.Since(began).Seconds()
}

// updatesOf is a reader of /events that counts.
type updatesOf struct {
	bytes atomic.Int64
	heard chan struct{}
	stop  func()
}

func newUpdates(t *testing.T, url string) *updatesOf {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	base, query, _ := strings.Cut(url, "?")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/events?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	u := &updatesOf{heard: make(chan struct{}, 1000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer res.Body.Close()
		last := byte(0)
		for b := make([]byte, 64<<10); ; {
			n, err := res.Body.Read(b)
			if err != nil {
				return
			}
			u.bytes.Add(int64(n))
			for _, c := range b[:n] { // an empty line ends an event
				if c == '\n' && last == '\n' {
					u.heard <- struct{}{}
				}
				last = c
			}
		}
	}()
	u.stop = func() { cancel(); <-done }
	t.Cleanup(u.stop)
	return u
}

// rate is in kB/s.
func (u *updatesOf) rate(since time.Time) float64 {
	return float64(u.bytes.Load()) / 1000 / time.Since(since).Seconds()
}

func (u *updatesOf) wait(t *testing.T, n int) {
	t.Helper()
	late := time.After(timeout)
	for range n {
		select {
		case <-u.heard:
		case <-late:
			t.Fatal("the updates stay away")
		}
	}
}
