package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// What was announced while the agent reads a whole build from the source is in that, too.
func TestRevisionWhileReadingTheSource(t *testing.T) {
	content := make([]byte, 3*manifest.MinPartLength)
	rand.NewChaCha8([32]byte{1}).Read(content)
	layout, err := manifest.NewLayout(manifest.Ramp, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	hasher := manifest.NewHasher(layout)
	hasher.Write(content)
	_, firstEnds := layout.SegmentRange(0)
	flows := make(chan struct{})
	a := startAgent(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodHead && strings.Count(r.URL.Path, "/") == 1: // a bucket
		case r.Method == http.MethodHead || r.Method == http.MethodGet && r.Header.Get("Range") != "":
			w.Header().Set("ETag", `"x"`)
			var first int64
			if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first); n == 1 && first >= firstEnds {
				select {
				case <-flows:
				case <-r.Context().Done():
				}
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		default: // the table is away
			w.WriteHeader(http.StatusBadRequest)
		}
	}), 100*time.Millisecond)
	id := ulid.Make().String()
	say := func(segments int, sha256 string) {
		t.Helper()
		now := time.Now()
		ann := &announce.Announcement{ExecutionID: id, Key: "k", SourceBucket: testSource, Destinations: []string{testBucket}, ETag: `"x"`,
			Size: layout.Size, Scheme: layout.Scheme, PieceLength: layout.PieceLength, PartLength: layout.PartLength,
			SHA256: sha256, Issued: now, Expires: now.Add(time.Hour)}
		for i := range segments {
			ann.InfoHashes = ann.InfoHashes.Append(hasher.Segment(i).InfoHash())
		}
		wire, err := announce.Sign(t.Context(), a.key, ann)
		if err != nil {
			t.Fatal(err)
		}
		a.announced(announce.Added{Announcement: ann, Wire: wire})
	}
	say(1, "")
	eventually(func() bool {
		e, ok := a.cfg.Cache.Entry(hasher.Segment(0).InfoHash())
		return ok && e.Whole()
	})
	last := layout.NumSegments() - 1
	sum := sha256.Sum256(content)
	say(last+1, hex.EncodeToString(sum[:]))
	eventually(func() bool {
		_, ok := a.swarm.Torrent(hasher.Segment(last).InfoHash())
		return ok
	})
	close(flows)
	eventually(func() bool { return !a.build(id).seen.Load().times[whole].IsZero() })
}
