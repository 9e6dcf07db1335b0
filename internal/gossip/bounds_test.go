package gossip

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/landfall-dist/landfall/internal/announce"
)

func nodeOf(t *testing.T, name string, meta Meta, addr string) *memberlist.Node {
	t.Helper()
	b, err := json.Marshal(meta)
	if err != nil {
		t.Fatal(err)
	}
	ap := netip.MustParseAddrPort(addr)
	return &memberlist.Node{Name: name, Meta: b, Addr: ap.Addr().AsSlice(), Port: ap.Port()}
}

func stranger(i int) Meta { return agent(fmt.Sprint("m", i), "r") }

// The 513th is refused and said; seeders, and who is named or was there before, have
// places of their own.
func TestMembersAreBounded(t *testing.T) {
	log := listen()
	g := start(t, seeder("s"), log.logger)
	come := events{g.Gossip}
	admitted := 0
	join := func(i int, meta Meta, addr string) bool {
		n := nodeOf(t, fmt.Sprint("name", i), meta, addr)
		if come.NotifyAlive(n) != nil {
			return false
		}
		g.roster.come(n)
		admitted++
		return true
	}
	addr := func(i int) string { return fmt.Sprintf("10.%d.%d.%d:7946", i>>16, i>>8&255, i&255) }
	for i := range 2 * maxMembers {
		join(i, stranger(i), addr(i))
	}
	if want := maxMembers - reservedPlaces - 1; admitted != want { // this process is one
		t.Errorf("%d strangers are members, want %d", admitted, want)
	}
	log.line(t, "level=WARN", "member refused", "the cluster is full")
	if n := strings.Count(log.String(), "member refused"); n > 2 {
		t.Errorf("said %d times", n)
	}
	if n := g.roster.refusals(); n != int64(2*maxMembers-admitted) {
		t.Errorf("%d refusals counted", n)
	}
	i := 3 * maxMembers
	g.roster.prefer(addr(i))
	if !join(i, stranger(i), addr(i)) {
		t.Error("who is named by --join finds no place")
	}
	for i := range 2 * maxMembers {
		join(4*maxMembers+i, seeder(fmt.Sprint("s", i)), addr(4*maxMembers+i))
	}
	if admitted != maxMembers-1 || len(g.Members()) != maxMembers {
		t.Errorf("%d members, %d are shown", admitted+1, len(g.Members()))
	}
}

// Names that come and go are counted as well: memberlist keeps them for a while.
func TestNamesThatLeaveAreBounded(t *testing.T) {
	r := newRoster("self")
	admitted := 0
	for i := range 4 * maxGone {
		n := nodeOf(t, fmt.Sprint("n", i), stranger(i), "10.0.0.1:7946")
		if r.admit(n) != nil {
			continue
		}
		admitted++
		r.come(n)
		r.leave(n)
	}
	if admitted != maxGone || len(r.gone) > maxGone {
		t.Errorf("%d names were taken in, %d are kept", admitted, len(r.gone))
	}
	for name := range r.gone {
		r.gone[name] = time.Now().Add(-2 * goneFor)
	}
	if err := r.admit(nodeOf(t, "new", stranger(1), "10.0.0.1:7946")); err != nil {
		t.Errorf("after a while: %v", err)
	}
}

// A broadcast returns though a member never takes it, and what waits for each member
// has a bound.
func TestBroadcastWaitsForNobody(t *testing.T) {
	s := start(t, seeder("s"), nil)
	n := nodeOf(t, "stuck", stranger(1), "127.0.0.1:9")
	s.roster.come(n)
	q := &queue{}
	s.outbox.mu.Lock()
	s.outbox.queues[n.Name] = q // of a worker that hangs
	s.outbox.mu.Unlock()
	wire := announcement(t)
	tried := make(chan struct{})
	if err := s.Broadcast(wire, func() { close(tried) }); err != nil {
		t.Fatal(err)
	}
	select {
	case <-tried:
		t.Error("it is said to be sent")
	default:
	}
	if len(q.waiting) != 1 {
		t.Errorf("%d documents wait", len(q.waiting))
	}
	refused := 0
	for range 2 * maxWaiting / len(wire) {
		s.outbox.send(*n, wire, func() { refused++ })
	}
	if q.bytes > maxWaiting || !q.behind || refused == 0 {
		t.Errorf("%d bytes wait, at most %d may; behind: %t, %d refused", q.bytes, maxWaiting, q.behind, refused)
	}
	for i := range 2 * maxMembers {
		s.outbox.queues[fmt.Sprint(i)] = &queue{}
	}
	if s.outbox.add(*nodeOf(t, "one more", stranger(2), "127.0.0.1:9"), parcel{wire, nil}) {
		t.Error("there are more queues than members may be")
	}
}

// While one member does not answer the others hear at once.
func TestSilentMemberKeepsNobodyWaiting(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	s := start(t, seeder("s"), nil)
	a := start(t, agent("a", "a"), join(s))
	s.await(t, 2)
	s.roster.come(nodeOf(t, "silent", agent("silent", "b"), silent.Addr().String()))
	for range 20 {
		if err := s.Broadcast(announcement(t), nil); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		receive(t, a.documents)
	}
}

// What is received and not yet worked on has bounds in number and in bytes, each kind
// by itself.
func TestInboxIsBounded(t *testing.T) {
	i := newInbox()
	for range 2 * maxReports {
		i.put([]byte{kindProgress})
	}
	if len(i.reports) != maxReports || i.dropped.Load() != maxReports {
		t.Errorf("%d reports wait, %d were dropped", len(i.reports), i.dropped.Load())
	}
	document := make([]byte, maxAnswer)
	document[0] = kindDocument
	for range maxDocuments {
		i.put(document)
	}
	if n := i.documentBytes.Load(); n > maxQueued || n < maxQueued/2 {
		t.Errorf("%d bytes of documents wait", n)
	}
	for range 2 * maxDocuments {
		i.put([]byte{kindDocument})
	}
	if len(i.documents) > maxDocuments {
		t.Errorf("%d documents wait", len(i.documents))
	}
	for range 2 * maxStates {
		i.putState(make([]byte, maxState))
	}
	if n := i.stateBytes.Load(); n > maxQueued || len(i.states) == 0 {
		t.Errorf("%d bytes of states wait", n)
	}
}

// Garbage by the megabyte is a few looks and a few lines, whether it comes as a state
// or as messages, and what comes after it is heard.
func TestGarbageIsAFewLines(t *testing.T) {
	log := listen()
	a := start(t, agent("a", "a"), log.logger)
	d := delegate{a.Gossip}
	d.MergeRemoteState(make([]byte, maxState+1), false) // too long to be looked at
	log.line(t, "level=WARN", "state of a member refused")
	for range 4 {
		d.MergeRemoteState(make([]byte, maxState), false) // empty frames
	}
	log.line(t, "level=WARN", "the rest of a member's state is not read")
	forged := announcement(t)
	forged[len(forged)-2] ^= 1
	var state []byte
	for range maxBadFrames * 100 {
		state = announce.AppendFrame(state, forged)
	}
	d.MergeRemoteState(state, false)
	d.NotifyMsg(make([]byte, maxMessage+1))
	d.NotifyMsg(nil)
	log.line(t, "level=WARN", "message refused")
	for range 1000 {
		d.NotifyMsg([]byte{'?', 1, 2, 3})
	}
	d.NotifyMsg(append([]byte{kindDocument}, announcement(t)...))
	if got := receive(t, a.documents); got.Announcement == nil {
		t.Errorf("got %+v", got)
	}
	if n := metric(t, a, "landfall_documents_refused_total", refusedInvalid) + metric(t, a, "landfall_documents_refused_total", refusedUntrusted); n > 5*maxBadFrames {
		t.Errorf("%v frames were looked at", n)
	}
	if n := strings.Count(log.String(), "level=WARN"); n > 8 {
		t.Errorf("%d lines:\n%s", n, log)
	}
}

// An ended announcement that is sent again is answered to who sent it, and once in a
// while.
func TestEndsAreToldToWhoDoesNotKnowThem(t *testing.T) {
	s := start(t, seeder("s"), nil)
	stale := start(t, agent("stale", "a"), join(s))
	other := start(t, agent("other", "b"), join(s))
	for _, n := range []*node{s, stale, other} {
		n.await(t, 3)
	}
	wire := announcement(t)
	added, err := s.cfg.Book.Add(wire)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Add(time.Second)
	end, err := announce.Sign(t.Context(), key, &announce.End{
		ExecutionID: added.Announcement.ExecutionID, Key: added.Announcement.Key, SourceBucket: added.Announcement.SourceBucket,
		Reason: announce.Completed, Issued: now, Expires: now.Add(announce.Lifetime),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.cfg.Book.Add(end); err != nil {
		t.Fatal(err)
	}
	state := announce.AppendSender(announce.AppendFrame(nil, wire), stale.Name())
	for range 100 {
		delegate{s.Gossip}.MergeRemoteState(state, false)
	}
	// By somebody who does not say who he is, or is nobody: no answer.
	delegate{s.Gossip}.MergeRemoteState(announce.AppendFrame(nil, wire), false)
	delegate{s.Gossip}.MergeRemoteState(announce.AppendSender(announce.AppendFrame(nil, wire), "nobody"), false)
	if d := receive(t, stale.documents); d.End == nil {
		t.Errorf("who sent it got %+v", d)
	}
	// Something that everybody gets, after it.
	if err := s.Broadcast(announcement(t), nil); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{stale, other} {
		d := receive(t, n.documents)
		if d.End != nil { // as members of late exchange states, that of the end among them
			d = receive(t, n.documents)
		}
		if d.Announcement == nil {
			t.Errorf("%s got %+v", n.Name(), d)
		}
	}
	s.stop()
	if answered := slices.Collect(maps.Keys(s.inbox.answered)); !slices.Equal(answered, []string{stale.Name()}) {
		t.Errorf("%q were answered", answered)
	}
}

// One connection is read up to a bound.
func TestStreamsAreBounded(t *testing.T) {
	log := listen()
	s := start(t, seeder("s"), log.logger)
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The header of a push/pull of many nodes, each of them nothing: memberlist would
	// read on for ever.
	chunk := make([]byte, 64<<10)
	if _, err := conn.Write([]byte{6, 0x83, 0xa5, 'N', 'o', 'd', 'e', 's', 0xce, 0, 0x0f, 0xff, 0xff, 0xac,
		'U', 's', 'e', 'r', 'S', 't', 'a', 't', 'e', 'L', 'e', 'n', 0, 0xa4, 'J', 'o', 'i', 'n', 0xc2}); err != nil {
		t.Fatal(err)
	}
	for i := range chunk {
		chunk[i] = 0x80 // an empty map
	}
	sent := 0
	for ; sent < 4*maxStream; sent += len(chunk) {
		if _, err := conn.Write(chunk); err != nil {
			break
		}
	}
	if sent >= 4*maxStream {
		t.Errorf("%d bytes were taken", sent)
	}
}

func TestStreamReadsUpToItsBound(t *testing.T) {
	here, there := net.Pipe()
	said := 0
	s := &stream{Conn: here, left: 10, warn: func(string, ...any) { said++ }, closed: func() {}}
	defer s.Close()
	go there.Write(make([]byte, 20))
	n, err := io.ReadFull(s, make([]byte, 20))
	if n != 10 || !errors.Is(err, errStreamTooLong) || said != 1 {
		t.Errorf("%d bytes, %v, said %d times", n, err, said)
	}
	there.Close()
}

// Greetings, good or not, make no more than maxMeetings tries.
func TestGreetingsAreBounded(t *testing.T) {
	s := start(t, seeder("s"), nil)
	for _, body := range []string{"", "{", `{"n":"x","a":"nowhere"}`, `{"n":"x","a":"10.0.0.1"}`, `{"n":"` + strings.Repeat("x", maxHello) + `","a":"10.0.0.1:1"}`} {
		if err := s.greeted([]byte(body)); err == nil {
			t.Errorf("%q is a greeting", body)
		}
	}
	for i := range 4 * maxMeetings {
		s.greeted(fmt.Appendf(nil, `{"n":"x%d","a":"127.0.%d.%d:9"}`, i, i>>8, i&255))
	}
	s.meetings.mu.Lock()
	defer s.meetings.mu.Unlock()
	if n := len(s.meetings.pending); n > maxMeetings {
		t.Errorf("%d are to be met", n)
	}
}
