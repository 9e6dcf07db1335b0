package main

import (
	"runtime/debug"
	"testing"
)

// A host's heap is kept small, unless its environment says how large it may be.
func TestCollectOften(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	for gogc, want := range map[string]int{"": hostGCPercent, "100": 100} {
		t.Setenv("GOGC", gogc)
		debug.SetGCPercent(100)
		collectOften()
		if got := debug.SetGCPercent(100); got != want {
			t.Errorf("GOGC=%q: %d percent, want %d", gogc, got, want)
		}
	}
}
