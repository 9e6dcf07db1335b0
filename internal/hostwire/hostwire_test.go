package hostwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ulid1 = "01JD0000000000000000000001"
	ulid2 = "01JD0000000000000000000002"
)

func state() ServiceState {
	return ServiceState{Service: "web", Goal: 3, State: "ready", Running: ulid1, Wants: ulid2}
}

func hello() *Hello {
	return &Hello{Version: Version, Host: "host-1", Start: ulid1, Zone: "zone-a", PeerPort: 7000,
		Labels: map[string]string{"rack": "7"}, Program: "1.2.3", Services: []ServiceState{state()}, Holds: []Holds{{ulid1, 2, true}}}
}

func peers(n int) (peers []Peer) {
	for i := range n {
		peers = append(peers, Peer{strings.Repeat("n", MaxPeerName), "host-" + strings.Repeat("x", MaxName-5), netip.AddrPortFrom(netip.MustParseAddr("2001:db8:1111:2222:3333:4444:5555:6666"), uint16(i+1))})
	}
	return peers
}

// recipe is that of a build of so many segments, of which so many are known.
func recipe(t testing.TB, known int) *Recipe {
	t.Helper()
	shape := manifest.ShapeOf(1 << 30)
	l, err := manifest.NewLayout(manifest.Ramp, shape.Size)
	if err != nil {
		t.Fatal(err)
	}
	if known < 0 {
		known = l.NumSegments()
	}
	r := &Recipe{ExecutionID: ulid1, Key: "build.zip", Size: shape.Size, Scheme: manifest.Ramp, PieceLength: shape.PieceLength, PartLength: shape.PartLength, Sealed: known == l.NumSegments()}
	for i := range known {
		r.InfoHashes = announce.InfoHashes(r.InfoHashes).Append(manifest.InfoHash{1, byte(i)})
	}
	return r
}

func messages(t testing.TB) []Message {
	return []Message{
		hello(), &State{state()}, &Holds{ulid1, 0, false}, &Ping{},
		&Welcome{Version: Version, Region: "region-a", Agents: []string{"https://10.0.0.1:7090"}},
		&Goal{[]byte("goal")}, &Beat{[]byte("beat")}, recipe(t, -1), &Neighbours{Peers: peers(8), Sources: peers(2)}, &Leave{"web", 3, 30},
	}
}

func TestEveryMessageComesAsItWasSent(t *testing.T) {
	var wire bytes.Buffer
	for _, m := range messages(t) {
		e, err := Encode(m)
		if err != nil {
			t.Fatalf("%T: %v", m, err)
		}
		wire.Write(e)
	}
	for _, want := range messages(t) {
		got, _, err := Read(&wire)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%T: %+v, %v", want, got, err)
		}
	}
	if _, _, err := Read(&wire); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// What a newer version says is skipped, what is no message is refused.
func TestReading(t *testing.T) {
	framed := func(json string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(json))), json...)
	}
	for name, c := range map[string]struct {
		wire []byte
		want error
	}{
		"a kind of later":     {framed(`{"recall":{"wire":"AA=="}}`), nil},
		"a field of later":    {framed(`{"ping":{"load":1}}`), nil},
		"two in one":          {framed(`{"ping":{},"goal":{"wire":"AA=="}}`), ErrInvalid},
		"no JSON":             {framed(`ping`), ErrInvalid},
		"nothing":             {framed(``), ErrInvalid},
		"an array":            {framed(`[]`), ErrInvalid},
		"longer than allowed": {binary.BigEndian.AppendUint32(nil, MaxFrame+1), ErrInvalid},
		"cut off":             {framed(`{"ping":{}}`)[:8], io.ErrUnexpectedEOF},
		"cut off at its head": {framed(`{"ping":{}}`)[:2], io.ErrUnexpectedEOF},
		"a bad message":       {framed(`{"leave":{"service":"../web","version":1}}`), ErrInvalid},
	} {
		if _, _, err := Read(bytes.NewReader(c.wire)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNewerVersions: what a newer version says beside or within each kind of message, and a
// name that this one does not know, ends no stream; what is known of it is taken.
func TestNewerVersions(t *testing.T) {
	wire := func(json string) *bytes.Reader {
		return bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, uint32(len(json))), json...))
	}
	for _, m := range messages(t) {
		e, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		text := string(e[headerLength:])
		kind, body, _ := strings.Cut(text, ":{")
		more := `"ofLater":{"a":[1]}`
		if body != "}}" {
			more += ","
		}
		for _, json := range []string{kind + ":{" + more + body, `{"ofLater":{"a":[1]},` + text[1:]} {
			got, _, err := Read(wire(json))
			if err != nil || !reflect.DeepEqual(got, m) {
				t.Errorf("%T of %.60s: %+v, %v", m, json, got, err)
			}
		}
	}
	newer := state()
	newer.State, newer.Phase = "resting", "of later"
	h := hello()
	h.Version, h.Services = Version+1, []ServiceState{newer}
	r := recipe(t, 3)
	r.Scheme, r.PieceLength, r.PartLength, r.From = "steps", 7, 9, 300
	for _, m := range []Message{&State{newer}, h, &Welcome{Version: Version + 1, Region: "region-a"}, r} {
		e, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, err := Read(bytes.NewReader(e)); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%T: %+v, %v", m, got, err)
		}
	}
	// Of a recipe that cannot be followed only its name is kept.
	var known recipes
	if _, err := known.add(recipe(t, 2)); err != nil {
		t.Fatal(err)
	}
	for range 2 * maxRecipes {
		got, err := known.add(r)
		if err != nil || got.Unknown() == nil || !strings.Contains(got.Unknown().Error(), "steps") || got.Key != r.Key || len(got.InfoHashes) > 0 {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if len(known) > 0 {
		t.Errorf("%d are kept", len(known))
	}
}

// Who says that much will come does not have it reserved before it comes.
func TestLengthAloneCostsNothing(t *testing.T) {
	head := binary.BigEndian.AppendUint32(nil, MaxFrame)
	m := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := Read(bytes.NewReader(head)); !errors.Is(err, io.ErrUnexpectedEOF) {
				b.Fatal(err)
			}
		}
	})
	if m.AllocedBytesPerOp() > 4<<10 {
		t.Errorf("%d bytes for a length alone", m.AllocedBytesPerOp())
	}
}

func TestBounds(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	for name, m := range map[string]Message{
		"host's name":         func() Message { h := hello(); h.Host = long(MaxName + 1); return h }(),
		"no name":             func() Message { h := hello(); h.Host = ""; return h }(),
		"name with a slash":   func() Message { h := hello(); h.Host = "a/b"; return h }(),
		"start":               func() Message { h := hello(); h.Start = "now"; return h }(),
		"version":             func() Message { h := hello(); h.Version = 0; return h }(),
		"zone":                func() Message { h := hello(); h.Zone = long(MaxLabel + 1); return h }(),
		"zone with an escape": func() Message { h := hello(); h.Zone = "\x1b[2J"; return h }(),
		"label":               func() Message { h := hello(); h.Labels["a"] = long(MaxLabel + 1); return h }(),
		"services":            func() Message { h := hello(); h.Services = make([]ServiceState, MaxServices+1); return h }(),
		"service twice":       func() Message { h := hello(); h.Services = append(h.Services, state()); return h }(),
		"builds":              func() Message { h := hello(); h.Holds = make([]Holds, MaxHolds+1); return h }(),
		"error":               func() Message { s := state(); s.Error = long(MaxError + 1); return &State{s} }(),
		"output":              func() Message { s := state(); s.Output = long(MaxOutput + 1); return &State{s} }(),
		"output not UTF-8":    func() Message { s := state(); s.Output = "\xff"; return &State{s} }(),
		"running":             func() Message { s := state(); s.Running = "build.zip"; return &State{s} }(),
		"goal's version":      func() Message { s := state(); s.Goal = -1; return &State{s} }(),
		"segments":            &Holds{ulid1, manifest.MaxSegments + 1, false},
		"document":            &Goal{make([]byte, MaxDocument+1)},
		"empty document":      &Beat{},
		"peers":               &Neighbours{Peers: peers(MaxPeers + 1)},
		"peer without a port": &Neighbours{Peers: []Peer{{"host-1.1", "host-1", netip.AddrPortFrom(netip.IPv6Loopback(), 0)}}},
		"peer nowhere":        &Neighbours{Peers: []Peer{{Name: "host-1.1", ID: "host-1"}}},
		"sources":             &Neighbours{Sources: peers(MaxAgents + 1)},
		"agents":              &Welcome{Version: 1, Agents: make([]string, MaxAgents+1)},
		"agent's address":     &Welcome{Version: 1, Agents: []string{"file:///etc/passwd"}},
		"leave":               &Leave{"web", 0, 30},
		"recipe cut wrongly":  func() Message { r := recipe(t, 3); r.PieceLength *= 2; return r }(),
		"recipe sealed early": func() Message { r := recipe(t, 3); r.Sealed = true; return r }(),
		"recipe too long":     func() Message { r := recipe(t, -1); r.InfoHashes = r.InfoHashes.Append(manifest.InfoHash{1}); return r }(),
		"recipe's scheme":     func() Message { r := recipe(t, 3); r.Scheme = manifest.Scheme(long(MaxLabel + 1)); return r }(),
		"recipe of zeros":     func() Message { r := recipe(t, 3); r.InfoHashes = make([]byte, 20); return r }(),
		"recipe of nothing":   &Recipe{},
	} {
		if _, err := Encode(m); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The longest of each message fits a frame.
func TestLongestMessagesFit(t *testing.T) {
	h := hello()
	h.Services, h.Holds, h.Labels = nil, nil, map[string]string{}
	worst := `"` // two bytes in JSON
	for i := range MaxServices {
		h.Services = append(h.Services, ServiceState{Service: strings.Repeat(string(rune('a'+i)), MaxName), Goal: 1 << 62, State: strings.Repeat(worst, MaxLabel),
			Running: ulid1, Wants: ulid2, Phase: strings.Repeat(worst, MaxLabel), Attempt: 1 << 30, Error: strings.Repeat(worst, MaxError), Output: strings.Repeat("\n", MaxOutput)})
	}
	for range MaxHolds {
		h.Holds = append(h.Holds, Holds{ulid1, manifest.MaxSegments, true})
	}
	for i := range MaxLabels {
		h.Labels[strings.Repeat(worst, MaxLabel-1)+string(rune('a'+i))] = strings.Repeat(worst, MaxLabel)
	}
	welcome := &Welcome{Version: 1, Region: strings.Repeat(worst, MaxLabel)}
	for range MaxAgents {
		welcome.Agents = append(welcome.Agents, "http://"+strings.Repeat("a", maxURL-len("http://")))
	}
	r := recipe(t, -1)
	r.Key = strings.Repeat("\x01", announce.MaxKeyLength)
	for _, m := range []Message{h, welcome, r, &Goal{make([]byte, MaxDocument)}, &Neighbours{peers(MaxPeers), peers(MaxAgents)}} {
		if _, err := Encode(m); err != nil {
			t.Errorf("%T: %v", m, err)
		}
	}
}

// Whatever a hook prints, it fits, and a terminal may show it.
func TestTextsAreMadeToFit(t *testing.T) {
	for _, text := range []string{"", "exit status 1", "a\nb\r\nc", "\x1b[31mred\x00", "\xff\xfe", strings.Repeat("é", 5000), strings.Repeat("line\n", 1000), strings.Repeat("\u2028", 3000)} {
		s := state()
		s.Error, s.Output = Line(text), Tail(text)
		if _, err := Encode(&State{s}); err != nil {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	if got := Tail(strings.Repeat("begin\n", 1000) + "the end\n"); !strings.HasSuffix(got, "\nthe end") || !strings.HasPrefix(got, "begin\n") {
		t.Errorf("%.30q … %q", got, got[len(got)-20:])
	}
	if got := Line("no such\n file"); got != "no such file" {
		t.Errorf("%q", got)
	}
}

// A recipe that is told piecemeal is put together; what does not fit is refused.
func TestRecipesGrow(t *testing.T) {
	var r recipes
	before := recipe(t, 2)
	if got, err := r.add(before); err != nil || got.InfoHashes.Len() != 2 {
		t.Fatal(got, err)
	}
	for _, known := range []int{5, 6, -1} {
		now := recipe(t, known)
		more := now.More(before)
		if more == nil || more.From != before.InfoHashes.Len() {
			t.Fatalf("%+v", more)
		}
		got, err := r.add(more)
		if err != nil || !reflect.DeepEqual(got, now) {
			t.Fatalf("%+v, %v", got, err)
		}
		before = now
	}
	if before.More(before) != nil {
		t.Error("nothing is more than nothing")
	}
	if len(r) != 0 {
		t.Errorf("%d are kept after their seal", len(r))
	}
	gap := recipe(t, 4).More(recipe(t, 2))
	if _, err := r.add(gap); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if _, err := r.add(recipe(t, 2)); err != nil {
		t.Fatal(err)
	}
	other := recipe(t, 4).More(recipe(t, 2))
	other.Size++
	if _, err := r.add(other); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	for i := range maxRecipes + 1 {
		m := recipe(t, 1)
		m.ExecutionID = ulid1[:24] + string(rune('A'+i/10%10)) + string(rune('0'+i%10))
		if _, err := r.add(m); (err != nil) != (i >= maxRecipes-1) {
			t.Errorf("build %d: %v", i, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, m := range messages(f) {
		e, err := Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(e))
	}
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, wire []byte) {
		m, n, err := Read(bytes.NewReader(wire))
		if err != nil || m == nil {
			return
		}
		if n > len(wire) {
			t.Errorf("%d bytes of %d", n, len(wire))
		}
		e, err := Encode(m)
		if err != nil {
			t.Fatalf("read what can't be written: %v", err)
		}
		m, _, err = Read(bytes.NewReader(e))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Encode(m); err != nil || !bytes.Equal(e, again) {
			t.Errorf("%s, then %s, %v", e, again, err)
		}
	})
}
