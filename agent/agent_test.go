package agent

import (
	"fmt"
	"slices"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRendezvous(t *testing.T) {
	ids := []string{"a", "b", "c", "d"}
	wins := map[string]int{}
	for i := range 400 {
		execution := fmt.Sprint("execution-", i)
		winner := rendezvous(execution, ids)
		wins[winner]++
		backwards := slices.Clone(ids)
		slices.Reverse(backwards)
		if again := rendezvous(execution, append(backwards, "a")); again != winner {
			t.Fatalf("%s and %s lead %s", winner, again, execution)
		}
		// When somebody else leaves, the winner stays.
		without := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id != winner && id == "d" })
		if again := rendezvous(execution, without); again != winner {
			t.Fatalf("%s gives %s up to %s", winner, execution, again)
		}
	}
	for _, id := range ids {
		if wins[id] < 50 {
			t.Errorf("%s leads %d of 400", id, wins[id])
		}
	}
}

func TestNotice(t *testing.T) {
	n := newNotice()
	first := n.next()
	n.tell()
	select {
	case <-first:
	default:
		t.Error("not woken")
	}
	select {
	case <-n.next():
		t.Error("woken before the next change")
	default:
	}
}
