package handout

import (
	"fmt"
	"testing"
)

func TestBitmap(t *testing.T) {
	for _, n := range []int{1, 7, 8, 63, 64, 65, 130} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			full := fullBitmap(n)
			count := 0
			full.each(func(int) { count++ })
			if count != n || full.nextMissing(0) < n {
				t.Errorf("%d members, first missing %d", count, full.nextMissing(0))
			}
			if empty := newBitmap(n); empty.next(0) != -1 || empty.nextMissing(n-1) != n-1 {
				t.Error("empty one has members")
			}
			field := make([]byte, (n+7)/8)
			field[(n-1)/8] = 0x80>>((n-1)%8) | 0xff>>(1+(n-1)%8) // the last, and the spare bits
			last := wireBitmap(field, n)
			if last.next(0) != n-1 || !last.get(n-1) || last.nextMissing(n-1) == n-1 {
				t.Errorf("%x has %b", field, last)
			}
		})
	}
}
