package clustertest

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"

	"github.com/landfall-dist/landfall/internal/api"
)

// askTorrent asks for an execution's .torrent.
func (c *Cluster) askTorrent(id string) (code int, answer []byte) {
	c.t.Helper()
	res, err := c.Seeder.HTTP.Get(c.Seeder.URL + "/executions/" + id + "/torrent")
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return res.StatusCode, b
}

// torrent is an execution's .torrent.
func (c *Cluster) torrent(id string) *metainfo.MetaInfo {
	c.t.Helper()
	code, b := c.askTorrent(id)
	if code != http.StatusOK {
		c.t.Fatalf("the .torrent of %s: %d, %s", id, code, b)
	}
	file, err := metainfo.Load(bytes.NewReader(b))
	if err != nil {
		c.t.Fatal(err)
	}
	return file
}

// noTorrent fails the test unless there is none, for a reason.
func (c *Cluster) noTorrent(id, reason string) {
	c.t.Helper()
	code, b := c.askTorrent(id)
	var why api.Error
	if err := json.Unmarshal(b, &why); err != nil || code != http.StatusNotFound || !strings.Contains(why.Error, reason) {
		c.t.Errorf("the .torrent of %s: %d, %s; want 404 since %q", id, code, b, reason)
	}
}

// downloaded is what an ordinary client gets by a .torrent from the seeder.
func (c *Cluster) downloaded(file *metainfo.MetaInfo) []byte {
	c.t.Helper()
	dir := c.t.TempDir()
	files := storage.NewFileWithCompletion(dir, storage.NewMapPieceCompletion())
	defer files.Close()
	cfg := torrent.NewDefaultClientConfig()
	cfg.NoDHT, cfg.DisableTrackers, cfg.DisableUTP, cfg.NoDefaultPortForwarding, cfg.DisableWebtorrent = true, true, true, true, true
	cfg.ListenHost, cfg.ListenPort = torrent.LoopbackListenHost, 0
	cfg.DefaultStorage = files
	client, err := torrent.NewClient(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	defer client.Close()
	download, err := client.AddTorrent(file)
	if err != nil {
		c.t.Fatal(err)
	}
	seeder, err := net.ResolveTCPAddr("tcp", c.cluster.SeederPeers)
	if err != nil {
		c.t.Fatal(err)
	}
	download.AddPeers([]torrent.PeerInfo{{Addr: seeder}})
	download.DownloadAll()
	select {
	case <-download.Complete().On():
	case <-time.After(Timeout):
		c.t.Fatalf("%d of %d bytes in %s", download.BytesCompleted(), download.Length(), Timeout)
	}
	b, err := os.ReadFile(filepath.Join(dir, download.Name()))
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

// pulls names the files that the seeder has of pulls.
func (c *Cluster) pulls() (names []string) {
	c.t.Helper()
	files, err := os.ReadDir(filepath.Join(c.Dir("seeder"), "cache", "pulls"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names
}

// An ordinary client downloads a build by its .torrent, from when the seeder has all of it
// until that leaves its cache. Before and after there is none, with the reason, and who asks
// leaves the disk as it is.
func TestTorrentFile(t *testing.T) {
	const size = 2*part + 1 // of three segments
	source := newDam("/build.bin")
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: source}
	c := Start(t, cloud, Options{Regions: 1, AWS: &cfg, CacheSize: 3 * part})
	want := content(1, size)
	c.Put("build.bin", want, nil)
	source.set(part)
	id := c.Deploy("build.bin").ExecutionID
	c.Until("the first segment is in the upload", func() bool {
		b := c.build(c.Agents[0], "build.bin")
		return b != nil && b.LandedBytes == part
	})
	c.noTorrent(id, "has not read all of the build yet")
	source.set(1 << 40)
	c.Await(id, "COMPLETED")
	file := c.torrent(id)
	info, err := file.UnmarshalInfo()
	if err != nil || info.Length != size || info.Name != c.Record("build.bin").SHA256 || info.Private == nil || !*info.Private || len(file.AnnounceList) > 0 {
		t.Errorf("%v, %+v", err, info)
	}
	if got := c.downloaded(file); !bytes.Equal(got, want) {
		t.Errorf("%d bytes are not those of the build", len(got))
	}

	// One more build, and the first leaves the cache.
	other := c.Publish("other.bin", content(2, size))
	c.Until("it has no place any more", func() bool {
		code, _ := c.askTorrent(id)
		return code != http.StatusOK
	})
	c.noTorrent(id, "is not in the seeder's cache any more")
	c.torrent(other.ExecutionID)

	for id, reason := range map[string]string{
		c.Publish("empty.zip", nil).ExecutionID: "a build of 0 bytes has no torrent",
		"01ARZ3NDEKTSV4RRFFQ69G5FAV":            "no execution",
	} {
		c.noTorrent(id, reason)
	}
	listed := func() bool {
		return slices.ContainsFunc(c.pulls(), func(name string) bool { return strings.HasPrefix(name, id) })
	}
	c.Until("its list of segments is gone", func() bool { return !listed() })
	if c.noTorrent(id, "cache any more"); listed() {
		t.Errorf("whoever asked has made one: %v", c.pulls())
	}
}
