package peerwire

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Counts is what has happened since the start.
type Counts struct {
	// Dials that gave a connection, that did not, and that were not made because
	// the peer is left alone.
	Reached, Unreached, Spared atomic.Int64
	// Ready are torrents' connections for which one was open before.
	Ready atomic.Int64
	// Connections whose peer was admitted, and those that were not.
	Accepted, TurnedAway atomic.Int64
	// Proven are connections that peers have made and shown a certificate on that holds.
	Proven atomic.Int64
	// Slowed are reads that waited since the peer had sent too many messages.
	Slowed atomic.Int64
}

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("landfall_"+name, help, labels, nil)
}

var (
	badDesc     = newDesc("bad_peers", "Peers that are banned now, for bad data or conduct.")
	bansDesc    = newDesc("peer_bans_total", "Bans of peers, by reason.", "reason")
	dialsDesc   = newDesc("swarm_dials_total", "Outbound peer connections, by result; ready: a spare one was there; spared: not dialled, since the peer is banned.", "result")
	acceptsDesc = newDesc("swarm_accepts_total", "Inbound peer connections, accepted or refused once the peer has named itself.", "result")
	provenDesc  = newDesc("swarm_proven_connections_total", "Inbound peer connections whose peer has shown a certificate that holds.")
	slowedDesc  = newDesc("swarm_slowed_reads_total", "Reads that waited because the peer had sent more messages than its bytes need.")
	spareDesc   = newDesc("swarm_spare_connections", "Connections with peers that are open for segments to come: dialled here, or made by peers that have said nothing yet.", "direction")
)

// Describe and Collect make the Wire a prometheus.Collector.
func (w *Wire) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{badDesc, bansDesc, dialsDesc, acceptsDesc, provenDesc, slowedDesc, spareDesc} {
		ch <- d
	}
}

// Collect reads the counters.
func (w *Wire) Collect(ch chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, n int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	gauge(badDesc, len(w.BadPeers()))
	for _, r := range Reasons {
		count(bansDesc, int64(w.conduct.total(r)), string(r))
	}
	count(dialsDesc, w.Counts.Reached.Load(), "connected")
	count(dialsDesc, w.Counts.Unreached.Load(), "failed")
	count(dialsDesc, w.Counts.Ready.Load(), "ready")
	count(dialsDesc, w.Counts.Spared.Load(), "spared")
	count(acceptsDesc, w.Counts.Accepted.Load(), "taken")
	count(acceptsDesc, w.Counts.TurnedAway.Load(), "refused")
	count(provenDesc, w.Counts.Proven.Load())
	count(slowedDesc, w.Counts.Slowed.Load())
	gauge(spareDesc, w.Spares(), "outbound")
	silent, _, _ := w.Waiting()
	gauge(spareDesc, silent, "inbound")
}

// Spares is how many connections are open that were dialled ahead.
func (w *Wire) Spares() int { return w.spares.count() }

// Waiting is how many connections that peers have made have not said anything, have not
// said who they are, and are of no members.
func (w *Wire) Waiting() (silent, greeting, strangers int) { return w.doors.count() }
