package arrivals

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
)

// lease is that of a region, for a newly started process of an agent.
func (s *site) lease(agent, process string) (*Lease, *clock) {
	c := &clock{at: noon}
	l := NewLease(s.table, "region-a", agent, process)
	l.now = c.now
	return l, c
}

func hold(t *testing.T, l *Lease, hosts int64) Held {
	t.Helper()
	h, err := l.Hold(t.Context(), hosts)
	if err != nil {
		t.Fatal(err)
	}
	h.Asked = time.Time{}
	return h
}

// A lease is one process's until it gives it back or has stood still for Patience.
func TestLease(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a, _ := s.lease("a", "a1")
	b, passes := s.lease("b", "b1")
	for i, c := range []struct {
		do   func() Held
		want Held
	}{
		{func() Held { return hold(t, a, 5) }, Held{Term: 1, Agent: "a", Taken: true}},
		{func() Held { return hold(t, b, 5) }, Held{Agent: "a"}},
		{func() Held { return hold(t, a, 7) }, Held{Term: 1, Agent: "a"}},
		{func() Held { passes.pass(Patience); return hold(t, b, 5) }, Held{Agent: "a"}}, // it has moved
		{func() Held { passes.pass(Patience - time.Second); return hold(t, b, 5) }, Held{Agent: "a"}},
		{func() Held { passes.pass(time.Second); return hold(t, b, 5) }, Held{Term: 2, Agent: "b", Taken: true, Hosts: 7}},
		{func() Held { return hold(t, a, 9) }, Held{Agent: "b"}}, // and it finds that out when it writes
		// What the last holder wrote stays until the second write.
		{func() Held { again, _ := s.lease("b", "b2"); return hold(t, again, 1) }, Held{Term: 3, Agent: "b", Taken: true, Hosts: 7}},
		{func() Held { again, _ := s.lease("b", "b3"); hold(t, again, 1); return hold(t, again, 1) }, Held{Term: 4, Agent: "b"}},
		{func() Held { again, _ := s.lease("b", "b4"); return hold(t, again, 1) }, Held{Term: 5, Agent: "b", Taken: true, Hosts: 1}},
	} {
		if got := c.do(); got != c.want {
			t.Errorf("step %d: %+v, expected %+v", i, got, c.want)
		}
	}
	last, _ := s.lease("b", "b5")
	hold(t, last, 3)
	last.Forget()
	if got := hold(t, last, 1); got != (Held{Term: 7, Agent: "b", Taken: true, Hosts: 3}) {
		t.Errorf("forgotten: %+v", got)
	}
	if err := last.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := hold(t, a, 2); got != (Held{Term: 8, Agent: "a", Taken: true}) {
		t.Errorf("given back: %+v", got)
	}
	if err := last.Release(t.Context()); err != nil {
		t.Errorf("what it has not is given back: %v", err)
	}
	if got := hold(t, a, 2); got != (Held{Term: 8, Agent: "a"}) {
		t.Errorf("another gave back what it had not: %+v", got)
	}
}

// Of many that want it at a time one gets it.
func TestLeaseIsOnes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for _, agent := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		wg.Go(func() {
			l, _ := s.lease(agent, agent)
			h, err := l.Hold(context.Background(), 1)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if h.Term > 0 {
				won++
			}
		})
	}
	if wg.Wait(); won != 1 {
		t.Errorf("%d have it", won)
	}
}

// A row that another program wrote is named, and an unreachable table an error.
func TestLeaseOfOthers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	i := key("region:region-a", "hosts")
	i["version"], i["term"], i["process"] = number(maxNumber), number(maxNumber), text("p")
	if _, err := cloud.DynamoDB.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &s.table.name, Item: i}); err != nil {
		t.Fatal(err)
	}
	l, _ := s.lease("a", "a1")
	if h, err := l.Hold(t.Context(), 1); err == nil || h.Term != 0 {
		t.Errorf("%+v, %v", h, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if h, err := l.Hold(ended, 1); !errors.Is(err, context.Canceled) || h.Term != 0 {
		t.Errorf("%+v, %v", h, err)
	}
}
