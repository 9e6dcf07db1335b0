package swarm

import (
	"github.com/prometheus/client_golang/prometheus"
)

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("landfall_"+name, help, labels, nil)
}

var (
	downloadedDesc = newDesc("swarm_downloaded_bytes_total", "Bytes of builds received from peers.")
	usefulDesc     = newDesc("swarm_useful_bytes_total", "Downloaded bytes that were still needed when they arrived.")
	uploadedDesc   = newDesc("swarm_uploaded_bytes_total", "Bytes of builds sent to peers.")
	wireDesc       = newDesc("swarm_wire_bytes_total", "All bytes on connections with peers, those of the protocol included.", "direction")
	receivedDesc   = newDesc("swarm_received_chunks_total", "Chunks received from peers, by whether they were still needed.", "use")
	sentDesc       = newDesc("swarm_sent_chunks_total", "Chunks sent to peers.")
	hashedDesc     = newDesc("swarm_hashed_bytes_total", "Bytes of received pieces that were hashed.")
	badPiecesDesc  = newDesc("swarm_bad_pieces_total", "Pieces that failed their hash: sent by peers, or changed on the disk.", "source")
	dialingDesc    = newDesc("swarm_dials_under_way", "Outbound peer connections that wait for an answer.")
	peersDesc      = newDesc("swarm_peers", "Connections with peers; a peer counts once for each segment.")
	wholeDesc      = newDesc("swarm_complete_peers", "Connected peers that have the whole segment.")
	torrentsDesc   = newDesc("swarm_torrents", "Segments in the torrent engine: those that somebody asks for.")

	descs = []*prometheus.Desc{
		downloadedDesc, usefulDesc, uploadedDesc, wireDesc, receivedDesc, sentDesc, hashedDesc,
		badPiecesDesc, dialingDesc, peersDesc, wholeDesc, torrentsDesc,
	}
)

// Collector reads the swarm's metrics when it is asked: the torrent client's
// counters, the wire's, and our own.
func Collector(s *Swarm) prometheus.Collector { return collector{s} }

type collector struct{ s *Swarm }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
	c.s.wire.Describe(ch)
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, n int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n int) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n))
	}
	engine := c.s.client.Stats()
	count(downloadedDesc, engine.BytesReadData.Int64())
	count(usefulDesc, engine.BytesReadUsefulData.Int64())
	count(uploadedDesc, engine.BytesWrittenData.Int64())
	count(wireDesc, engine.BytesRead.Int64(), "received")
	count(wireDesc, engine.BytesWritten.Int64(), "sent")
	count(receivedDesc, engine.ChunksReadUseful.Int64(), "useful")
	count(receivedDesc, engine.ChunksReadWasted.Int64(), "wasted")
	count(sentDesc, engine.ChunksWritten.Int64())
	count(hashedDesc, engine.BytesHashed.Int64())
	count(badPiecesDesc, c.s.badFromPeer.Load(), "peer")
	count(badPiecesDesc, c.s.badOnDisk.Load(), "disk")
	c.s.wire.Collect(ch)
	gauge(dialingDesc, engine.ActiveHalfOpenAttempts)
	gauge(peersDesc, engine.ActivePeers)
	gauge(wholeDesc, engine.ConnectedSeeders)
	gauge(torrentsDesc, c.s.openings.count())
}
