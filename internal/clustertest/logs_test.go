package clustertest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
	"testing"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// lines is a log of JSON.
type lines struct {
	mu  sync.Mutex
	all []map[string]any
	bad []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := make(map[string]any)
	if err := json.Unmarshal(p, &line); err != nil {
		l.bad = append(l.bad, string(p))
	}
	for name := range line {
		if bytes.Count(p, fmt.Appendf(nil, `%q:`, name)) > 1 {
			l.bad = append(l.bad, name+" comes twice: "+string(p))
		}
	}
	l.all = append(l.all, line)
	return len(p), nil
}

// of returns the lines with a message.
func (l *lines) of(message string) (out []map[string]any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		if line["msg"] == message {
			out = append(out, line)
		}
	}
	return out
}

func (l *lines) await(c *Cluster, message string) map[string]any {
	c.t.Helper()
	c.Until(fmt.Sprintf("%q is logged", message), func() bool { return len(l.of(message)) > 0 })
	return l.of(message)[0]
}

// number reads a number of a line; the test fails where there is none.
func number(t *testing.T, line map[string]any, name string) float64 {
	t.Helper()
	n, ok := line[name].(float64)
	if !ok {
		t.Errorf("%s: no number %q", line["msg"], name)
	}
	return n
}

func TestWhatIsLogged(t *testing.T) {
	var log lines
	c := Start(t, cloud, Options{Regions: 3, Unserved: 1, Log: &log, Uplink: 100 << 20})
	const size = manifest.MinPartLength + 1000
	c.Put("build.bin", content(1, size), nil)
	id := c.Deploy("build.bin", c.Bucket(0), c.Bucket(1)).ExecutionID
	c.Await(id, "COMPLETED")
	ended := log.await(c, "execution ended")
	for message, times := range map[string]int{
		"execution accepted": 1, "pulling": 1, "pulled": 1, "destination landed": 2, "execution ended": 1,
		"announcement received": 2, "downloading": 2, "downloaded": 2, "landed": 2, "recorded": 2,
	} {
		got := log.of(message)
		if len(got) != times {
			t.Errorf("%q is logged %d times, want %d", message, len(got), times)
		}
		for _, line := range got {
			if line["executionId"] != id || line["key"] != "build.bin" {
				t.Errorf("%v", line)
			}
		}
	}
	// Of two segments, with the seal, and perhaps again when the table is written.
	if got := log.of("announced"); len(got) == 0 || len(got) > 4 || got[len(got)-1]["sealed"] != true || got[len(got)-1]["executionId"] != id {
		t.Errorf("announcements: %v", got)
	}
	if ended["status"] != "COMPLETED" || ended["slowestRegion"] != c.Regions[0] && ended["slowestRegion"] != c.Regions[1] {
		t.Errorf("%v", ended)
	}
	for name, want := range map[string]float64{"bytes": size, "successful": 2, "failed": 0} {
		if n := number(t, ended, name); n != want {
			t.Errorf("%s is %v, want %v", name, n, want)
		}
	}
	seconds, distribution := number(t, ended, "seconds"), number(t, ended, "distributionSeconds")
	if pull := number(t, ended, "pullSeconds"); pull <= 0 || distribution <= 0 || seconds < distribution || number(t, ended, "slowestSeconds") <= 0 {
		t.Errorf("times: %v", ended)
	}
	if sent := number(t, ended, "sentBytes"); sent < size || number(t, ended, "sentRatio") < 1 {
		t.Errorf("bytes: %v", ended)
	}
	if over, want := number(t, ended, "overBound"), distribution*(100<<20)/size; over < 0.9*want || over > 1.1*want {
		t.Errorf("over the bound: %v, want %v", over, want)
	}
	senders, _ := ended["senders"].(map[string]any)
	if sent, _ := senders["seeder"].(float64); sent == 0 {
		t.Errorf("senders: %v", ended["senders"])
	}
	for _, line := range log.of("recorded") {
		took, _ := line["took"].(map[string]any)
		if number(t, line, "fromSeeder")+number(t, line, "fromAgents") < size || number(t, line, "fromSource") != 0 || len(took) != 4 {
			t.Errorf("%v", line)
		}
	}

	// Superseded by another object, then cancelled.
	c.Put("other.bin", content(2, 1000), nil)
	first := c.Deploy("other.bin", c.Bucket(2)).ExecutionID
	c.Put("other.bin", content(3, 1000), nil)
	second := c.Deploy("other.bin", c.Bucket(2)).ExecutionID
	if _, err := c.Seeder.Cancel(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	c.Until("both ends are logged", func() bool { return len(log.of("execution ended")) == 3 })
	for _, line := range log.of("execution ended")[1:] {
		switch line["executionId"] {
		case first:
			if line["status"] != "SUPERSEDED" || line["successor"] != second {
				t.Errorf("%v", line)
			}
		case second:
			if line["status"] != "CANCELLED" || number(t, line, "failed") != 1 {
				t.Errorf("%v", line)
			}
		default:
			t.Errorf("%v", line)
		}
	}
	c.Stop()
	for _, line := range log.bad {
		t.Error(line)
	}
}
