package turns

import (
	"context"
	"errors"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Those of one key come one after the other, those of others at once, and who waits
// can go.
func TestTurns(t *testing.T) {
	var turns Turns[string]
	first, err := turns.Take(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := turns.Take(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := turns.Take(gone, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("waited for the first and ended with %v", err)
	}
	second := make(chan func())
	go func() {
		release, err := turns.Take(t.Context(), "a")
		if err != nil {
			t.Error(err)
		}
		second <- release
	}()
	select {
	case <-second:
		t.Fatal("two have the turn of one key")
	default:
	}
	first()
	(<-second)()
	other()
	if n := turns.Busy(); n != 0 {
		t.Errorf("%d turns are not given back", n)
	}
}
