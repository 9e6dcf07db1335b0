package gossip

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
	"github.com/landfall-dist/landfall/internal/retry"
)

// heardOf is what a member was told of the fleet.
type heardOf struct {
	goals   chan string
	counts  chan []goal.Counts
	rosters chan string
}

// inFleet has a member listen for what is said of the fleet: an agent has the hosts given.
func inFleet(h *heardOf, hosts ...string) func(*Config) {
	h.goals, h.counts, h.rosters = make(chan string, 1000), make(chan []goal.Counts, 100), make(chan string, 100)
	return func(c *Config) {
		if c.Role == Seeder {
			c.OnCounts = func(from Member, counts []goal.Counts) {
				if from.Role != Agent || from.Region == "" {
					counts = nil
				}
				h.counts <- counts
			}
			c.OnRoster = func(from Member, service string, hashes []uint32) { h.rosters <- fmt.Sprint(from.ID, service, hashes) }
			return
		}
		c.Fleet = 1
		c.OnGoal = func(wire []byte) error {
			h.goals <- string(wire)
			return nil
		}
		c.OnRosterAsked = func(service string) (hashes []uint32) {
			for _, name := range hosts {
				hashes = append(hashes, uint32(goal.HashOf(service, name)))
			}
			slices.Sort(hashes)
			return hashes
		}
		c.OnHostsAsked = func(q HostsQuestion) (a HostsAnswer) {
			after, some := q.In(c.Region)
			for _, name := range hosts {
				if a.All++; some && name > after {
					a.Hosts = append(a.Hosts, api.HostView{Host: name, Region: "anywhere", State: api.HostHealthy, Output: strings.Repeat("x", 500)})
				}
			}
			return a
		}
	}
}

// sequence applies changes to a Config, one after the other.
func sequence(changes ...func(*Config)) func(*Config) {
	return func(c *Config) {
		for _, change := range changes {
			change(c)
		}
	}
}

// want waits until these goals have come, whatever came beside them.
func (h *heardOf) want(t *testing.T, wires ...string) {
	t.Helper()
	lacks := make(map[string]bool)
	for _, w := range wires {
		lacks[w] = true
	}
	for len(lacks) > 0 {
		delete(lacks, receive(t, h.goals))
	}
}

// TestFleet has goals reach every agent, whenever it comes, and what agents count and know
// of their hosts reach the seeder: with TLS and without.
func TestFleet(t *testing.T) {
	for name, secure := range map[string]func(*testing.T) func(...func(*Config)) func(*Config){
		"without TLS": func(*testing.T) func(...func(*Config)) func(*Config) { return sequence },
		"with TLS": func(t *testing.T) func(...func(*Config)) func(*Config) {
			prod := identitytest.New(t, "prod", nil)
			return func(changes ...func(*Config)) func(*Config) { return withTLS(t, prod, identity.Require, changes...) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			with := secure(t)
			var atSeeder, atOne, atTwo, atThree heardOf
			s := start(t, seeder("s1"), with(inFleet(&atSeeder)))
			for service, wire := range map[string]string{"web": "web-1", "api": "api-1", "": "beat-1"} {
				if err := s.SendGoal(service, []byte(wire)); err != nil {
					t.Fatal(err)
				}
			}
			one := start(t, agent("a1", "region-a"), with(join(s), inFleet(&atOne, "h1", "h2")))
			two := start(t, agent("b1", "region-b"), with(join(s), inFleet(&atTwo, "h3")))
			for _, n := range []*node{s, one, two} {
				n.await(t, 3)
			}
			for _, h := range []*heardOf{&atOne, &atTwo} {
				h.want(t, "web-1", "api-1", "beat-1")
			}
			if err := s.SendGoal("web", []byte("web-2")); err != nil {
				t.Fatal(err)
			}
			for _, h := range []*heardOf{&atOne, &atTwo} {
				h.want(t, "web-2")
			}
			start(t, agent("c1", "region-c"), with(join(one), inFleet(&atThree)))
			late := []string{receive(t, atThree.goals), receive(t, atThree.goals), receive(t, atThree.goals)}
			if slices.Sort(late); !slices.Equal(late, []string{"api-1", "beat-1", "web-2"}) {
				t.Errorf("who came late got %v", late)
			}
			s.await(t, 4)

			if err := one.ReportCounts(goal.Counts{Service: "web", Version: 2, InStates: goal.InStates{Hosts: 2, Healthy: 1, Failed: 1}, Failures: []goal.Failure{{Host: "h1", Version: 2, Error: "it fell over"}}}); err != nil {
				t.Fatal(err)
			}
			got := receive(t, atSeeder.counts)
			if len(got) != 1 || got[0].Service != "web" || got[0].Hosts != 2 || len(got[0].Failures) != 1 || got[0].Failures[0].Error != "it fell over" {
				t.Errorf("counts: %+v", got)
			}
			// What was told once is not told again.
			if err := one.ReportCounts(goal.Counts{Service: "web", Version: 2, InStates: goal.InStates{Hosts: 3}}); err != nil {
				t.Fatal(err)
			}
			if got := receive(t, atSeeder.counts); len(got) != 1 || got[0].Hosts != 3 || len(got[0].Failures) != 0 {
				t.Errorf("counts: %+v", got)
			}

			if n := len(s.AskRoster("web")); n != 3 {
				t.Errorf("%d agents are asked for their hosts", n)
			}
			rosters := []string{receive(t, atSeeder.rosters), receive(t, atSeeder.rosters), receive(t, atSeeder.rosters)}
			slices.Sort(rosters)
			hashes := []int64{goal.HashOf("web", "h1"), goal.HashOf("web", "h2")}
			slices.Sort(hashes)
			if want := []string{"a1web" + fmt.Sprint(hashes), fmt.Sprintf("b1web[%d]", goal.HashOf("web", "h3")), "c1web[]"}; !slices.Equal(rosters, want) {
				t.Errorf("rosters %v, want %v", rosters, want)
			}

			answers, silent, err := s.HostsOf(t.Context(), HostsQuestion{Service: "web", Limit: 1})
			if err != nil || len(silent) != 0 || len(answers) != 3 {
				t.Fatalf("%+v, %v, %v", answers, silent, err)
			}
			for _, a := range answers {
				if a.From.ID == "a1" && (a.All != 2 || len(a.Hosts) != 1 || a.Rest != 1 || a.Hosts[0].Host != "h1" || a.Hosts[0].Region != "region-a") {
					t.Errorf("hosts of a1: %+v", a)
				}
			}
			answers, silent, err = s.HostsOf(t.Context(), HostsQuestion{Service: "web", Limit: 1, After: HostPlace{"region-a", "h1"}})
			if err != nil || len(silent) != 0 || len(answers) != 3 {
				t.Fatalf("%+v, %v, %v", answers, silent, err)
			}
			for _, a := range answers {
				want := map[string]string{"a1": "h2", "b1": "h3"}[a.From.ID]
				if a.Rest != 0 || want != "" && (len(a.Hosts) != 1 || a.Hosts[0].Host != want) {
					t.Errorf("hosts after h1: %+v", a)
				}
			}
			answers, _, err = s.HostsOf(t.Context(), HostsQuestion{Service: "web", Limit: 1, After: HostPlace{"region-b", "a"}})
			for _, a := range answers {
				if want := map[string]int{"b1": 1}[a.From.ID]; len(a.Hosts) != want || a.Rest != 0 || a.From.ID == "a1" && a.All != 2 {
					t.Errorf("hosts after region-b/a: %+v", a)
				}
			}
			if len(answers) != 3 || err != nil {
				t.Errorf("%+v, %v", answers, err)
			}

			// Who finds that it lacks a goal asks for it.
			if err := one.WantGoals("web", "nothing"); err != nil {
				t.Fatal(err)
			}
			atOne.want(t, "web-2")
		})
	}
}

// TestGoalsPassBetweenAgentsOfARegion: without a seeder, and to no other region.
func TestGoalsPassBetweenAgentsOfARegion(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	var atTwo, atOther heardOf
	one := start(t, agent("a1", "region-a"), withTLS(t, prod, identity.Require))
	if err := one.SendGoal("web", []byte("web-1")); err != nil {
		t.Fatal(err)
	}
	two := start(t, agent("a2", "region-a"), withTLS(t, prod, identity.Require, join(one), inFleet(&atTwo)))
	other := start(t, agent("b1", "region-b"), withTLS(t, prod, identity.Require, join(one), inFleet(&atOther)))
	atTwo.want(t, "web-1")
	for _, n := range []*node{one, two, other} {
		n.await(t, 3)
	}
	if err := one.WantGoals("web"); err != nil { // of who has it: nobody answers
		t.Fatal(err)
	}
	if _, silent, err := one.HostsOf(t.Context(), HostsQuestion{Service: "web", State: "nowhere", Limit: 1}); err == nil {
		t.Errorf("a state that there is not: %v", silent)
	}
	select {
	case g := <-atOther.goals:
		t.Errorf("another region got %s", g)
	default:
	}
}

// counts, rosters and hosts of a1, as a message.
func fleetMessages(t *testing.T, sender string) map[string][]byte {
	t.Helper()
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	return map[string][]byte{
		"goals":     packFleet(kindGoals, sender, packFrames([][]byte{[]byte("web-1")})),
		"want":      packFleet(kindWant, sender, encode([]string{"web"})),
		"counts":    packFleet(kindCounts, sender, encode([]goal.Counts{{Service: "web", Version: 1, InStates: goal.InStates{Hosts: 1}}})),
		"roster":    packFleet(kindRoster, sender, encodeRoster("web", []uint32{1, 2, 3})),
		"rosterOf":  packFleet(kindRosterOf, sender, []byte("web")),
		"hostsOf":   packFleet(kindHostsOf, sender, encode(HostsQuestion{Service: "web", Limit: 1})),
		"hosts":     packFleet(kindHosts, sender, encode(hostsAnswer{ID: 1, All: 1, Hosts: []api.HostView{{Host: "h1", State: api.HostReady}}})),
		"near":      packFleet(kindNear, sender, []byte("[]")),
		"tally":     packFleet(kindTally, sender, []byte("[]")),
		"no kind":   packFleet(kindDocument, sender, nil),
		"too long":  packFleet(kindCounts, sender, make([]byte, maxFleet)),
		"no sender": {kindCounts, 9, 'a'},
	}
}

// TestWhoMaySayWhatOfTheFleet: by its certificate.
func TestWhoMaySayWhatOfTheFleet(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	var atSeeder, atOne, unused heardOf
	s := start(t, seeder("s1"), withTLS(t, prod, identity.Require, inFleet(&atSeeder)))
	one := start(t, agent("a1", "region-a"), withTLS(t, prod, identity.Require, join(s), inFleet(&atOne, "h1")))
	two := start(t, agent("a2", "region-a"), withTLS(t, prod, identity.Require, join(s), inFleet(&unused)))
	other := start(t, agent("a1", "region-b"), withTLS(t, prod, identity.Require, join(s), inFleet(&unused)))
	for _, n := range []*node{s, one, two, other} {
		n.await(t, 4)
	}
	try := func(at *node, from identity.ID, sender, what, want string) {
		t.Helper()
		message := fleetMessages(t, sender)[what]
		err := at.vouching.fleetMessage(identity.Peer{ID: from}, message)
		if err == nil && want != "" { // it is queued; what comes of it is known when it is handled
			m, kind := <-at.fleet.in, byte(0)
			at.fleet.bytes.Add(-int64(len(m.message)))
			if kind = m.message[0]; kind != message[0] {
				t.Fatalf("%c is queued", kind)
			}
			err = at.fleet.handle(m)
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s of %s to %s: %v, expected %q in it", what, from, at.Name(), err, want)
		}
	}
	begun := ulid.Make().String()
	for _, what := range []string{"want", "counts", "roster", "hosts"} {
		try(s, prod.Agent("region-a", "a1"), two.Name(), what, "sends as")
		try(s, prod.Agent("region-a", "a1"), "a1-"+begun, what, "no member here yet")
		try(s, prod.Seeder("s1"), s.Name(), what, "may not send")
		try(s, prod.Host("region-a", "h1"), "h1-"+begun, what, "may not send")
	}
	for _, what := range []string{"rosterOf", "hostsOf"} {
		try(one, prod.Agent("region-a", "a2"), two.Name(), what, "may not send")
		try(one, prod.Host("region-a", "h1"), "h1-"+begun, what, "may not send")
	}
	try(one, prod.Agent("region-b", "a1"), other.Name(), "goals", "may not send")
	for _, what := range []string{"near", "tally"} { // of its region's agents alone
		try(one, prod.Agent("region-b", "a1"), other.Name(), what, "may not send")
		try(one, prod.Seeder("s1"), s.Name(), what, "may not send")
		try(one, prod.Host("region-a", "h1"), "h1-"+begun, what, "may not send")
		try(s, prod.Agent("region-a", "a1"), one.Name(), what, "may not send")
	}
	try(one, prod.Host("region-a", "h1"), "h1-"+begun, "goals", "may not send")
	try(s, prod.Agent("region-a", "a1"), one.Name(), "goals", "may not send")
	try(one, prod.Seeder("s1"), s.Name(), "goals", "")
	atOne.want(t, "web-1")
	try(one, prod.Agent("region-a", "a2"), two.Name(), "goals", "")
	atOne.want(t, "web-1")
	for _, what := range []string{"no kind", "too long", "no sender"} {
		try(s, prod.Agent("region-a", "a1"), one.Name(), what, map[string]string{
			"no kind": "no message about the fleet", "too long": "at most", "no sender": "cut short",
		}[what])
	}
	// Of another region's agent of the same name: what it queues is refused when it is handled.
	err := s.fleet.handle(fleetMessage{fleetMessages(t, one.Name())["counts"], prod.Agent("region-b", "a1")})
	if err == nil || !strings.Contains(err.Error(), "sends it as") {
		t.Errorf("another region's: %v", err)
	}
	// Nobody's word counts where nobody shows a certificate.
	for what, message := range fleetMessages(t, one.Name()) {
		if err := s.fleet.handle(fleetMessage{message: message}); err == nil && what != "goals" { // which a seeder takes from nobody
			t.Errorf("%s without a certificate are taken by the seeder", what)
		}
		if err := one.fleet.handle(fleetMessage{message: packFleet(kindGoals, s.Name(), packFrames([][]byte{[]byte("x")}))}); err == nil {
			t.Error("goals without a certificate are taken, --tls is require")
		}
	}
	select {
	case c := <-atSeeder.counts:
		t.Errorf("counted: %+v", c)
	case r := <-atSeeder.rosters:
		t.Errorf("a roster that nobody asked for: %s", r)
	case g := <-atOne.goals:
		t.Errorf("a goal: %s", g)
	default:
	}
}

// TestFleetWhileTLSIsRolledOut: who has a certificate is not spoken for by who has none.
func TestFleetWhileTLSIsRolledOut(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	var atSeeder, unused heardOf
	s := start(t, seeder("s1"), withTLS(t, prod, identity.Prefer, inFleet(&atSeeder)))
	one := start(t, agent("a1", "region-a"), withTLS(t, prod, identity.Prefer, join(s), inFleet(&unused)))
	plain := start(t, agent("b1", "region-b"), sequence(join(s), inFleet(&unused, "h1"), func(c *Config) { c.Keys = [][]byte{bytes.Repeat([]byte{1}, keyLength)} }))
	for _, n := range []*node{s, one, plain} {
		n.await(t, 3)
	}
	if err := plain.ReportCounts(goal.Counts{Service: "web", InStates: goal.InStates{Hosts: 1}}); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, atSeeder.counts); len(got) != 1 || got[0].Hosts != 1 {
		t.Errorf("without a certificate: %+v", got)
	}
	if err := one.ReportCounts(goal.Counts{Service: "web", InStates: goal.InStates{Hosts: 2}}); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, atSeeder.counts); len(got) != 1 || got[0].Hosts != 2 {
		t.Errorf("with one: %+v", got)
	}
	if err := s.fleet.handle(fleetMessage{message: fleetMessages(t, one.Name())["counts"]}); err == nil || !strings.Contains(err.Error(), "has one") {
		t.Errorf("somebody speaks for a1: %v", err)
	}
	answers, silent, err := s.HostsOf(t.Context(), HostsQuestion{Service: "web", Limit: 10})
	if err != nil || len(answers) != 2 || len(silent) != 0 {
		t.Errorf("%+v, %v, %v", answers, silent, err)
	}
}

// TestFleetIsBounded: no message makes a member keep more than its bounds, and none that is
// not understood ends anything.
func TestFleetIsBounded(t *testing.T) {
	var atSeeder, atOne heardOf
	log := listen()
	s := start(t, seeder("s"), sequence(log.logger, inFleet(&atSeeder)))
	one := start(t, agent("a", "a"), sequence(join(s), inFleet(&atOne, "h1")))
	for _, n := range []*node{s, one} {
		n.await(t, 2)
	}
	if err := s.SendGoal("web", make([]byte, goal.MaxLength+1)); err == nil {
		t.Error("a goal that is too long is sent")
	}
	var sent int
	for i := range 2 * goal.MaxServices {
		if s.SendGoal(fmt.Sprint("s", i), []byte("x")) == nil {
			sent++
		}
	}
	if sent != goal.MaxServices+3 {
		t.Errorf("goals of %d services are sent", sent)
	}
	s.DropGoal("s0")
	if err := s.SendGoal("another", []byte("y")); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
	handle := func(at *node, kind byte, sender string, body []byte) error {
		return at.fleet.handle(fleetMessage{message: packFleet(kind, sender, body)})
	}
	many := make([]goal.Counts, goal.MaxServices+1)
	for i := range many {
		many[i].Service = "web"
	}
	tooMany, err := json.Marshal(many)
	if err != nil {
		t.Fatal(err)
	}
	var labels strings.Builder
	for i := range hostwire.MaxLabels {
		fmt.Fprintf(&labels, `"k%d":"v",`, i)
	}
	for what, of := range map[string]struct {
		kind byte
		body string
	}{
		"counts of too many services": {kindCounts, string(tooMany)},
		"counts below nothing":        {kindCounts, `[{"service":"web","hosts":-1}]`},
		"counts of too many hosts":    {kindCounts, `[{"service":"web","failed":1000001}]`},
		"counts of no service":        {kindCounts, `[{"service":"../web"}]`},
		"no counts":                   {kindCounts, `{`},
		"too many failures":           {kindCounts, `[{"service":"web","failures":[` + strings.Repeat(`{"host":"h"},`, goal.MaxFailures) + `{"host":"h"}]}]`},
		"no host's failure":           {kindCounts, `[{"service":"web","failures":[{"host":"a b"}]}]`},
		"a roster of no service":      {kindRoster, "\x01/"},
		"half a roster":               {kindRoster, "\x03web123"},
		"a roster cut short":          {kindRoster, "\x09web"},
		"no roster":                   {kindRoster, ""},
		"a roster in no order":        {kindRoster, "\x03web\x00\x00\x00\x02\x00\x00\x00\x01"},
		"a roster that is not asked":  {kindRoster, "\x03web\x00\x00\x00\x02"},
		"no hosts":                    {kindHosts, `[`},
		"hosts in no state":           {kindHosts, `{"h":[{"host":"h1","state":"asleep"}]}`},
		"hosts without a name":        {kindHosts, `{"h":[{"state":"ready"}]}`},
		"a long program":              {kindHosts, `{"h":[{"host":"h1","state":"ready","program":"` + strings.Repeat("x", maxHostText+1) + `"}]}`},
		"too many hosts":              {kindHosts, `{"a":100001}`},
		"long words of a host":        {kindHosts, `{"h":[{"host":"h1","state":"ready","error":"` + strings.Repeat("x", maxHostText+1) + `"}]}`},
		"too many labels":             {kindHosts, `{"h":[{"host":"h1","state":"ready","labels":{` + labels.String() + `"x":""}}]}`},
		"a long label":                {kindHosts, `{"h":[{"host":"h1","state":"ready","labels":{"x":"` + strings.Repeat("x", hostwire.MaxLabel+1) + `"}}]}`},
		"wants no list":               {kindWant, `{}`},
		"wants too many":              {kindWant, `["` + strings.Repeat(`","`, goal.MaxServices+1) + `"]`},
		"a seeder's question":         {kindHostsOf, `{"s":"web","l":1}`},
	} {
		if err := handle(s, of.kind, one.Name(), []byte(of.body)); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	for what, of := range map[string]struct {
		kind byte
		body string
	}{
		"the roster of no service": {kindRosterOf, "a b"},
		"hosts of no service":      {kindHostsOf, `{"s":"","l":1}`},
		"hosts in no state":        {kindHostsOf, `{"s":"web","l":1,"t":"x"}`},
		"too many":                 {kindHostsOf, `{"s":"web","l":1001}`},
		"none":                     {kindHostsOf, `{"s":"web"}`},
		"no question":              {kindHostsOf, `x`},
		"after no host":            {kindHostsOf, `{"s":"web","l":1,"a":"region-a/"}`},
		"after a long region":      {kindHostsOf, `{"s":"web","l":1,"a":"` + strings.Repeat("r", maxName+1) + `/h"}`},
		"after a long host":        {kindHostsOf, `{"s":"web","l":1,"a":"r/` + strings.Repeat("h", identity.MaxName+1) + `"}`},
		"an agent's counts":        {kindCounts, `[]`},
	} {
		if err := handle(one, of.kind, s.Name(), []byte(of.body)); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	if a, err := decodeHosts([]byte(`{"h":[{"host":"h1","state":"ready","key":"web.zip","labels":{"rack":"7"}}]}`)); err != nil || a.Hosts[0].Key != "" || a.Hosts[0].Labels["rack"] != "7" {
		t.Errorf("%+v, %v", a, err)
	}
	if err := handle(s, kindCounts, "nobody-"+ulid.Make().String(), []byte(`[]`)); err == nil {
		t.Error("counts of nobody are taken")
	}
	// Garbage by the message is a few looks.
	var forged [][]byte
	for range 100 * maxBadFrames {
		forged = append(forged, []byte("forged"))
	}
	looked := 0
	alone := start(t, agent("alone", "a"), func(c *Config) { c.OnGoal = func([]byte) error { looked++; return errors.New("it is forged") } })
	if err := handle(alone, kindGoals, s.Name(), packFrames(forged)); err == nil || looked != maxBadFrames {
		t.Errorf("%d forged goals were looked at: %v", looked, err)
	}
	for _, body := range []string{"\x00", "\x00\x00", "\x00\x09x", "\xff\xffx"} {
		if err := handle(one, kindGoals, s.Name(), []byte(body)); err == nil {
			t.Errorf("%q: taken", body)
		}
	}
	// A flood fills one queue, and is counted.
	full := newFleet(s.Gossip)
	big := packFleet(kindRoster, one.Name(), make([]byte, maxRoster/2))
	for range 4 * maxQueued / len(big) {
		_ = full.put(fleetMessage{message: big})
	}
	if n := full.bytes.Load(); n > maxQueued || n < maxQueued/2 {
		t.Errorf("%d bytes wait", n)
	}
	for range 2 * maxGoalMessages {
		_ = full.put(fleetMessage{message: []byte{kindGoals, 0}})
	}
	if len(full.goalsIn) != maxGoalMessages || metric(t, s, "landfall_gossip_dropped_total", "") == 0 {
		t.Errorf("%d goals wait", len(full.goalsIn))
	}
	d := delegate{s.Gossip}
	d.NotifyMsg(make([]byte, 0))
	d.NotifyMsg(append([]byte{kindRoster}, make([]byte, maxRoster)...))
	log.line(t, "level=WARN", "message refused")
	// Questions that nobody answers are bounded, and end.
	ctx, cancel := context.WithCancel(t.Context())
	silent := agent("silent", "b")
	silent.Fleet = 1
	s.roster.come(nodeOf(t, "silent", silent, "127.0.0.1:9"))
	var waiting sync.WaitGroup
	for range maxQuestions {
		waiting.Go(func() {
			if _, silent, err := s.HostsOf(ctx, HostsQuestion{Service: "web", Limit: 1}); err != nil || !slices.ContainsFunc(silent, func(m Member) bool { return m.ID == "silent" }) {
				t.Errorf("%v, %v", silent, err)
			}
		})
	}
	s.untilTrue(t, "not all questions are asked", func() bool {
		s.fleet.mu.Lock()
		defer s.fleet.mu.Unlock()
		return len(s.fleet.questions) == maxQuestions
	})
	if _, _, err := s.HostsOf(ctx, HostsQuestion{Service: "web", Limit: 1}); !errors.Is(err, errBusy) {
		t.Errorf("one more question: %v", err)
	}
	cancel()
	waiting.Wait()
}

// TestMuteAgentsAreAskedOnce: by the first page of a list of hosts, and by no other, until they
// have answered in time again.
func TestMuteAgentsAreAskedOnce(t *testing.T) {
	var atSeeder, atOne, atMute heardOf
	s := start(t, seeder("s"), inFleet(&atSeeder))
	one := start(t, agent("a", "region-a"), sequence(join(s), inFleet(&atOne, "h1", "h2")))
	var mu sync.Mutex
	speaks := make(chan struct{}) // closed when mute may answer
	mute := start(t, agent("m", "region-a"), sequence(join(s), inFleet(&atMute, "h3"), func(c *Config) {
		listed := c.OnHostsAsked
		c.OnHostsAsked = func(q HostsQuestion) HostsAnswer {
			mu.Lock()
			may := speaks
			mu.Unlock()
			select {
			case <-may:
			case <-t.Context().Done():
			}
			return listed(q)
		}
	}))
	for _, n := range []*node{s, one, mute} {
		n.await(t, 3)
	}
	first := HostsQuestion{Service: "web", Limit: 1}
	next := first
	next.After = HostPlace{"region-a", "h1"}
	// listed asks, and returns who is silent and whether that took all of the time.
	listed := func(q HostsQuestion, within time.Duration) (silent []string, late bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		_, members, err := s.HostsOf(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range members {
			silent = append(silent, m.ID)
		}
		return silent, ctx.Err() != nil
	}
	all := func() bool { silent, _ := listed(first, time.Minute); return len(silent) == 0 }
	short, long := 300*time.Millisecond, time.Minute

	s.untilTrue(t, "not only the one that is mute is silent", func() bool { // who is slow is silent, too
		silent, late := listed(first, short)
		return slices.Equal(silent, []string{"m"}) && late
	})
	never := func() { // muteFor is over on no machine
		s.fleet.mu.Lock()
		defer s.fleet.mu.Unlock()
		s.fleet.mute[mute.Name()] = time.Now().Add(time.Hour)
	}
	never()
	if silent, late := listed(next, long); !slices.Equal(silent, []string{"m"}) || late {
		t.Errorf("the next page: %v are silent", silent)
	}
	if _, late := listed(first, short); !late {
		t.Error("the first page of another list does not wait for it")
	}
	// Who has asked and gone says nothing of the agents.
	s.fleet.mu.Lock()
	clear(s.fleet.mute)
	s.fleet.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, silent, err := s.HostsOf(ctx, first); err != nil || len(silent) == 0 {
		t.Errorf("%v, %v", silent, err)
	}
	if _, late := listed(next, short); !late {
		t.Error("an agent is not waited for of which nobody has waited for an answer")
	}

	never()
	close(speaks)
	s.untilTrue(t, "not all answer", all)
	mu.Lock()
	speaks = make(chan struct{})
	mu.Unlock()
	if _, late := listed(next, short); !late {
		t.Error("who has answered in time again is not waited for")
	}
	// Where there are no others, they are waited for all the same.
	never()
	s.fleet.mu.Lock()
	s.fleet.mute[one.Name()] = time.Now().Add(time.Hour)
	s.fleet.mu.Unlock()
	if _, late := listed(next, short); !late {
		t.Error("nobody is waited for, since all are said to be mute")
	}
}

// TestLettersAreTriedAgain: the newest of each name, in as many messages as it takes, until
// the member has them or is gone.
func TestLettersAreTriedAgain(t *testing.T) {
	s := start(t, seeder("s"), nil)
	m := newMailing(s.Gossip, kindGoals, "late", packFrames, func(m Member) bool { return m.Role == Agent })
	m.backoff = retry.Policy{First: time.Millisecond, Max: time.Millisecond}
	var mu sync.Mutex
	refuse, tries, got, longest := true, 0, make(map[string]int), 0
	tried := make(chan struct{}, 1000)
	m.deliver = func(_ string, message []byte) error {
		mu.Lock()
		defer mu.Unlock()
		tries++
		select {
		case tried <- struct{}{}:
		default:
		}
		if refuse {
			return errors.New("not now")
		}
		_, _, body, err := openFleet(message)
		if err != nil {
			return err
		}
		longest = max(longest, len(message))
		return eachFrame(body, func(wire []byte) bool { got[string(wire[:8])]++; return true })
	}
	a := nodeOf(t, "a-"+ulid.Make().String(), agent("a", "r"), "127.0.0.1:9")
	s.roster.come(a)
	long := strings.Repeat("x", goal.MaxLength-8)
	for version := range 3 {
		for i := range 20 {
			if err := m.put(fmt.Sprint(i), func(l *letter) { l.text = fmt.Appendf(nil, "%04d%04d%s", i, version, long) }); err != nil {
				t.Fatal(err)
			}
		}
	}
	receive(t, tried)
	receive(t, tried)
	if n := m.behind(); n != 1 {
		t.Errorf("%d members lack something", n)
	}
	mu.Lock()
	refuse = false
	mu.Unlock()
	s.untilTrue(t, "not all is delivered", func() bool { return m.behind() == 0 })
	mu.Lock()
	if len(got) != 20 || got["00000002"] != 1 || longest > maxFleet {
		t.Errorf("delivered %v, messages of up to %d bytes", got, longest)
	}
	refuse = true
	mu.Unlock()
	if err := m.put("0", func(l *letter) { l.text = []byte("newest..") }); err != nil {
		t.Fatal(err)
	}
	s.roster.leave(a)
	m.sync()
	m.wg.Wait() // nobody tries any more
	if n := m.behind(); n != 0 || len(m.readers) != 0 {
		t.Errorf("%d members lack something, %d are remembered", n, len(m.readers))
	}
	m.close()
}

// TestFailuresAddUp until they are delivered, and the counts are the newest.
func TestFailuresAddUp(t *testing.T) {
	l := new(letter)
	for i := range 2 * goal.MaxFailures {
		l.number++
		l.count(goal.Counts{Service: "web", InStates: goal.InStates{Hosts: i}, Failures: []goal.Failure{{Host: fmt.Sprint("h", i), Output: strings.Repeat("\x01", goal.MaxOutput)}}})
	}
	decode := func(b []byte) (c goal.Counts) {
		if err := json.Unmarshal(b, &c); err != nil || len(b) > maxCounts {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
		return c
	}
	// Control characters are six bytes each in JSON, so that not all fit.
	c := decode(l.encode(0))
	if n := len(c.Failures); n == 0 || n >= goal.MaxFailures || c.Failures[n-1].Host != "h15" || c.Hosts != 15 {
		t.Errorf("%d failures, %d hosts", n, c.Hosts)
	}
	if c := decode(l.encode(l.number - 1)); len(c.Failures) != 1 || c.Failures[0].Host != "h15" {
		t.Errorf("told: %+v", c.Failures)
	}
	if c := decode(l.encode(l.number)); len(c.Failures) != 0 {
		t.Errorf("told again: %+v", c.Failures)
	}
}

// TestLongestRosterFitsACall and the hosts of one answer a message.
func TestLongestRosterFitsACall(t *testing.T) {
	service := strings.Repeat("s", identity.MaxName)
	message := packFleet(kindRoster, strings.Repeat("a", maxName)+"-"+ulid.Make().String(), encodeRoster(service, make([]uint32, MaxRoster)))
	if _, _, body, err := openFleet(message); err != nil || len(message) > call.MaxFleet {
		t.Errorf("%d bytes: %v", len(message), err)
	} else if _, hashes, err := decodeRoster(body); err != nil || len(hashes) != MaxRoster {
		t.Errorf("%d hashes, %v", len(hashes), err)
	}
	views := make([]api.HostView, MaxHosts)
	for i := range views {
		views[i] = api.HostView{Host: fmt.Sprint("h", i), State: api.HostFailed, Output: strings.Repeat("\x01", goal.MaxOutput)}
	}
	rest := 7
	b, err := encodeHosts(hostsAnswer{1, len(views), views, &rest})
	if err != nil || len(b) > maxFleet {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if a, err := decodeHosts(b); err != nil || a.All != MaxHosts || len(a.Hosts) == 0 || a.rest() != MaxHosts-len(a.Hosts)+7 || rest != 7 {
		t.Errorf("%d of %d and %d more, %v", len(a.Hosts), a.All, a.rest(), err)
	}
}

// TestLeastHostsOfAnAnswer: of hosts that say as much as they can of themselves some fit a message,
// and of others as many as there is room for.
func TestLeastHostsOfAnAnswer(t *testing.T) {
	text := func(n int) string { return strings.Repeat(`"`, n) } // of two bytes each in JSON
	now := time.Now()
	longest := api.HostView{
		Host: strings.Repeat("h", hostwire.MaxName), Region: text(maxName), Zone: text(hostwire.MaxLabel), Labels: make(map[string]string),
		State: api.HostSwitching, Held: true, Running: ulid.Make().String(), Version: math.MaxInt64,
		Phase: text(hostwire.MaxLabel), Error: text(hostwire.MaxError), Output: text(hostwire.MaxOutput), SeenAt: &now,
	}
	for i := range hostwire.MaxLabels {
		longest.Labels[fmt.Sprintf("%s%02d", text(hostwire.MaxLabel-2), i)] = text(hostwire.MaxLabel)
	}
	for what, c := range map[string]struct {
		first, then api.HostView
		least, most int
	}{
		"the longest":               {longest, longest, LeastHosts + 2, MaxHosts / 4},
		"short ones, and long ones": {api.HostView{Host: "h", State: api.HostReady}, longest, MaxHosts / 4, MaxHosts/4 + 9},
		"for a page":                {api.HostView{Host: "h", State: api.HostFailed, Output: strings.Repeat("<", 100)}, longest, MaxHosts / 4, MaxHosts/4 + 9},
	} {
		hosts := make([]api.HostView, MaxHosts)
		for i := range hosts {
			if hosts[i] = c.then; i < MaxHosts/4 {
				hosts[i] = c.first
			}
		}
		rest := 0
		b, err := encodeHosts(hostsAnswer{math.MaxUint64, goal.MaxHostsOfAgent, hosts, &rest})
		if message := packFleet(kindHosts, strings.Repeat("a", maxName)+"-"+ulid.Make().String(), b); err != nil || len(message) > maxFleet {
			t.Errorf("%s: %d bytes, %v", what, len(message), err)
		}
		a, err := decodeHosts(b)
		if err != nil || len(a.Hosts) < c.least || len(a.Hosts) > c.most || a.rest() != MaxHosts-len(a.Hosts) {
			t.Errorf("%s: %d hosts, %d more, %v", what, len(a.Hosts), a.rest(), err)
		}
	}
}

// TestRestOfHosts: who does not say how many hosts are left is of a version that names the first
// alone, and numbers that nobody can have are refused.
func TestRestOfHosts(t *testing.T) {
	const host = `"h":[{"host":"h1","state":"ready"}]`
	for body, want := range map[string]int{
		`{"a":3,` + host + `}`: 2, `{"a":0,` + host + `}`: 0, `{"a":3,` + host + `,"r":0}`: 0, `{"a":3,` + host + `,"r":5}`: 5,
		`{"a":3,` + host + `,"r":-1}`: -1, `{"a":3,` + host + `,"r":100001}`: -1, `{"a":100001,` + host + `}`: -1,
	} {
		a, err := decodeHosts([]byte(body))
		if want < 0 != (err != nil) || err == nil && a.rest() != want {
			t.Errorf("%s: %d more, %v", body, a.rest(), err)
		}
	}
}

// TestHostPlaces are in order of region and name, and have bounds.
func TestHostPlaces(t *testing.T) {
	var last HostPlace
	for _, text := range []string{"a/host-2", "a/z", "a/b/a", "b/a", strings.Repeat("r", maxName) + "/" + strings.Repeat("h", identity.MaxName)} {
		p, err := ParseHostPlace(text)
		if err != nil || p.String() != text || last.Compare(p) >= 0 || p.Compare(last) <= 0 || p.Compare(p) != 0 {
			t.Errorf("%q: %+v, %v", text, p, err)
		}
		last = p
	}
	for _, text := range []string{"", "/", "host", "/host", "region/", "region/H", "region/.h", strings.Repeat("r", maxName+1) + "/h", "r/" + strings.Repeat("h", identity.MaxName+1), strings.Repeat("r/", 1<<20)} {
		if p, err := ParseHostPlace(text); err == nil || p != (HostPlace{}) || len(err.Error()) > 1000 {
			t.Errorf("%.80q: %+v, %v", text, p, err)
		}
	}
}

// FuzzFleet: whatever comes as a message about the fleet is within its bounds when it is
// understood.
func FuzzFleet(f *testing.F) {
	f.Add(packFleet(kindGoals, "s-1", packFrames([][]byte{[]byte("a"), []byte("b")})))
	f.Add(packFleet(kindCounts, "a-1", []byte(`[{"service":"web","hosts":3,"failures":[{"host":"h1","error":"x"}]}]`)))
	f.Add(packFleet(kindRoster, "a-1", encodeRoster("web", []uint32{1, 1, 2})))
	f.Add(packFleet(kindHosts, "a-1", []byte(`{"i":1,"a":2,"h":[{"host":"h1","state":"ready"}]}`)))
	f.Add(packFleet(kindHostsOf, "s-1", []byte(`{"s":"web","l":10,"i":18446744073709551615}`)))
	f.Add(packFleet(kindHostsOf, "s-1", []byte(`{"s":"web","l":10,"a":"region-a/host-1"}`)))
	f.Add(packFleet(kindHosts, "a-1", []byte(`{"i":1,"a":2,"h":[{"host":"h1","state":"ready"}],"r":5}`)))
	f.Add(packFleet(kindWant, "a-1", []byte(`["web",""]`)))
	f.Add([]byte{kindRoster, 255})
	f.Fuzz(func(t *testing.T, message []byte) {
		kind, sender, body, err := openFleet(message)
		if err != nil {
			return
		}
		if len(message) > mostOf(kind) || !bytes.Equal(packFleet(kind, sender, body), message) {
			t.Errorf("taken apart as %q and %q", sender, body)
		}
		switch kind {
		case kindGoals:
			total := 0
			_ = eachFrame(body, func(wire []byte) bool {
				total += len(wire) + 2
				return len(wire) > 0 && len(wire) <= goal.MaxLength
			})
			if total > len(body) {
				t.Errorf("%d bytes of goals in %d", total, len(body))
			}
		case kindCounts:
			list, err := decodeCounts(body)
			for i := range list {
				if err == nil && (list[i].Check() != nil || list[i].Hosts < 0) {
					t.Errorf("%+v", list[i])
				}
			}
		case kindRoster:
			service, hashes, err := decodeRoster(body)
			if err == nil && (!slices.IsSorted(hashes) || !bytes.Equal(encodeRoster(service, hashes), body)) {
				t.Errorf("roster of %q: %v", service, hashes)
			}
		case kindHosts:
			if a, err := decodeHosts(body); err == nil {
				if b, err := encodeHosts(a); err != nil || len(a.Hosts) > MaxHosts || len(b) == 0 {
					t.Errorf("%+v, %v", a, err)
				}
			}
		case kindHostsOf:
			var q HostsQuestion
			if json.Unmarshal(body, &q) == nil && q.check() == nil && (q.Limit < 1 || q.Limit > MaxHosts || q.Service == "" || max(len(q.After.Region), len(q.After.Host)) > maxName) {
				t.Errorf("%+v", q)
			}
		case kindWant:
			if names, err := decodeWant(body); err == nil && len(names) > goal.MaxServices+1 {
				t.Errorf("%d wanted", len(names))
			}
		}
	})
}
