package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// Every group of pieces has each agent once in its order, and the first places are
// spread over all.
func TestPlace(t *testing.T) {
	ids := []string{"a", "b", "c", "d"}
	first := map[string]int{}
	for i := range 400 {
		what := fmt.Sprint("group ", i)
		seen := map[int]bool{}
		for _, id := range ids {
			p := place(what, id, append([]string{id}, ids...))
			if seen[p] {
				t.Fatalf("two agents have place %d", p)
			}
			seen[p] = true
			if p == 0 {
				first[id]++
			}
		}
		for p := range ids {
			if !seen[p] {
				t.Fatalf("nobody has place %d", p)
			}
		}
	}
	for _, id := range ids {
		if first[id] < 50 {
			t.Errorf("%s is first for %d of 400", id, first[id])
		}
	}
}

// A build without progress gives its place up, one that moves keeps it.
func TestMakeRoom(t *testing.T) {
	var b build
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	b.makeRoom(0) // nothing under way
	b.begin(cancel)
	b.makeRoom(time.Hour)
	if ctx.Err() != nil {
		t.Fatal("a build that has just begun lost its place")
	}
	b.moved.Store(time.Now().Add(-time.Minute).UnixNano())
	b.makeRoom(time.Second)
	if !errors.Is(context.Cause(ctx), errYielded) {
		t.Errorf("a build that stands still keeps its place: %v", context.Cause(ctx))
	}
}
