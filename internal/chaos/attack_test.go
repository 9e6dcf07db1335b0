//go:build linux

package chaos

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/attack"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

const (
	attackedSize = 64 << 20
	// attackedLink makes the build take seconds, so that the attack has time to do harm.
	attackedLink = 16 << 20
	// attackedMemory bounds what a member has resident under attack, in bytes, and
	// attackedLog what it logs, in bytes a minute.
	attackedMemory, attackedLog = 256 << 20, 1 << 20
	// attackedSlack is by how much an attack may delay a build here, where the attacker works
	// on the same cores; `go test -v` prints what it was.
	attackedSlack = 3
	// attackedWait is how much longer a build may take beside who delays it.
	attackedWait = 4 * arrivals.Patience
)

// TestAttacks has four regions land a build beside each attacker: it arrives, hardly later
// than without, and no member's memory or log grows without a bound.
func TestAttacks(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1, 1, 1}, Link: attackedLink, Seed: 17})
	took := func(key string) time.Duration {
		begun := time.Now()
		w.Completed(w.Put(key, attackedSize))
		return time.Since(begun)
	}
	usual := max(took("before.zip"), took("before too.zip"))
	t.Logf("without an attacker: %.1f s", usual.Seconds())
	var mu sync.Mutex
	var current *Version
	under := func() *Version {
		mu.Lock()
		defer mu.Unlock()
		return current
	}
	target := attack.Target{
		Listen: "127.0.0.1", Bucket: w.Buckets[0], SourceBucket: w.Global,
		InfoHash: func() (manifest.InfoHash, bool) {
			v := under()
			if v == nil {
				return manifest.InfoHash{}, false
			}
			r, err := w.Ledger.Get(context.Background(), ledger.Key{FileKey: v.Key, SourceBucket: w.Global})
			if err != nil {
				return manifest.InfoHash{}, false
			}
			infohash, err := manifest.ParseInfoHash(r.InfoHash)
			return infohash, err == nil
		},
		PeerIDs: func() (ids [][20]byte) {
			s, err := w.Agents[0].AgentStatus(context.Background())
			if err != nil {
				return nil
			}
			for _, m := range s.Members {
				ids = append(ids, peerwire.PeerID(m.Name))
			}
			return ids
		},
		Executions: func() (ids []string) {
			if v := under(); v != nil {
				if r, err := w.Ledger.Get(context.Background(), ledger.Key{FileKey: v.Key, SourceBucket: w.Global}); err == nil {
					ids = append(ids, r.ExecutionID)
				}
			}
			return ids
		},
	}
	for _, m := range w.Members() {
		ip := m.addr.String()
		target.Gossip = append(target.Gossip, ip+":"+gossipPort)
		target.Peers = append(target.Peers, ip+":"+peerPort)
		target.HTTP = append(target.HTTP, ip+":"+httpPort)
	}
	for _, a := range attack.Attackers() {
		w.Sub(t, a.Name, func(t *testing.T) {
			logged := make(map[*Member]int64)
			for _, m := range w.Members() {
				logged[m] = lengthOf(t, m.log())
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- a.Run(ctx, target) }()
			defer cancel()
			begun := time.Now()
			v := w.Put("beside "+a.Name+".zip", attackedSize)
			mu.Lock()
			current = v
			mu.Unlock()
			w.Completed(v)
			needed := time.Since(begun)
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("the attacker: %v", err)
			}
			var most, lines int64
			for _, m := range w.Members() {
				l, err := m.Levels()
				if err != nil {
					t.Errorf("%s: %v", m.Name, err)
				}
				most, lines = max(most, l.Resident), max(lines, lengthOf(t, m.log())-logged[m])
			}
			perMinute := float64(lines) / max(needed.Minutes(), 1)
			t.Logf("%.1f s, %.2f times as long as without; %d MiB resident at most, %d kB logged", needed.Seconds(), float64(needed)/float64(usual), most>>20, lines/1000)
			allowed := attackedSlack * usual
			if a.Delays {
				allowed += attackedWait
			}
			if needed > allowed {
				t.Errorf("the build took %s, without an attacker %s", needed, usual)
			}
			if most > attackedMemory || perMinute > attackedLog {
				t.Errorf("%d bytes resident, %.0f logged a minute", most, perMinute)
			}
		})
	}
}

func lengthOf(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
