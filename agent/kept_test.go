package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/fetch"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/swarm"
)

// keeper is an agent as far as it keeps builds for hosts, and a host.
type keeper struct {
	*kept
	cache *cache.Cache
	swarm *swarm.Swarm
	at    fetch.Peer
	log   *keeperLog
	stop  func()
}

// keeperLog is a log that is read by a test.
type keeperLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *keeperLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *keeperLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func startKeeper(t *testing.T, dir string, from *bucket.Bucket, busy bool) *keeper {
	t.Helper()
	log := new(keeperLog)
	logger := slog.New(slog.NewTextHandler(log, nil))
	c, err := cache.Open(dir+"/cache", 0, logger) // nothing stays that is not kept
	if err != nil {
		t.Fatal(err)
	}
	var listeners [2]net.Listener
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	s, err := swarm.New(swarm.Config{
		Cache: c, Name: "agent", Config: peerwire.Config{Listener: listeners[0], Logger: logger},
		Fleet: &swarm.Fleet{Listener: listeners[1], Host: func(id [20]byte) (m peerwire.Member) {
			if id == peerwire.PeerID("host") {
				m = peerwire.Member{Name: "host", ID: "host", Region: "region-a", Host: true}
			}
			return m
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKept(keptConfig{
		dir: dir + "/recipes", cache: c, swarm: s, bucket: from, puller: source.NewPuller(c, logger),
		busy: func(string) bool { return busy }, standby: func(manifest.InfoHash) int { return 0 },
		evict: func(room int64) {
			err := c.Evict(room, func(infohash manifest.InfoHash) {
				if t, ok := s.Torrent(infohash); ok {
					t.Drop()
				}
			})
			if err != nil {
				t.Error(err)
			}
		},
		logger: logger, readBackAfter: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, s.Close(), c.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	at := fetch.Peer{Name: "agent", ID: "agent", Agent: true, Addr: listeners[1].Addr().(*net.TCPAddr).AddrPort()}
	return &keeper{k, c, s, at, log, stop}
}

// fetchAll has a host get a build from the keeper, by its recipe.
func (k *keeper) fetchAll(t *testing.T, of goal.Build, content []byte) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := fetch.New(fetch.Config{Dir: t.TempDir(), Listener: l, Name: "host", Region: "region-a"})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Peers(nil, []fetch.Peer{k.at})
	until(t, func() bool { r, ok := k.recipe(of.ExecutionID); return ok && r.Sealed })
	r, _ := k.recipe(of.ExecutionID)
	b, err := f.Build(fetch.Recipe{ExecutionID: r.ExecutionID, Key: r.Key, Size: r.Size, Scheme: r.Scheme, InfoHashes: r.InfoHashes, Sealed: r.Sealed})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-b.Whole():
	case <-time.After(untilTimeout):
		t.Fatalf("not whole: %+v", b.Progress())
	}
	if err := b.Verify(of.Size, of.SHA256); err != nil {
		t.Fatal(err)
	}
	reader, err := b.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	got, err := io.ReadAll(io.NewSectionReader(reader, 0, reader.Size()))
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("not the build's bytes: %v", err)
	}
}

const untilTimeout = 90 * time.Second

func until(t *testing.T, holds func() bool) {
	t.Helper()
	deadline := time.After(untilTimeout)
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("not in %s", untilTimeout)
		}
	}
}

// landed puts a build into a bucket, and returns how a goal names it.
func landed(t *testing.T, seed byte, size int, key string) (*bucket.Bucket, goal.Build, []byte, *manifest.Build) {
	t.Helper()
	b, err := bucket.Open(t.Context(), cloud.AWS, cloud.Bucket(t), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(content)
	if _, err := b.Upload(t.Context(), key, bytes.NewReader(content), int64(size), bucket.Headers{}); err != nil {
		t.Fatal(err)
	}
	known := manifesttest.Build(t, content)
	return b, goal.Build{Key: key, ExecutionID: executionid.New(time.Now(), ""), Size: int64(size), SHA256: known.Composite()}, content, known
}

// A build that a goal names and that is not here is read back from the region's bucket, even
// where nothing is known of it, stays whatever the cache's limit, and is handed to hosts;
// after a restart, too, without being read again. When no goal names it any more, it goes.
func TestKeptForHosts(t *testing.T) {
	t.Parallel()
	from, of, content, _ := landed(t, 1, 11<<20+5, "hello.zip")
	dir := t.TempDir()
	k := startKeeper(t, dir, from, false)
	k.keep([]goal.Build{of})
	k.fetchAll(t, of, content)
	k.evict(0)
	if size := k.cache.Size(); size != of.Size {
		t.Errorf("%d bytes are kept", size)
	}
	k.stop()
	k = startKeeper(t, dir, from, false)
	k.keep([]goal.Build{of})
	k.fetchAll(t, of, content)
	if read := k.puller.BytesRead(); read > 0 {
		t.Errorf("%d bytes were read again", read)
	}
	r, _ := k.recipe(of.ExecutionID)
	k.keep(nil)
	until(t, func() bool { return k.cache.Size() == 0 })
	if t2, ok := k.swarm.Torrent(r.InfoHashes.At(0)); ok {
		t.Errorf("%s is still in the engine", t2.InfoHash())
	}
	if strings.Contains(k.log.String(), "level=WARN") {
		t.Error(k.log)
	}
}

// What has been announced is handed out while it comes, segment by segment.
func TestKeptInStep(t *testing.T) {
	t.Parallel()
	from, of, content, known := landed(t, 2, 11<<20, "hello.zip")
	k := startKeeper(t, t.TempDir(), from, true)
	early := of
	early.SHA256 = "" // no gate is open yet
	k.keep([]goal.Build{early})
	ann := &announce.Announcement{ExecutionID: of.ExecutionID, Key: of.Key, Size: of.Size, Scheme: known.Scheme, Destinations: []string{from.Name()}}
	for i := range known.NumSegments() {
		ann.InfoHashes = ann.InfoHashes.Append(known.Segment(i).InfoHash())
		if i == known.NumSegments()-1 {
			ann.SHA256 = known.SHA256Hex()
		}
		k.note(ann)
		if r, ok := k.recipe(of.ExecutionID); !ok || r.InfoHashes.Len() != i+1 {
			t.Fatalf("%+v", r)
		}
		p, err := k.cache.Pull(of.ExecutionID, i, "etag", known.Segment(i).Size, nil)
		if err != nil {
			t.Fatal(err)
		}
		offset, length := known.SegmentRange(i)
		if _, err := p.WriteAt(content[offset:offset+length], 0); err != nil {
			t.Fatal(err)
		}
		e, err := p.Commit(known.Segment(i))
		if err != nil {
			t.Fatal(err)
		}
		k.look()
		until(t, func() bool { _, ok := k.swarm.Torrent(e.InfoHash()); return ok })
		e.Unpin()
	}
	k.fetchAll(t, of, content)
	if read := k.puller.BytesRead(); read > 0 {
		t.Errorf("%d bytes were read from the bucket", read)
	}
}

// What has another build under the key is not handed to anybody, and it is said why.
func TestKeptOfAnotherBuild(t *testing.T) {
	t.Parallel()
	from, of, _, _ := landed(t, 3, 6<<20, "hello.zip")
	_, other, _, _ := landed(t, 4, 6<<20, "hello.zip")
	of.SHA256 = other.SHA256
	k := startKeeper(t, t.TempDir(), from, false)
	k.keep([]goal.Build{of})
	until(t, func() bool { return strings.Contains(k.log.String(), "it is another build there") })
	if _, ok := k.recipe(of.ExecutionID); ok {
		t.Error("it is told to hosts")
	}
	if handed := k.swarm.Fleet(); handed.Handed > 0 {
		t.Errorf("%+v", handed)
	}
}

// Recipes are bounded, the oldest go first, and those that goals name stay.
func TestRecipesAreBounded(t *testing.T) {
	t.Parallel()
	k, err := newKept(keptConfig{})
	if err != nil {
		t.Fatal(err)
	}
	first := executionid.New(time.Now(), "")
	k.keep([]goal.Build{{ExecutionID: first}})
	id := first
	for range 2 * maxRecipes {
		k.note(&announce.Announcement{ExecutionID: id})
		id = executionid.New(time.Now(), id)
	}
	k.mu.Lock()
	gone := k.surplus()
	k.mu.Unlock()
	if len(k.recipes) != maxRecipes || len(gone) != maxRecipes {
		t.Errorf("%d recipes are kept, %d gone", len(k.recipes), len(gone))
	}
	if _, ok := k.recipe(first); !ok {
		t.Error("one that a goal names is gone")
	}
}
