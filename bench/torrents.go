//go:build linux

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"

	"github.com/landfall-dist/landfall/internal/processtest"
)

const (
	trackerPort = 6969
	// pieceLength is Landfall's own, so that all have the same pieces.
	pieceLength = 128 << 10
)

//go:embed libtorrent_peer.py
var libtorrentPeer []byte

// libtorrent is a swarm of libtorrent as it comes, every peer told of every
// other.
type libtorrent struct{ superSeeding bool }

func (l libtorrent) name() string {
	if l.superSeeding {
		return "libtorrent-super"
	}
	return "libtorrent"
}

func (l libtorrent) run(ctx context.Context, r *trial) error {
	script := filepath.Join(r.dir, "libtorrent_peer.py")
	if err := os.WriteFile(script, libtorrentPeer, 0o644); err != nil {
		return err
	}
	torrent := r.torrentFile()
	members := r.net.members[:r.cell.Members+1]
	peers := make([]string, len(members))
	for i, m := range members {
		peers[i] = netip.AddrPortFrom(m.addr, peerPort).String()
	}
	processes := make(map[*member]*process)
	startPeer := func(m *member, mode string) error {
		dir := r.dataDir(m, "libtorrent")
		if mode != "leech" {
			if err := os.Symlink(r.seedFile(), filepath.Join(dir, buildKey)); err != nil {
				return err
			}
		}
		p, err := r.start(m, "libtorrent", nil, "/usr/bin/python3", script, mode, torrent, dir, peers[m.index], strings.Join(peers, ","))
		if err != nil {
			return err
		}
		processes[m] = p
		return p.WaitFor(ctx, "ready")
	}
	mode := "seed"
	if l.superSeeding {
		mode = "super"
	}
	for i, m := range members {
		if i > 0 {
			mode = "leech"
		}
		if err := startPeer(m, mode); err != nil {
			return err
		}
	}
	if err := r.makeTorrent(ctx); err != nil {
		return err
	}
	seeder := processes[r.seeder]
	if _, err := seeder.Stdin.WriteString("go\n"); err != nil {
		return err
	}
	if err := seeder.WaitFor(ctx, "seeding"); err != nil {
		return err
	}
	early, late := r.cell.split(r.regions)
	if r.started.IsZero() {
		r.begin()
	}
	wake := func(members []*member) error {
		for _, m := range members {
			if _, err := processes[m].Stdin.WriteString("go\n"); err != nil {
				return err
			}
		}
		return nil
	}
	if err := wake(early); err != nil {
		return err
	}
	left := slices.Clone(r.regions)
	err := processtest.Until(ctx, "all downloads", func() (bool, error) {
		if len(late) > 0 && time.Since(r.started) > r.cell.bound()/2 {
			if err := wake(late); err != nil {
				return false, err
			}
			late = nil
		}
		var err error
		left = slices.DeleteFunc(left, func(m *member) bool {
			at, ok := said(processes[m], "done ")
			if ok {
				r.downloaded(m, at)
			} else if err == nil {
				err = processes[m].Alive()
			}
			return ok
		})
		return len(left) == 0, err
	})
	if err != nil {
		return err
	}
	r.end()
	return nil
}

// said finds a line with a time in s since 1970 after a prefix.
func said(p *process, prefix string) (time.Time, bool) {
	log, err := os.ReadFile(p.Log)
	if err != nil {
		return time.Time{}, false
	}
	for line := range strings.Lines(string(log)) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
			if s, err := strconv.ParseFloat(text, 64); err == nil {
				return time.UnixMicro(int64(s * 1e6)), true
			}
		}
	}
	return time.Time{}, false
}

// aria2 is a swarm of aria2 as it comes, with a tracker that knows everyone from
// the start.
type aria2 struct{}

func (aria2) name() string { return "aria2" }

func (aria2) run(ctx context.Context, r *trial) error {
	first, torrent := r.seeder, r.torrentFile()
	tracker, err := startTracker(first, r.net.members[:r.cell.Members+1])
	if err != nil {
		return err
	}
	defer tracker.server.Close()
	startPeer := func(m *member, flags ...string) error {
		_, err := r.start(m, "aria2", nil, append([]string{"aria2c", "--dir", r.dataDir(m, "aria2"),
			"--listen-port", strconv.Itoa(peerPort), "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false",
			"--seed-ratio=0", "--check-certificate=false", "--summary-interval=0", "--no-conf"}, append(flags, torrent)...)...)
		return err
	}
	if err := os.Symlink(r.seedFile(), filepath.Join(r.dataDir(first, "aria2"), buildKey)); err != nil {
		return err
	}
	if err := r.makeTorrent(ctx); err != nil {
		return err
	}
	// What was only just read and hashed is not hashed once more.
	if err := startPeer(first, fmt.Sprintf("--bt-seed-unverified=%t", r.cell.Source > 0), fmt.Sprintf("--check-integrity=%t", r.cell.Source == 0)); err != nil {
		return err
	}
	if err := processtest.Until(ctx, "aria2 to seed", func() (bool, error) { return tracker.has(first), nil }); err != nil {
		return err
	}
	early, late := r.cell.split(r.regions)
	if r.started.IsZero() {
		r.begin()
	}
	for _, m := range early {
		if err := startPeer(m); err != nil {
			return err
		}
	}
	err = processtest.Until(ctx, "all downloads", func() (bool, error) {
		if len(late) > 0 && time.Since(r.started) > r.cell.bound()/2 {
			for _, m := range late {
				if err := startPeer(m); err != nil {
					return false, err
				}
			}
			late = nil
		}
		for _, m := range r.regions {
			if !tracker.has(m) {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	r.end()
	for _, m := range r.regions {
		r.downloaded(m, tracker.when(m))
	}
	return nil
}

// readSource is what comes first where the build is not beside the seeder: it is read
// to the seeder's disk, while the time runs.
func (r *trial) readSource(ctx context.Context) error {
	if err := startStore(ctx, r); err != nil {
		return err
	}
	r.begin()
	p, err := r.start(r.seeder, "read", cloudEnv(r.store), "bench", "copy", "--key", buildKey, "--from", globalBucket, "--to-file", r.seedFile())
	if err != nil {
		return err
	}
	select {
	case <-p.Ended:
		if p.Err != nil {
			return p.Alive()
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// seedFile is the file that the seeder has: the build's, or what it reads.
func (r *trial) seedFile() string {
	if r.cell.Source > 0 {
		return filepath.Join(r.dir, "read.zip")
	}
	return r.builds[0].file
}

// torrentFile is where makeTorrent puts the .torrent of the build.
func (r *trial) torrentFile() string { return filepath.Join(r.dir, "build.torrent") }

// makeTorrent makes the .torrent, of no use outside the network, of the build, which
// is read from the source first.
func (r *trial) makeTorrent(ctx context.Context) error {
	if r.cell.Source > 0 {
		if err := r.readSource(ctx); err != nil {
			return err
		}
	}
	info := metainfo.Info{PieceLength: pieceLength, Private: new(bool)}
	if err := info.BuildFromFilePath(r.seedFile()); err != nil {
		return err
	}
	info.Name = buildKey
	infoBytes, err := bencode.Marshal(info)
	if err != nil {
		return err
	}
	mi := metainfo.MetaInfo{
		InfoBytes: infoBytes,
		Announce:  fmt.Sprintf("http://%s/announce", netip.AddrPortFrom(r.seeder.addr, trackerPort)),
	}
	f, err := os.Create(r.torrentFile())
	if err != nil {
		return err
	}
	return errors.Join(mi.Write(f), f.Close())
}

// tracker is BEP 3's, for one torrent whose peers are known in advance (BEP 23
// addresses). It hears from each when it has everything.
type tracker struct {
	server *http.Server
	answer []byte
	done   chan completion
	times  map[netip.Addr]time.Time
}

type completion struct {
	peer netip.Addr
	at   time.Time
}

func startTracker(at *member, members []*member) (*tracker, error) {
	l, err := at.listen(trackerPort)
	if err != nil {
		return nil, err
	}
	var compact []byte
	for _, m := range members {
		compact = append(compact, m.addr.AsSlice()...)
		compact = append(compact, peerPort>>8, peerPort&0xff)
	}
	t := &tracker{done: make(chan completion, 1024), times: make(map[netip.Addr]time.Time)}
	t.answer = bencode.MustMarshal(map[string]any{"interval": 5, "min interval": 2, "peers": string(compact)})
	t.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); q.Get("left") == "0" {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			if peer, err := netip.ParseAddr(host); err == nil {
				select {
				case t.done <- completion{peer, time.Now()}:
				default: // said before
				}
			}
		}
		_, _ = w.Write(t.answer)
	})}
	go t.server.Serve(l)
	return t, nil
}

// has reports whether a member has said that it has everything.
func (t *tracker) has(m *member) bool {
	for {
		select {
		case c := <-t.done:
			if t.times[c.peer].IsZero() {
				t.times[c.peer] = c.at
			}
			continue
		default:
		}
		return !t.times[m.addr].IsZero()
	}
}

func (t *tracker) when(m *member) time.Time { return t.times[m.addr] }
