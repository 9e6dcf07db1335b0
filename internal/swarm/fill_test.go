package swarm

import "testing"

func TestDigits(t *testing.T) {
	for want, c := range map[string]struct {
		has    []int
		pieces int
	}{
		"09":    {[]int{0, 1}, 2},
		"0959":  {[]int{0, 10, 6, 10}, 40},
		"189":   {[]int{1, 99, 100}, 300},
		"99909": {[]int{2, 1, 2, 0, 1}, 7}, // pieces 0-1, 2, 3-4, 5, 6
		"":      {nil, 0},
	} {
		if got := digits(c.has, c.pieces); got != want {
			t.Errorf("%v of %d pieces: %q, want %q", c.has, c.pieces, got, want)
		}
	}
}

// Every piece falls into the stretch that digits counts it for.
func TestStretchesCoverAllPieces(t *testing.T) {
	for pieces := 1; pieces <= 40_000; pieces += 1 + pieces/maxStretches {
		has := make([]int, min(maxStretches, pieces))
		for i := range pieces {
			has[i*len(has)/pieces]++
		}
		for _, d := range digits(has, pieces) {
			if d != '9' {
				t.Fatalf("%d pieces: %s", pieces, digits(has, pieces))
			}
		}
	}
}
