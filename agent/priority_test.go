package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/internal/turns"
)

// A high build has its turn although all are taken by others; there are as many again, and
// no more.
func TestHighBuildDoesNotQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{active: turns.NewSlots(1), beyond: turns.NewSlots(1), metrics: newMetrics()}
		had := make(map[string]*turns.Slots)
		for _, of := range []struct {
			name string
			high bool
		}{{"first", false}, {"second", false}, {"urgent", true}, {"one more", true}} {
			go func() {
				from, err := a.awaitTurn(t.Context(), of.high)
				if err == nil {
					had[of.name] = from
				}
			}()
			synctest.Wait()
		}
		if len(had) != 2 || had["first"] == nil || had["urgent"] == nil || a.queued() != 2 {
			t.Fatalf("%d have a turn, %d wait", len(had), a.queued())
		}
		had["urgent"].Give()
		synctest.Wait()
		if had["one more"] == nil || had["second"] != nil {
			t.Error("the turn of a high one is not the next high one's")
		}
		had["first"].Give()
		synctest.Wait()
		if had["second"] == nil {
			t.Error("the next one has no turn")
		}
	})
}

// announcementOf is one of a build of three segments that nobody has.
func announcementOf(t *testing.T, high bool) *announce.Announcement {
	t.Helper()
	layout, err := manifest.NewLayout(manifest.Ramp, 3*manifest.MinPartLength)
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	ann := &announce.Announcement{
		ExecutionID: worldID, Key: "k", SourceBucket: testSource, Destinations: []string{testBucket}, Size: layout.Size, ETag: "e", High: high,
		Scheme: layout.Scheme, PieceLength: layout.PieceLength, PartLength: layout.PartLength,
		Issued: time.Now(), Expires: time.Now().Add(announce.Lifetime),
	}
	for i := range layout.NumSegments() {
		ann.InfoHashes = ann.InfoHashes.Append(manifest.InfoHash{byte(i + 1)})
	}
	if _, err := announce.Sign(t.Context(), signing.Ed25519(key), ann); err != nil {
		t.Fatal(err)
	}
	return ann
}

// While a high build comes, others ask for no more than their oldest segment; when nothing
// comes of it any more, for all again.
func TestOthersAskForLess(t *testing.T) {
	a := startAgent(t, &stores{}, time.Hour).Agent
	show := func(id string, ann *announce.Announcement) *build {
		b := newBuild(a, id, ledger.Key{FileKey: id, SourceBucket: testSource})
		f := finished{}
		if b.join(t.Context(), ann, &f); f.err != nil {
			t.Fatal(f.err)
		}
		b.member = f.got.(*membership)
		b.seen.Store(&shown{ann: ann, state: api.StateDownloading, started: time.Now(), member: b.member})
		a.mu.Lock()
		defer a.mu.Unlock()
		a.builds[id] = b
		return b
	}
	normal := show("normal", announcementOf(t, false))
	high := show("high", announcementOf(t, true))
	for _, s := range high.member.all() { // of other bytes
		a.release(s.download, s)
	}
	high.member.segments = nil
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := normal.steer(ctx, normal.member)
		ended <- err
	}()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		normal.member.leave()
		a.mu.Lock()
		defer a.mu.Unlock()
		clear(a.builds)
	}()
	until := func(when string, want ...bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			var held []bool
			for _, s := range normal.member.all() {
				s.download.mu.Lock()
				held = append(held, s.download.held[s])
				s.download.mu.Unlock()
			}
			if slices.Equal(held, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: held back are %v, %v is right", when, held, want)
			}
		}
	}
	until("before", false, false, false)
	comes := func(when time.Time) {
		high.member.came.Store(when.UnixNano())
		high.member.lacks.Store(true)
	}
	comes(time.Now().Add(time.Hour)) // all the while
	until("while it comes", false, true, true)
	comes(time.Now().Add(-2 * highPatience))
	until("when nothing comes", false, false, false)
	comes(time.Now().Add(time.Hour))
	until("when it comes again", false, true, true)
	high.member.lacks.Store(false)
	until("when all of it is here", false, false, false)
}

// What is shared with a build that does not wait is not held back.
func TestSharedSegmentIsNotHeld(t *testing.T) {
	a := startAgent(t, &stores{}, time.Hour).Agent
	ann := announcementOf(t, false)
	one, other := &segment{move: func() {}}, &segment{move: func() {}}
	var d *download
	for _, s := range []*segment{one, other} {
		var err error
		if d, err = a.acquire(t.Context(), s, ann.InfoHashes.At(0), ann.Layout().SegmentShape(0), ann.Destinations); err != nil {
			t.Fatal(err)
		}
	}
	if d.hold(one, true) {
		t.Error("it is held back for one of two")
	}
	if !d.hold(other, true) {
		t.Error("it is not held back for both")
	}
	if d.hold(other, false) {
		t.Error("it is held back still")
	}
	d.hold(other, true)
	a.release(d, one)
	a.release(d, other)
}

// The parts of a high build go before others, its job says so.
func TestHighBuildLandsFirst(t *testing.T) {
	a := startAgent(t, &stores{}, time.Hour).Agent
	for _, high := range []bool{false, true} {
		b := newBuild(a, worldID, ledger.Key{FileKey: "k", SourceBucket: testSource})
		b.machine.ann = announcementOf(t, false)
		b.newJob()
		b.machine.ann = announcementOf(t, high) // a revision
		if job := b.landing(); job.High != high {
			t.Errorf("its landing goes first: %v, announced is %v", job.High, high)
		}
		if s := (&shown{ann: b.machine.ann}).view(nil); s.Priority != api.Priority(high) {
			t.Errorf("shown with priority %q", s.Priority)
		}
	}
}

// A build that becomes a high one while it waits for a turn waits for one of those.
func TestHighWhileItWaits(t *testing.T) {
	d := newDriven()
	higher := *d.ann
	higher.High = true
	d.does(t, d.hear(0, announced{ann: &higher}), cancel{awaitTurn}, revised{})
	d.does(t, d.hear(0, finished{work: awaitTurn, err: context.Canceled}), begin{awaitTurn})
}
