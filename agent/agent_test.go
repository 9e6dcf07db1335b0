package agent

import (
	"fmt"
	"slices"
	"testing"

	"github.com/landfall-dist/landfall/internal/devcloud/cloudtest"
)

// cloud serves all tests of the process.
var cloud *cloudtest.Cloud

func TestMain(m *testing.M) { cloudtest.VerifyTestMain(m, &cloud) }

func TestRendezvous(t *testing.T) {
	ids := []string{"a", "b", "c", "d"}
	leader := func(execution string, ids []string) string {
		return ids[slices.IndexFunc(ids, func(id string) bool { return rendezvousRank(execution, id, ids) == 0 })]
	}
	wins := map[string]int{}
	for i := range 400 {
		execution := fmt.Sprint("execution-", i)
		winner := leader(execution, ids)
		wins[winner]++
		backwards := slices.Clone(ids)
		slices.Reverse(backwards)
		if again := leader(execution, append(backwards, "a")); again != winner {
			t.Fatalf("%s and %s lead %s", winner, again, execution)
		}
		// When somebody else leaves, the winner stays.
		without := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id != winner && id == "d" })
		if again := leader(execution, without); again != winner {
			t.Fatalf("%s gives %s up to %s", winner, execution, again)
		}
	}
	for _, id := range ids {
		if wins[id] < 50 {
			t.Errorf("%s leads %d of 400", id, wins[id])
		}
	}
}
