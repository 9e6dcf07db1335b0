package gossip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/retry"
)

// What members tell each other of the fleet: goals go from seeders to agents, and between
// the agents of a region; what hosts do goes from agents to seeders; and seeders ask agents
// which hosts there are. All of it is longer than a packet, or must not be lost, so that it
// goes over TCP: as calls where TLS is spoken, whose sender is known, else as memberlist's
// reliable messages. A goal is believed for its signature, wherever it comes from.
//
// Such a message is its kind, the length of the sender's name, the name, and a body:
const (
	kindGoals    = 'G' // goals and beats, each a frame
	kindWant     = 'W' // JSON: the names of goals that the sender lacks
	kindCounts   = 'C' // JSON: a list of goal.Counts
	kindRosterOf = 'Q' // a service
	kindRoster   = 'T' // the service's length, the service, hashes of four bytes
	kindHostsOf  = 'E' // JSON: HostsQuestion
	kindHosts    = 'F' // JSON: hostsAnswer
	kindNear     = 'N' // JSON: a list of lists of hosts, which the agents of a region tell each other
	kindTally    = 'S' // JSON: a list of tallies of hosts that switch, as above
)

const (
	// maxFleet bounds a message about the fleet in bytes, but for a roster.
	maxFleet = 64 << 10
	// MaxRoster bounds the hosts of one service at one agent.
	MaxRoster = goal.MaxHostsOfAgent
	// maxRoster bounds a roster in bytes.
	maxRoster = 4*MaxRoster + 512
	// A roster is the longest message that a call takes.
	_ = uint(call.MaxFleet - maxRoster)
	// MaxHosts bounds the hosts in one answer about them.
	MaxHosts = 1000
	// LeastHosts is how many hosts an answer has at least that keeps others back, where so many
	// are asked for: of the longest that hosts can say of themselves eight fit, and half of that
	// leaves room for what later versions say.
	LeastHosts = 4
	// fewHosts are those that an agent of a later region is asked for than that of the place
	// where they are to begin: they have their turn when those before them have all been
	// named, and would be named again and again until then.
	fewHosts = 20
	// maxCounts bounds what is said of one service in bytes; failures that do not fit are
	// left out.
	maxCounts = 16 << 10
	// maxGoalMessages and maxFleetMessages bound the messages that wait to be worked on.
	maxGoalMessages, maxFleetMessages = 512, 1024
	// maxFleetSends bounds the questions and answers that are being sent.
	maxFleetSends = 1024
	// rosterAskedFor is how long after it was asked for a roster is taken.
	rosterAskedFor = 30 * time.Second
	// maxQuestions bounds the questions about hosts that wait for answers.
	maxQuestions = 64
	// muteFor is for how long an agent that has left a question about hosts without an answer is
	// asked by those alone that begin with the first host: else it would hold up each page of a
	// list of all.
	muteFor = time.Minute
	// maxHostText bounds each text of a host's view in bytes, but for its hook's output.
	maxHostText = 512
)

// fleetAgain is when a question or an answer is sent again that was not delivered.
var fleetAgain = retry.Policy{First: 200 * time.Millisecond, Max: time.Second, Tries: 3}

// errBusy is why a message is not taken that may be sent again.
var errBusy = errors.New("too much waits to be worked on")

// fleet is what is said of the fleet, out and in.
type fleet struct {
	g             *Gossip
	goals, counts *mailing
	near, tallies *mailing
	goalsIn, in   chan fleetMessage
	goalBytes     atomic.Int64
	bytes         atomic.Int64
	sends         atomic.Int64
	wg            sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	asked     map[string]time.Time // rosters, by service
	questions map[uint64]*question
	mute      map[string]time.Time // by name, who has not answered, and when that was found out
}

// fleetMessage is one that was received, and by whom it is vouched for; the zero identity
// for nobody.
type fleetMessage struct {
	message []byte
	from    identity.ID
}

// question waits for agents' answers.
type question struct {
	silent  map[string]bool // by name, who has not answered
	answers []HostsAnswer
	done    chan struct{} // closed when all have
}

func newFleet(g *Gossip) *fleet {
	f := &fleet{
		g:       g,
		goalsIn: make(chan fleetMessage, maxGoalMessages), in: make(chan fleetMessage, maxFleetMessages),
		asked: make(map[string]time.Time), questions: make(map[uint64]*question), mute: make(map[string]time.Time),
	}
	f.goals = newMailing(g, kindGoals, "goals not delivered yet, they are sent again", packFrames, func(m Member) bool {
		return m.Role == Agent && (g.cfg.Role == Seeder || m.Region == g.cfg.Region)
	})
	fellow := func(m Member) bool {
		return g.cfg.Role == Agent && m.Role == Agent && m.Region == g.cfg.Region && m.Fleet != 0
	}
	f.near = newMailing(g, kindNear, "hosts not told to another agent of the region yet, they are sent again", packList, fellow)
	f.tallies = newMailing(g, kindTally, "hosts that switch not told to another agent of the region yet, they are sent again", packList, fellow)
	f.counts = newMailing(g, kindCounts, "counts of hosts not delivered yet, they are sent again", packList, func(m Member) bool { return m.Role == Seeder })
	return f
}

// put queues a message that was received. It does not block.
func (f *fleet) put(m fleetMessage) error {
	to, bytes := f.in, &f.bytes
	if m.message[0] == kindGoals {
		to, bytes = f.goalsIn, &f.goalBytes
	}
	n := int64(len(m.message))
	if bytes.Add(n) <= maxQueued {
		select {
		case to <- m:
			return nil
		default:
		}
	}
	bytes.Add(-n)
	f.g.inbox.drop()
	return errBusy
}

// workGoals hands on goals that were received, until ctx ends: by themselves, since who
// takes them may write to a disk.
func (g *Gossip) workGoals(ctx context.Context) {
	g.fleet.work(ctx, g.fleet.goalsIn, &g.fleet.goalBytes)
}

// workFleet handles all else about the fleet.
func (g *Gossip) workFleet(ctx context.Context) { g.fleet.work(ctx, g.fleet.in, &g.fleet.bytes) }

func (f *fleet) work(ctx context.Context, in <-chan fleetMessage, bytes *atomic.Int64) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-in:
			bytes.Add(-int64(len(m.message)))
			if err := f.handle(m); err != nil {
				f.g.warn("message about the fleet refused", "error", err)
			}
		}
	}
}

// handle works on a message.
func (f *fleet) handle(m fleetMessage) error {
	kind, sender, body, err := openFleet(m.message)
	if err != nil {
		return err
	}
	if kind == kindGoals {
		return f.takeGoals(m.from, body)
	}
	from, ok := f.g.memberNamed(sender)
	if !ok {
		return fmt.Errorf("%.80q, who sends it, is no member", sender)
	}
	if m.from == (identity.ID{}) {
		err = f.g.vouching.unvouched(from)
	} else if string(m.from.Kind) != string(from.Role) || m.from.Region != from.Region || m.from.Name != from.ID {
		err = fmt.Errorf("%s sends it as %.80q", m.from, sender)
	}
	if err != nil {
		return err
	}
	if want := senderOf(kind); from.Role != want {
		return fmt.Errorf("%s is no %s", from.Name, want)
	}
	c := &f.g.cfg
	switch kind {
	case kindWant:
		names, err := decodeWant(body)
		if err != nil {
			return fmt.Errorf("%s: %w", from.Name, err)
		}
		f.goals.again(from.Name, names)
	case kindCounts:
		if c.OnCounts == nil {
			return nil
		}
		list, err := decodeCounts(body)
		if err != nil {
			return fmt.Errorf("%s: %w", from.Name, err)
		}
		c.OnCounts(from, list)
	case kindNear:
		return f.takeList(from, body, c.OnNear)
	case kindTally:
		return f.takeList(from, body, c.OnTally)
	case kindRosterOf:
		service := string(body)
		if err := goal.CheckService(service); err != nil || c.OnRosterAsked == nil {
			return err
		}
		hashes := c.OnRosterAsked(service)
		if len(hashes) > MaxRoster {
			return fmt.Errorf("%d hosts of %s here, at most %d can be told", len(hashes), service, MaxRoster)
		}
		f.send([]string{from.Name}, kindRoster, encodeRoster(service, hashes))
	case kindRoster:
		service, hashes, err := decodeRoster(body)
		if err == nil && !f.wasAsked(service) {
			err = fmt.Errorf("the roster of %s was not asked for", service)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", from.Name, err)
		}
		if c.OnRoster != nil {
			c.OnRoster(from, service, hashes)
		}
	case kindHostsOf:
		var q HostsQuestion
		if err := json.Unmarshal(body, &q); err != nil {
			return fmt.Errorf("%s asks for hosts: %w", from.Name, err)
		}
		if err := q.check(); err != nil || c.OnHostsAsked == nil {
			return err
		}
		a := c.OnHostsAsked(q)
		n := min(len(a.Hosts), q.Limit)
		rest := a.Rest + len(a.Hosts) - n
		answer, err := encodeHosts(hostsAnswer{q.ID, a.All, a.Hosts[:n], &rest})
		if err != nil {
			return err
		}
		f.send([]string{from.Name}, kindHosts, answer)
	case kindHosts:
		a, err := decodeHosts(body)
		if err != nil {
			return fmt.Errorf("%s: %w", from.Name, err)
		}
		f.answered(from, a)
	}
	return nil
}

// takeList hands on what another agent of the region tells, one by one.
func (f *fleet) takeList(from Member, body []byte, on func(Member, []byte) error) error {
	if on == nil || from.Region != f.g.cfg.Region {
		return nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(body, &list); err != nil {
		return fmt.Errorf("%s: hosts: %w", from.Name, err)
	}
	for _, text := range list {
		if err := on(from, text); err != nil {
			return fmt.Errorf("%s: %w", from.Name, err)
		}
	}
	return nil
}

// senderOf is the role of who sends messages of a kind.
func senderOf(kind byte) Role {
	if kind == kindRosterOf || kind == kindHostsOf {
		return Seeder
	}
	return Agent
}

// takeGoals hands on goals. A message of which too much is no goal is not read further.
func (f *fleet) takeGoals(from identity.ID, body []byte) error {
	if f.g.cfg.OnGoal == nil {
		return nil
	}
	if from == (identity.ID{}) && f.g.vouching != nil && f.g.vouching.mode == identity.Require {
		return errors.New("goals of who shows no certificate, --tls is require here")
	}
	bad := 0
	var last error
	err := eachFrame(body, func(wire []byte) bool {
		if err := f.g.cfg.OnGoal(slices.Clone(wire)); err != nil {
			bad, last = bad+1, err
		}
		return bad < maxBadFrames
	})
	return errors.Join(err, last)
}

// SendGoal has every agent get a signed document, at a seeder; at an agent, those of its
// region. It takes the place of the one of the same name before; a service has its own, a
// beat has the empty one. Who appears later gets it, too, and who cannot be reached is
// tried again while it is a member. It does not block.
func (g *Gossip) SendGoal(name string, wire []byte) error {
	if len(wire) == 0 || len(wire) > goal.MaxLength {
		return fmt.Errorf("goal %s: %d bytes, at most %d", name, len(wire), goal.MaxLength)
	}
	return g.fleet.goals.put(name, func(l *letter) { l.text = slices.Clone(wire) })
}

// DropGoal ends SendGoal.
func (g *Gossip) DropGoal(name string) { g.fleet.goals.drop(name) }

// WantGoals asks every seeder, and the agents of the own region, to send again the goals of
// these names, of an agent.
func (g *Gossip) WantGoals(names ...string) error {
	body, err := json.Marshal(names)
	if err != nil || len(names) > goal.MaxServices+1 {
		return fmt.Errorf("asking for %d goals, at most %d: %w", len(names), goal.MaxServices+1, err)
	}
	g.fleet.send(g.namesOf(func(m Member) bool { return m.Role == Seeder || m.Region == g.cfg.Region }), kindWant, body)
	return nil
}

// ReportCounts has every seeder get the newest counts of each service; failures that were
// given add up until they are delivered, the newest goal.MaxFailures of them. It does not
// block.
func (g *Gossip) ReportCounts(counts ...goal.Counts) error {
	var all error
	for _, c := range counts {
		all = errors.Join(all, g.fleet.counts.put(c.Service, func(l *letter) { l.count(c) }))
	}
	return all
}

// SendNear has the other agents of the region that serve hosts get the newest of each list,
// a JSON value, by OnNear. It does not block.
func (g *Gossip) SendNear(list int, hosts []byte) error {
	if len(hosts) > maxFleet/2 {
		return fmt.Errorf("list %d of hosts: %d bytes, at most %d", list, len(hosts), maxFleet/2)
	}
	return g.fleet.near.put(strconv.Itoa(list), func(l *letter) { l.text = slices.Clone(hosts) })
}

// SendTally has the other agents of the region that serve hosts get the newest tally of each
// service, a JSON value, by OnTally. It does not block.
func (g *Gossip) SendTally(service string, tally []byte) error {
	if len(tally) > maxFleet/2 {
		return fmt.Errorf("tally of %s: %d bytes, at most %d", service, len(tally), maxFleet/2)
	}
	return g.fleet.tallies.put(service, func(l *letter) { l.text = slices.Clone(tally) })
}

// AskRoster asks every agent that serves hosts for those of a service; OnRoster has the answers. It does
// not block. It returns the names of the agents that are asked.
func (g *Gossip) AskRoster(service string) []string {
	f := g.fleet
	f.mu.Lock()
	for s, at := range f.asked {
		if time.Since(at) > rosterAskedFor {
			delete(f.asked, s)
		}
	}
	if len(f.asked) < goal.MaxServices {
		f.asked[service] = time.Now()
	}
	f.mu.Unlock()
	names := g.namesOf(Member.HasHosts)
	f.send(names, kindRosterOf, []byte(service))
	return names
}

func (f *fleet) wasAsked(service string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.asked[service]
	return ok && time.Since(at) <= rosterAskedFor
}

// HostsOf asks agents that serve hosts for those of a service, and returns their answers once
// all have answered or ctx has ended, and the agents that have not. Those that have not answered
// in time of late are not asked after the first page, unless there are no others.
func (g *Gossip) HostsOf(ctx context.Context, asked HostsQuestion) (answers []HostsAnswer, silent []Member, err error) {
	asked.ID = rand.Uint64()
	if err := asked.check(); err != nil {
		return nil, nil, err
	}
	few := asked
	few.Limit = min(few.Limit, fewHosts)
	body, err := json.Marshal(asked)
	if err != nil {
		return nil, nil, err
	}
	fewBody, err := json.Marshal(few)
	if err != nil {
		return nil, nil, err
	}
	var members []Member
	for _, m := range g.roster.now().members {
		if m.Name != g.name && m.HasHosts() && (asked.Region == "" || m.Region == asked.Region) {
			members = append(members, m)
		}
	}
	if len(members) == 0 {
		return nil, nil, nil
	}
	f := g.fleet
	q := &question{silent: make(map[string]bool), done: make(chan struct{})}
	f.mu.Lock()
	if len(f.questions) >= maxQuestions {
		f.mu.Unlock()
		return nil, nil, fmt.Errorf("asking for hosts of %s: %w", asked.Service, errBusy)
	}
	f.questions[asked.ID] = q
	members, silent = f.speaking(members, asked.After)
	var names, later []string
	for _, m := range members {
		q.silent[m.Name] = true
		if asked.After != (HostPlace{}) && m.Region > asked.After.Region {
			later = append(later, m.Name)
		} else {
			names = append(names, m.Name)
		}
	}
	f.mu.Unlock()
	f.send(names, kindHostsOf, body)
	f.send(later, kindHostsOf, fewBody)
	select {
	case <-ctx.Done():
	case <-q.done:
	case <-g.ctx.Done():
	}
	late := errors.Is(ctx.Err(), context.DeadlineExceeded)
	f.mu.Lock()
	delete(f.questions, asked.ID)
	answers = q.answers
	if late {
		for name := range q.silent {
			f.mute[name] = time.Now()
		}
	}
	f.mu.Unlock()
	for _, m := range members {
		if q.silent[m.Name] { // which nobody changes any more
			silent = append(silent, m)
		}
	}
	return answers, silent, nil
}

// speaking are those of the members that are asked, silent those that are not, since they have
// not answered of late. It is called with mu held.
func (f *fleet) speaking(members []Member, after HostPlace) (asked, silent []Member) {
	maps.DeleteFunc(f.mute, func(_ string, since time.Time) bool { return time.Since(since) >= muteFor })
	if after == (HostPlace{}) {
		return members, nil
	}
	for _, m := range members {
		if f.mute[m.Name].IsZero() {
			asked = append(asked, m)
		} else {
			silent = append(silent, m)
		}
	}
	if len(asked) == 0 {
		return members, nil
	}
	return asked, silent
}

// answered takes an agent's answer to a question that waits for it.
func (f *fleet) answered(from Member, a hostsAnswer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := f.questions[a.ID]
	if q == nil || !q.silent[from.Name] {
		return
	}
	delete(q.silent, from.Name)
	delete(f.mute, from.Name)
	for i := range a.Hosts {
		a.Hosts[i].Region = from.Region // which is not a host's to say
	}
	q.answers = append(q.answers, HostsAnswer{from, a.All, a.Hosts, a.rest()})
	if len(q.silent) == 0 {
		close(q.done)
	}
}

// send sends a message to members, in the background.
func (f *fleet) send(names []string, kind byte, body []byte) {
	message := packFleet(kind, f.g.name, body)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range names {
		if f.closed || f.sends.Load() >= maxFleetSends {
			f.g.warn("question about hosts, or its answer, not sent: too many are under way", "member", name)
			return
		}
		f.sends.Add(1)
		f.wg.Go(func() {
			defer f.sends.Add(-1)
			if err := fleetAgain.Do(f.g.ctx, func() error { return f.g.deliver(name, message) }); err != nil && f.g.ctx.Err() == nil {
				f.g.warn("question about hosts, or its answer, not delivered", "member", name, "error", err)
			}
		})
	}
}

// close waits for what is under way; the context that ends it has ended.
func (f *fleet) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.goals.close()
	f.counts.close()
	f.near.close()
	f.tallies.close()
	f.wg.Wait()
}

// errGone is why nothing is sent to who is no member any more.
var errGone = errors.New("it is no member any more")

// deliver sends a message to a member, and returns once it has it.
func (g *Gossip) deliver(name string, message []byte) error {
	node, m, ok := g.nodeNamed(name)
	switch {
	case !ok:
		return errGone
	case g.vouching != nil && m.Cert != "":
		return g.vouching.client.Fleet(g.ctx, node.Address(), message)
	}
	return g.list.SendReliable(&node, message)
}

func (g *Gossip) nodeNamed(name string) (memberlist.Node, Member, bool) {
	now := g.roster.now()
	i, ok := slices.BinarySearchFunc(now.members, name, func(m Member, name string) int {
		switch {
		case m.Name < name:
			return -1
		case m.Name > name:
			return 1
		}
		return 0
	})
	if !ok {
		return memberlist.Node{}, Member{}, false
	}
	return now.nodes[i], now.members[i], true
}

func (g *Gossip) memberNamed(name string) (Member, bool) {
	_, m, ok := g.nodeNamed(name)
	return m, ok
}

// namesOf are the members for whom is says yes, but this one.
func (g *Gossip) namesOf(is func(Member) bool) (names []string) {
	for _, m := range g.roster.now().members {
		if m.Name != g.name && is(m) {
			names = append(names, m.Name)
		}
	}
	return names
}

// fleetMessage takes a message about the fleet that a member has sent over TLS.
func (v *vouching) fleetMessage(from identity.Peer, message []byte) error {
	kind, sender, _, err := openFleet(message)
	if err != nil {
		return err
	}
	allowed := from.ID.Kind == identity.Agent
	switch kind {
	case kindGoals: // an agent's only within its region
		allowed = from.ID.Kind == identity.Seeder || allowed && v.g.cfg.Role == Agent && from.ID.Region == v.g.cfg.Region
	case kindRosterOf, kindHostsOf:
		allowed = from.ID.Kind == identity.Seeder
	case kindNear, kindTally:
		allowed = allowed && v.g.cfg.Role == Agent && from.ID.Region == v.g.cfg.Region
	}
	if !allowed {
		return fmt.Errorf("%s may not send %q", from.ID, kind)
	}
	if sender != from.ID.Name+"-"+startOf(sender) {
		return fmt.Errorf("%s sends as %.80q", from.ID, sender)
	}
	if _, ok := v.g.memberNamed(sender); !ok && kind != kindGoals {
		return fmt.Errorf("%.80q is no member here yet", sender)
	}
	return v.g.fleet.put(fleetMessage{slices.Clone(message), from.ID})
}

// unvouched reports whether what came without a certificate counts, of a member: where TLS
// is required, and where somebody with a certificate speaks for its region, it does not.
func (v *vouching) unvouched(from Member) error {
	if v == nil {
		return nil
	}
	if v.mode == identity.Require {
		return errors.New("the sender shows no certificate, --tls is require here")
	}
	for _, m := range v.g.roster.now().members {
		if m.Cert != "" && (m.Name == from.Name || m.Role == from.Role && m.Region == from.Region) {
			return fmt.Errorf("%s shows no certificate, and %s has one", from.Name, m.Name)
		}
	}
	return nil
}
