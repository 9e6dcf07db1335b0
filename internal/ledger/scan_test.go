package ledger

import (
	"testing"

	"github.com/landfall-dist/landfall/internal/ledger/ledgertest"
)

// BenchmarkScan is what reading the table costs beside the way to it.
func BenchmarkScan(b *testing.B) {
	const items = 20_000
	l := New(ledgertest.Table{Items: items, Source: "global-builds", Owner: "global-builds"}.Client(), "t").As("global-builds")
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if err := l.Scan(b.Context(), Scan{Record: func(r *Record) { n++ }, Unreadable: func(u *Unreadable) { b.Error(u) }}); err != nil {
			b.Fatal(err)
		}
	}
	if n != items*b.N {
		b.Errorf("%d executions of %d", n, items*b.N)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(n), "µs/item")
}
