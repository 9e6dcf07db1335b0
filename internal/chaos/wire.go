//go:build linux

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// wire harms the connections between a member and its Gate, below HTTP.
type wire struct {
	proxy *toxiproxy.Proxy

	mu       sync.Mutex
	toxics   int
	troubled time.Time
}

// Toxic is a harm to connections, by Toxiproxy's name and settings.
type Toxic struct {
	Type       string         `json:"type"`
	Stream     string         `json:"stream"` // upstream is what the member sends
	Attributes map[string]int `json:"attributes"`
}

// Latency delays what comes and goes, Bandwidth bounds it in KiB/s, Blackhole
// swallows it, ResetPeer ends connections.
var (
	Latency = func(ms int) Toxic {
		return Toxic{"latency", "downstream", map[string]int{"latency": ms, "jitter": ms / 2}}
	}
	Bandwidth = func(kib int) Toxic { return Toxic{"bandwidth", "upstream", map[string]int{"rate": kib}} }
	Blackhole = Toxic{"timeout", "upstream", map[string]int{"timeout": 0}}
	ResetPeer = Toxic{"reset_peer", "downstream", map[string]int{"timeout": 0}}
)

func newWire(name, listen, upstream string) (*wire, error) {
	zerolog.SetGlobalLevel(zerolog.Disabled) // the toxics write to the global logger
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	w := &wire{proxy: toxiproxy.NewProxy(server, name, listen, upstream)}
	if err := w.proxy.Start(); err != nil {
		return nil, fmt.Errorf("wire of %s: %w", name, err)
	}
	return w, nil
}

func (w *wire) close() { w.proxy.Stop() }

// harm adds a toxic until heal.
func (w *wire) harm(t Toxic) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.toxics++
	body, err := json.Marshal(struct {
		Toxic
		Name string `json:"name"` // its own, for the same harm may be done twice
	}{t, fmt.Sprint(t.Type, w.toxics)})
	if err != nil {
		return err
	}
	w.troubled = time.Now()
	_, err = w.proxy.Toxics.AddToxicJson(bytes.NewReader(body))
	return err
}

func (w *wire) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.toxics == 0 {
		return
	}
	w.toxics = 0
	w.troubled = time.Now()
	w.proxy.Toxics.ResetToxics(context.Background())
}

func (w *wire) troubledSince(since time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.toxics > 0 || w.troubled.After(since)
}
