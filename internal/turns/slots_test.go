package turns

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
)

// So many have a slot at a time; who goes first does so before those who came earlier, who
// have theirs in the order in which they came.
func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSlots(2)
		if !s.TryTake() {
			t.Fatal("no slot is free")
		}
		if err := s.Take(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if s.TryTake() {
			t.Fatal("there are more slots than there are")
		}
		var order []string
		wait := func(ctx context.Context, name string, first bool) {
			go func() {
				if err := s.Take(ctx, first); err != nil {
					name = "none for " + name
				}
				order = append(order, name)
			}()
			synctest.Wait()
		}
		gone, cancel := context.WithCancel(t.Context())
		wait(gone, "a", false)
		wait(t.Context(), "b", false)
		wait(t.Context(), "c", false)
		wait(t.Context(), "urgent", true)
		cancel()
		synctest.Wait()
		for range 3 {
			s.Give()
			synctest.Wait()
		}
		if want := []string{"none for a", "urgent", "b", "c"}; !slices.Equal(order, want) {
			t.Errorf("slots were given to %q, %q is right", order, want)
		}
		if n := s.Taken(); n != 2 {
			t.Errorf("%d slots are taken", n)
		}
		s.Give()
		s.Give()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Take(ended, false); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
