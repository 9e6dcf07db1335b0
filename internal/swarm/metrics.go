package swarm

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// counts is what the engine does not count, or not as we mean it.
type counts struct {
	// Dials that gave a connection, that did not, and that were not made because
	// the peer is left alone.
	reached, unreached, spared atomic.Int64
	// Torrents' connections for which one was open before.
	ready atomic.Int64
	// Connections whose peer was admitted, and those that were not.
	accepted, turnedAway atomic.Int64
	// Reads that waited since the peer had sent too many messages.
	slowed atomic.Int64
	// Pieces with another hash than the build's: as they came, and as they were
	// found on the disk after they had been right.
	badFromPeer, badOnDisk atomic.Int64
}

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("landfall_"+name, help, labels, nil)
}

var (
	badDesc        = newDesc("bad_peers", "Peers that are banned now, for bad data or conduct.")
	bansDesc       = newDesc("peer_bans_total", "Bans of peers, by reason.", "reason")
	downloadedDesc = newDesc("swarm_downloaded_bytes_total", "Bytes of builds received from peers.")
	usefulDesc     = newDesc("swarm_useful_bytes_total", "Downloaded bytes that were still needed when they arrived.")
	uploadedDesc   = newDesc("swarm_uploaded_bytes_total", "Bytes of builds sent to peers.")
	wireDesc       = newDesc("swarm_wire_bytes_total", "All bytes on connections with peers, those of the protocol included.", "direction")
	receivedDesc   = newDesc("swarm_received_chunks_total", "Chunks received from peers, by whether they were still needed.", "use")
	sentDesc       = newDesc("swarm_sent_chunks_total", "Chunks sent to peers.")
	hashedDesc     = newDesc("swarm_hashed_bytes_total", "Bytes of received pieces that were hashed.")
	badPiecesDesc  = newDesc("swarm_bad_pieces_total", "Pieces that failed their hash: sent by peers, or changed on the disk.", "source")
	dialsDesc      = newDesc("swarm_dials_total", "Outbound peer connections, by result; ready: a spare one was there; spared: not dialled, since the peer is banned.", "result")
	acceptsDesc    = newDesc("swarm_accepts_total", "Inbound peer connections, accepted or refused once the peer has named itself.", "result")
	slowedDesc     = newDesc("swarm_slowed_reads_total", "Reads that waited because the peer had sent more messages than its bytes need.")
	spareDesc      = newDesc("swarm_spare_connections", "Connections with peers that are open for segments to come: dialled here, or made by peers that have said nothing yet.", "direction")
	dialingDesc    = newDesc("swarm_dials_under_way", "Outbound peer connections that wait for an answer.")
	peersDesc      = newDesc("swarm_peers", "Connections with peers; a peer counts once for each segment.")
	wholeDesc      = newDesc("swarm_complete_peers", "Connected peers that have the whole segment.")
	torrentsDesc   = newDesc("swarm_torrents", "Segments in the torrent engine: those that somebody asks for.")

	descs = []*prometheus.Desc{
		badDesc, bansDesc, downloadedDesc, usefulDesc, uploadedDesc, wireDesc, receivedDesc, sentDesc, hashedDesc,
		badPiecesDesc, dialsDesc, acceptsDesc, slowedDesc, spareDesc, dialingDesc, peersDesc, wholeDesc, torrentsDesc,
	}
)

// Collector reads the swarm's metrics when it is asked: the torrent client's
// counters, and our own.
func Collector(s *Swarm) prometheus.Collector { return collector{s} }

type collector struct{ s *Swarm }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, n int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n int) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n))
	}
	gauge(badDesc, len(c.s.BadPeers()))
	for _, r := range Reasons {
		count(bansDesc, int64(c.s.conduct.total(r)), string(r))
	}
	engine, own := c.s.client.Stats(), &c.s.counts
	count(downloadedDesc, engine.BytesReadData.Int64())
	count(usefulDesc, engine.BytesReadUsefulData.Int64())
	count(uploadedDesc, engine.BytesWrittenData.Int64())
	count(wireDesc, engine.BytesRead.Int64(), "received")
	count(wireDesc, engine.BytesWritten.Int64(), "sent")
	count(receivedDesc, engine.ChunksReadUseful.Int64(), "useful")
	count(receivedDesc, engine.ChunksReadWasted.Int64(), "wasted")
	count(sentDesc, engine.ChunksWritten.Int64())
	count(hashedDesc, engine.BytesHashed.Int64())
	count(badPiecesDesc, own.badFromPeer.Load(), "peer")
	count(badPiecesDesc, own.badOnDisk.Load(), "disk")
	count(dialsDesc, own.reached.Load(), "connected")
	count(dialsDesc, own.unreached.Load(), "failed")
	count(dialsDesc, own.ready.Load(), "ready")
	count(dialsDesc, own.spared.Load(), "spared")
	count(acceptsDesc, own.accepted.Load(), "taken")
	count(acceptsDesc, own.turnedAway.Load(), "refused")
	count(slowedDesc, own.slowed.Load())
	ch <- prometheus.MustNewConstMetric(spareDesc, prometheus.GaugeValue, float64(c.s.spares.count()), "outbound")
	ch <- prometheus.MustNewConstMetric(spareDesc, prometheus.GaugeValue, float64(c.s.doors.countSilent()), "inbound")
	gauge(dialingDesc, engine.ActiveHalfOpenAttempts)
	gauge(peersDesc, engine.ActivePeers)
	gauge(wholeDesc, engine.ConnectedSeeders)
	gauge(torrentsDesc, c.s.openings.count())
}
