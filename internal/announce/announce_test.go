package announce

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/signing"
)

var (
	// The key of all tests: signatures must not differ from run to run.
	key   = signing.Ed25519(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)))
	other = signing.Ed25519(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize)))
	trust = signing.TrustIn(key.Public())
	noon  = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
)

func id(n byte) string {
	var u ulid.ULID
	u[15] = n
	return u.String()
}

// announcement is one of three segments, sealed.
func announcement(n byte) *Announcement {
	shape := manifest.ShapeOf(2*manifest.MinPartLength + 42)
	return &Announcement{
		ExecutionID:  id(n),
		Key:          "releases/build ü+%.zip",
		SourceBucket: "global-builds",
		Destinations: []string{"region-a-builds", "region-b-builds"},
		Size:         shape.Size,
		ETag:         `"etag"`,
		Scheme:       manifest.Ramp,
		PieceLength:  shape.PieceLength,
		PartLength:   shape.PartLength,
		Headers:      map[string]string{"content-type": "application/zip", "x-amz-meta-commit": "abc"},
		InfoHashes:   InfoHashes(nil).Append(manifest.InfoHash{1}).Append(manifest.InfoHash{2}).Append(manifest.InfoHash{3}),
		SHA256:       strings.Repeat("0f", 32),
		Issued:       noon,
		Expires:      noon.Add(Lifetime),
	}
}

// revision is announcement before the seal, with so many segments, so much later.
func revision(n byte, segments int, later time.Duration) *Announcement {
	a := announcement(n)
	a.InfoHashes, a.SHA256, a.Issued = a.InfoHashes[:20*segments], "", noon.Add(later)
	return a
}

func end(n byte, issued time.Time) *End {
	return &End{ExecutionID: id(n), Key: "a", SourceBucket: "global-builds", Reason: "completed", Issued: issued, Expires: issued.Add(Lifetime)}
}

func sign(t testing.TB, doc any) []byte {
	t.Helper()
	wire, err := Sign(context.Background(), key, doc)
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

func TestSignAndOpen(t *testing.T) {
	want := announcement(1)
	got, err := Open(sign(t, want), trust, noon)
	if err != nil {
		t.Fatal(err)
	}
	if a := got.(*Announcement); a.Key != want.Key || a.InfoHashes.At(2) != (manifest.InfoHash{3}) || a.Layout().NumSegments() != 3 || len(a.Destinations) != 2 || a.Headers["x-amz-meta-commit"] != "abc" {
		t.Errorf("got %+v", a)
	}
	if got, err := Open(sign(t, end(1, noon)), trust, noon); err != nil || got.(*End).Reason != "completed" {
		t.Errorf("end: %+v, %v", got, err)
	}
}

func TestEveryChangedByteIsRefused(t *testing.T) {
	wire := sign(t, announcement(1))
	for i := range wire {
		spoiled := bytes.Clone(wire)
		spoiled[i] ^= 0x20
		if _, err := Open(spoiled, trust, noon); err == nil {
			t.Fatalf("byte %d changed and nobody saw", i)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	foreign, err := Sign(context.Background(), other, announcement(1))
	if err != nil {
		t.Fatal(err)
	}
	// An end's body under an announcement's name, rightly signed as an end.
	late := *announcement(1)
	late.ExecutionID = executionid.New(noon.Add(executionid.MaxAhead+time.Second), "")
	greatest := *end(1, noon)
	greatest.ExecutionID = "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
	issued := *announcement(1)
	issued.Issued = noon.Add(executionid.MaxAhead + time.Second)
	confused := append([]byte(announcementKind+"\n"), bytes.TrimPrefix(sign(t, end(1, noon)), []byte(endKind+"\n"))...)
	for name, c := range map[string]struct {
		wire []byte
		now  time.Time
		want error
	}{
		"another key":     {foreign, noon, ErrUntrusted},
		"another kind":    {confused, noon, ErrUntrusted},
		"too late":        {sign(t, announcement(1)), noon.Add(Lifetime + time.Second), ErrExpired},
		"far future":      {sign(t, announcement(1)), noon.Add(-maxLifetime), ErrInvalid},
		"a late id":       {sign(t, &late), noon, executionid.ErrAhead},
		"the greatest id": {sign(t, &greatest), noon, executionid.ErrAhead},
		"issued late":     {sign(t, &issued), noon, executionid.ErrAhead},
		"issued in time":  {sign(t, &issued), noon.Add(time.Second), nil},
		"nothing":         {nil, noon, ErrInvalid},
		"only the prefix": {[]byte(announcementKind + "\n"), noon, ErrInvalid},
		"too long":        {append(sign(t, announcement(1)), make([]byte, MaxLength)...), noon, ErrInvalid},
	} {
		if _, err := Open(c.wire, trust, c.now); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Announcement){
		"no key":              func(a *Announcement) { a.Key = "" },
		"long key":            func(a *Announcement) { a.Key = strings.Repeat("k", MaxKeyLength+1) },
		"key is not UTF-8":    func(a *Announcement) { a.Key = "\xff" },
		"no ULID":             func(a *Announcement) { a.ExecutionID = "1" },
		"no destination":      func(a *Announcement) { a.Destinations = nil },
		"odd bucket":          func(a *Announcement) { a.Destinations = []string{"../etc"} },
		"negative size":       func(a *Announcement) { a.Size = -1 },
		"other pieces":        func(a *Announcement) { a.PieceLength *= 2 },
		"other parts":         func(a *Announcement) { a.PartLength *= 2 },
		"unknown scheme":      func(a *Announcement) { a.Scheme = "even" },
		"half an infohash":    func(a *Announcement) { a.InfoHashes = a.InfoHashes[:50] },
		"too many segments":   func(a *Announcement) { a.InfoHashes = a.InfoHashes.Append(manifest.InfoHash{4}) },
		"infohash of zeros":   func(a *Announcement) { copy(a.InfoHashes[20:40], make([]byte, 20)) },
		"sealed too early":    func(a *Announcement) { a.InfoHashes = a.InfoHashes[:40] },
		"odd SHA-256":         func(a *Announcement) { a.SHA256 = "abc" },
		"no segment":          func(a *Announcement) { a.InfoHashes, a.SHA256 = nil, "" },
		"empty, wrong digest": func(a *Announcement) { a.Size, a.InfoHashes = 0, nil },
		"long headers":        func(a *Announcement) { a.Headers = map[string]string{"x-amz-meta-a": strings.Repeat("b", maxHeaders)} },
		"long ETag":           func(a *Announcement) { a.ETag = strings.Repeat("e", maxETag+1) },
		"negative term":       func(a *Announcement) { a.Term = -1 },
	} {
		a := announcement(1)
		spoil(a)
		if _, err := Sign(context.Background(), key, a); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The most of everything fits: a build of 5 TiB, or any other, in MaxSegments, for
// MaxDestinations, with S3's longest key and all headers.
func TestLongestAnnouncementFits(t *testing.T) {
	a := announcement(1)
	shape := manifest.ShapeOf(manifest.MaxSize)
	a.Size, a.PieceLength, a.PartLength = shape.Size, shape.PieceLength, shape.PartLength
	a.Key = strings.Repeat("\x01", MaxKeyLength) // six bytes each in JSON
	a.ETag = strings.Repeat("e", maxETag)
	a.TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	a.Term = 1 << 62
	a.High = true
	a.Headers = map[string]string{"x-amz-meta-a": strings.Repeat("<", 2<<10), "cache-control": strings.Repeat("&", 1<<10)}
	a.Destinations = nil
	for range MaxDestinations {
		a.Destinations = append(a.Destinations, strings.Repeat("b", maxBucketName))
	}
	layout, err := manifest.NewLayout(a.Scheme, a.Size)
	if err != nil {
		t.Fatal(err)
	}
	a.InfoHashes = bytes.Repeat([]byte{0xff}, 20*layout.NumSegments())
	// What a scheme may have beyond those of this one, in base64.
	more := (manifest.MaxSegments - layout.NumSegments()) * 20 * 4 / 3
	if n := len(sign(t, a)) + more; n > MaxLength {
		t.Errorf("%d bytes", n)
	}
}

// A revision only extends what is known: a shorter one, of a seeder that has begun again,
// takes nothing away, a contradiction is refused.
func TestRevisions(t *testing.T) {
	b := NewBook(trust, func() time.Time { return noon })
	add := func(a *Announcement, news bool, want error) {
		t.Helper()
		added, err := b.Add(sign(t, a))
		if !errors.Is(err, want) || (added.Announcement != nil) != news {
			t.Errorf("%d segments, sealed %v: news %v, %v", a.InfoHashes.Len(), a.Sealed(), added.Announcement != nil, err)
		}
	}
	sealed := func(later time.Duration) *Announcement {
		a := announcement(1)
		a.Issued = noon.Add(later)
		return a
	}
	add(revision(1, 2, 2*time.Second), true, nil)
	add(revision(1, 1, time.Second), false, nil)
	add(revision(1, 1, 3*time.Second), false, nil)
	add(revision(1, 2, 4*time.Second), true, nil) // announced again: try at once
	if a := b.Active()[0]; a.InfoHashes.Len() != 2 {
		t.Errorf("%d segments", a.InfoHashes.Len())
	}
	add(sealed(5*time.Second), true, nil)
	add(revision(1, 3, 6*time.Second), false, nil)
	add(sealed(7*time.Second), true, nil)
	// Of a build that goes up, the ETag is known at its end; what was said before that comes
	// late, and is no contradiction.
	late := revision(1, 3, 8*time.Second)
	late.ETag = ""
	add(late, false, nil)
	if late.InfoHashes.Len() != b.Active()[0].InfoHashes.Len() || b.Active()[0].ETag == "" {
		t.Errorf("%+v", b.Active()[0])
	}
	goesUp := NewBook(trust, func() time.Time { return noon })
	for _, etag := range []string{"", announcement(1).ETag} {
		a := revision(1, 3, time.Second)
		a.ETag = etag
		if added, err := goesUp.Add(sign(t, a)); err != nil || added.Announcement == nil {
			t.Errorf("with ETag %q: %+v, %v", etag, added, err)
		}
	}
	// By a clock that was set back: what says more is news all the same.
	other := NewBook(trust, func() time.Time { return noon })
	for _, a := range []*Announcement{revision(1, 1, 3*time.Second), revision(1, 2, 2*time.Second), sealed(time.Second)} {
		if added, err := other.Add(sign(t, a)); err != nil || added.Announcement == nil {
			t.Errorf("%d segments: %+v, %v", a.InfoHashes.Len(), added, err)
		}
	}
	for name, spoil := range map[string]func(*Announcement){
		"segment": func(a *Announcement) { a.InfoHashes = bytes.Clone(a.InfoHashes); a.InfoHashes[0]++ },
		"digest":  func(a *Announcement) { a.SHA256 = strings.Repeat("1e", 32) },
		"ETag":    func(a *Announcement) { a.ETag = "other" },
		"key":     func(a *Announcement) { a.Key = "other" },
		"source":  func(a *Announcement) { a.SourceBucket = "other" },
	} {
		a := sealed(8 * time.Second)
		if spoil(a); !errors.Is(a.extends(sealed(0)), ErrContradiction) {
			t.Errorf("another %s is none", name)
		}
		add(a, false, ErrContradiction)
	}
	later := sealed(9 * time.Second)
	later.Term = 2
	add(later, true, nil)
	add(sealed(10*time.Second), false, ErrOldTerm)
	if a := b.Active(); len(a) != 1 || !a[0].Sealed() || a[0].Term != 2 {
		t.Errorf("%+v", a)
	}
}

func TestBook(t *testing.T) {
	now := noon
	b := NewBook(trust, func() time.Time { return now })
	add := func(doc any) Added {
		t.Helper()
		added, err := b.Add(sign(t, doc))
		if err != nil {
			t.Fatal(err)
		}
		return added
	}
	if added := add(announcement(1)); added.Announcement == nil {
		t.Fatal("first announcement is no news")
	}
	if added := add(announcement(1)); added.Announcement != nil {
		t.Error("the same announcement is news twice")
	}
	if added := add(end(1, noon.Add(time.Second))); added.End == nil || len(b.Active()) != 0 {
		t.Error("end did not retire the announcement")
	}
	if added := add(announcement(1)); added.Announcement != nil || added.Reply == nil {
		t.Error("an ended execution's old announcement must be answered with its end")
	}
	again := announcement(1)
	again.Issued = noon.Add(2 * time.Second)
	if added := add(again); added.Announcement == nil {
		t.Error("announced again after its end, and not taken")
	}
	if added := add(end(1, noon.Add(time.Second))); added.End != nil || len(b.Active()) != 1 {
		t.Error("an old end retired a newer announcement")
	}
	now = noon.Add(Lifetime + time.Minute)
	if len(b.Active()) != 0 {
		t.Error("announcement outlived its time")
	}
}

func TestIssueGoesForwardWhenTheClockGoesBack(t *testing.T) {
	now := noon
	b := NewBook(trust, func() time.Time { return now })
	if _, err := b.Add(sign(t, announcement(1))); err != nil {
		t.Fatal(err)
	}
	now = noon.Add(-time.Hour)
	if issued := b.Issue(id(1)); !issued.After(noon) {
		t.Errorf("issued at %s", issued)
	}
}

// Members whose clocks are an hour ahead or behind take announcement, end and a new
// announcement in the order of the seeder, whose own clock jumps meanwhile.
func TestClocksApart(t *testing.T) {
	seederNow := noon
	seeder := NewBook(trust, func() time.Time { return seederNow })
	var members []*Book
	for _, apart := range []time.Duration{-time.Hour, 0, time.Hour} {
		members = append(members, NewBook(trust, func() time.Time { return noon.Add(apart) }))
	}
	tell := func(doc any) {
		wire := sign(t, doc)
		for _, b := range append(members, seeder) {
			if added, err := b.Add(wire); err != nil || added.Announcement == nil && added.End == nil {
				t.Fatalf("%T is no news: %+v, %v", doc, added, err)
			}
		}
	}
	a := announcement(1)
	a.Issued, a.Expires = seeder.Issue(id(1)), noon.Add(Lifetime)
	tell(a)
	seederNow = noon.Add(-time.Hour)
	tell(end(1, seeder.Issue(id(1))))
	seederNow = noon.Add(-2 * time.Hour)
	again := announcement(1)
	again.Issued, again.Expires = seeder.Issue(id(1)), noon.Add(Lifetime)
	tell(again)
	for i, b := range members {
		if got := len(b.Active()); got != 1 {
			t.Errorf("member %d has %d announcements", i, got)
		}
	}
}

func TestStateBringsALatecomerUpToDate(t *testing.T) {
	b := NewBook(trust, func() time.Time { return noon })
	for n := range byte(5) {
		if _, err := b.Add(sign(t, announcement(n))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Add(sign(t, end(0, noon.Add(time.Second)))); err != nil {
		t.Fatal(err)
	}
	late := NewBook(trust, func() time.Time { return noon })
	EachInState(b.State(), func(wire []byte) bool {
		if _, err := late.Add(wire); err != nil {
			t.Error(err)
		}
		return true
	})
	if got := len(late.Active()); got != 4 {
		t.Errorf("latecomer has %d of 4 active announcements", got)
	}
}

// The book is bounded in number and in bytes; ends make room for newer ones, since the
// table knows them.
func TestBookIsBounded(t *testing.T) {
	b := NewBook(trust, func() time.Time { return noon })
	big := make([]byte, MaxLength)
	for i := 0; b.active.bytes+len(big) <= maxActiveBytes; i++ {
		b.active.put(fmt.Sprint("filler", i), entry{wire: binary.BigEndian.AppendUint32(big[:MaxLength-4:MaxLength-4], uint32(i)), expires: noon.Add(time.Hour)})
	}
	for i := 0; i < 100 && b.active.bytes <= maxActiveBytes; i++ {
		wire := sign(t, announcement(byte(i)))
		before := b.active.bytes
		if _, err := b.Add(wire); before+len(wire) > maxActiveBytes != errors.Is(err, ErrFull) {
			t.Fatalf("%d bytes and %d more: %v", before, len(wire), err)
		}
	}
	if b.active.bytes > maxActiveBytes {
		t.Errorf("%d bytes of announcements", b.active.bytes)
	}
	for i := 0; b.ended.bytes+len(big) <= maxEndedBytes; i++ {
		b.ended.put(fmt.Sprint("filler", i), entry{wire: binary.BigEndian.AppendUint32(big[:MaxLength-4:MaxLength-4], uint32(i)), expires: noon.Add(time.Hour), added: noon.Add(time.Duration(i))})
	}
	b.ended.put("last", entry{wire: make([]byte, maxEndedBytes-b.ended.bytes), expires: noon.Add(time.Hour), added: noon.Add(time.Hour)})
	if _, err := b.Add(sign(t, end(1, noon))); err != nil {
		t.Fatal(err)
	}
	if _, there := b.ended.of["filler0"]; there || b.ended.bytes > maxEndedBytes {
		t.Errorf("the oldest end is kept: %t; %d bytes of ends", there, b.ended.bytes)
	}
	if n := len(b.State()); n > MaxState {
		t.Errorf("a state of %d bytes", n)
	}

	for _, es := range []entries{b.active, b.ended} {
		total := 0
		for _, e := range es.of {
			total += len(e.wire)
		}
		if total != es.bytes || len(es.wires) != len(es.of) {
			t.Errorf("%d bytes are %d, %d documents have %d sums", es.bytes, total, len(es.of), len(es.wires))
		}

	}
}

// A sender stands at the end of a state, where who does not know of it stops.
func TestSenderOfAState(t *testing.T) {
	for _, name := range []string{"", "agent-1", strings.Repeat("n", MaxSender), strings.Repeat("n", MaxSender+1)} {
		state := AppendSender(AppendFrame(AppendFrame(nil, []byte("one")), []byte("two")), name)
		var got []string
		sender := EachInState(state, func(wire []byte) bool { got = append(got, string(wire)); return true })
		if sender != name[:min(len(name), MaxSender)] || !slices.Equal(got, []string{"one", "two"}) {
			t.Errorf("%q: %q, %q", name, sender, got)
		}
	}
	if sender := EachInState(AppendFrame(nil, []byte("one")), func([]byte) bool { return true }); sender != "" {
		t.Errorf("nobody is %q", sender)
	}
	calls := 0
	EachInState(make([]byte, 100), func([]byte) bool { calls++; return calls < 3 })
	if calls != 3 {
		t.Errorf("%d calls after an end", calls)
	}
}

func TestEndsAreForgottenInTime(t *testing.T) {
	now := noon
	b := NewBook(trust, func() time.Time { return now })
	if _, err := b.Add(sign(t, end(1, noon))); err != nil {
		t.Fatal(err)
	}
	now = noon.Add(tellEndsFor + time.Second)
	if len(b.State()) != 0 {
		t.Error("an old end is still told to everyone")
	}
	if added, err := b.Add(sign(t, announcement(1))); err != nil || added.Reply == nil {
		t.Error("but whoever still announces it must be told")
	}
}

// p256 signs as AWS KMS does.
type p256 struct{ *ecdsa.PrivateKey }

func (k p256) Public() signing.PublicKey {
	public, err := signing.ECDSAKey(&k.PublicKey)
	if err != nil {
		panic(err)
	}
	return public
}

func (k p256) Sign(_ context.Context, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, k.PrivateKey, digest[:])
	if err != nil {
		return nil, err
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...), nil
}

// Both algorithms carry all documents, and neither is taken for the other.
func TestP256(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := p256{ec}
	both := signing.TrustIn(key.Public(), signer.Public())
	for _, doc := range []any{announcement(1), end(1, noon)} {
		wire, err := Sign(t.Context(), signer, doc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(wire, both, noon); err != nil {
			t.Errorf("%T: %v", doc, err)
		}
		if _, err := Open(wire, trust, noon); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%T of a key that is not trusted: %v", doc, err)
		}
		for i := range wire {
			spoiled := bytes.Clone(wire)
			spoiled[i] ^= 0x20
			if _, err := Open(spoiled, both, noon); err == nil {
				t.Fatalf("%T: byte %d changed and nobody saw", doc, i)
			}
		}
		plain := bytes.Replace(wire, []byte("-p256\n"), []byte("\n"), 1)
		if _, err := Open(plain, both, noon); err == nil {
			t.Errorf("%T: taken for one of the other algorithm", doc)
		}
	}
}

// A key may be trusted with some builds alone, and no longer than somebody says.
func TestTrustIsNarrow(t *testing.T) {
	narrow, err := signing.OpenTrust([]string{key.Public().String() + ":prefix=web/"}, "")
	if err != nil {
		t.Fatal(err)
	}
	a := announcement(1)
	if _, err := Open(sign(t, a), narrow, noon); !errors.Is(err, ErrUntrusted) {
		t.Errorf("an announcement of another build: %v", err)
	}
	if _, err := Open(sign(t, end(1, noon)), narrow, noon); !errors.Is(err, ErrUntrusted) {
		t.Errorf("the end of another build: %v", err)
	}
	a.Key = "web/build.zip"
	if _, err := Open(sign(t, a), narrow, noon); err != nil {
		t.Error(err)
	}

	keys := filepath.Join(t.TempDir(), "keys")
	put := func(keys string, lines ...signing.PublicKey) {
		var text string
		for _, l := range lines {
			text += l.String() + "\n"
		}
		if err := os.WriteFile(keys, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(keys, key.Public(), other.Public())
	now, err := signing.OpenTrust([]string{keys}, "")
	if err != nil {
		t.Fatal(err)
	}
	b := NewBook(now, func() time.Time { return noon })
	byOther, err := Sign(t.Context(), other, announcement(2))
	if err != nil {
		t.Fatal(err)
	}
	for _, wire := range [][]byte{sign(t, announcement(1)), byOther} {
		if _, err := b.Add(wire); err != nil {
			t.Fatal(err)
		}
	}
	if ends := b.Recheck(); len(ends) != 0 {
		t.Errorf("ended for nothing: %+v", ends)
	}
	put(keys, other.Public())
	if _, err := now.Reload(); err != nil {
		t.Fatal(err)
	}
	if ends := b.Recheck(); len(ends) != 1 || ends[0].ExecutionID != id(1) || ends[0].Reason != Untrusted {
		t.Errorf("ended: %+v", ends)
	}
	if active := b.Active(); len(active) != 1 || active[0].ExecutionID != id(2) {
		t.Errorf("%d hold", len(active))
	}
	// Announced again by who is trusted, it holds: nothing remembers an end.
	again, err := Sign(t.Context(), other, announcement(1))
	if err != nil {
		t.Fatal(err)
	}
	if added, err := b.Add(again); err != nil || added.Announcement == nil {
		t.Errorf("announced again: %+v, %v", added, err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(sign(f, announcement(1)))
	f.Add(sign(f, end(1, noon)))
	f.Fuzz(func(t *testing.T, wire []byte) {
		doc, err := Open(wire, trust, noon)
		if err != nil {
			return
		}
		if _, err := Sign(context.Background(), key, doc); err != nil {
			t.Errorf("opened a document that cannot be signed: %v", err)
		}
	})
}

// FuzzDecode goes past the signature, which no fuzzer can guess.
func FuzzDecode(f *testing.F) {
	body, err := json.Marshal(announcement(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > MaxLength {
			return
		}
		a := new(Announcement)
		if decode(signing.Opened{Body: body}, a, noon) != nil {
			return
		}
		if a.Size < 0 || len(a.Key) > MaxKeyLength || len(a.Destinations) > MaxDestinations {
			t.Errorf("out of bounds: %+v", a)
		}
	})
}

func FuzzState(f *testing.F) {
	b := NewBook(trust, func() time.Time { return noon })
	if _, err := b.Add(sign(f, announcement(1))); err != nil {
		f.Fatal(err)
	}
	f.Add(b.State())
	f.Fuzz(func(t *testing.T, state []byte) {
		total := 0
		EachInState(state, func(wire []byte) bool { total += 2 + len(wire); return true })
		if total > len(state) {
			t.Errorf("%d bytes out of %d", total, len(state))
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	wire := sign(b, announcement(1))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Open(wire, trust, noon); err != nil {
			b.Fatal(err)
		}
	}
}
