package limits

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func rateOf(n int64) *api.Rate { r := api.Rate(n); return &r }

func limitedTo(t *testing.T, n int64) *Limiter {
	t.Helper()
	l := New(true)
	if err := l.Change(api.LimitsChange{UploadRate: rateOf(n)}); err != nil {
		t.Fatal(err)
	}
	return l.Upload
}

// senders take from a limiter, each chunk after chunk, until ctx ends; each has a count.
func senders(ctx context.Context, wg *sync.WaitGroup, l *Limiter, n, chunk int) []*atomic.Int64 {
	counts := make([]*atomic.Int64, n)
	for i := range counts {
		count := new(atomic.Int64)
		counts[i] = count
		wg.Go(func() {
			for l.Take(ctx, chunk) == nil {
				count.Add(int64(chunk))
			}
		})
	}
	return counts
}

func sum(counts []*atomic.Int64) (all int64) {
	for _, c := range counts {
		all += c.Load()
	}
	return all
}

// What all pass together keeps to the rate in every second, from the least rate to a fast
// link's, and all get the same.
func TestSharedRate(t *testing.T) {
	for _, rate := range []int64{MinRate, 10_000_000, 1_000_000_000} {
		for _, n := range []int{1, 7, 200} {
			synctest.Test(t, func(t *testing.T) {
				var wg sync.WaitGroup
				ctx, cancel := context.WithCancel(t.Context())
				l := limitedTo(t, rate)
				chunk := l.Slice()
				begun := senders(ctx, &wg, l, n, chunk)
				before := int64(0)
				for second := range 10 {
					time.Sleep(time.Second)
					synctest.Wait()
					all := sum(begun)
					if passed := all - before; passed < rate*9/10-int64(n*chunk) || passed > rate*11/10+int64(chunk) {
						t.Errorf("rate %d, %d senders: %d bytes in second %d", rate, n, passed, second)
					}
					before = all
				}
				if want := 10 * rate; before < want*98/100-int64(n*chunk) || before > want*102/100 {
					t.Errorf("rate %d, %d senders: %d bytes in 10 s", rate, n, before)
				}
				least, most := begun[0].Load(), int64(0)
				for _, c := range begun {
					least, most = min(least, c.Load()), max(most, c.Load())
				}
				if most-least > int64(2*chunk) {
					t.Errorf("rate %d, %d senders: from %d to %d bytes each", rate, n, least, most)
				}
				cancel()
				wg.Wait()
			})
		}
	}
}

// What passes in any case counts: the rest waits for it.
func TestCharge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limitedTo(t, 1_000_000)
		begun := time.Now()
		l.Charge(3_000_000)
		if !l.Wait(nil, 1_000_000) {
			t.Fatal("it has ended")
		}
		if took := time.Since(begun); took < 3900*time.Millisecond || took > 4100*time.Millisecond {
			t.Errorf("4 MB at 1 MB/s took %s", took)
		}
		if waited := l.Waited(); waited < 3900*time.Millisecond || waited > 4100*time.Millisecond {
			t.Errorf("said to have waited %s", waited)
		}
	})
}

// After a time without bytes no more than a quarter of a second's pass at once, and after a
// change nothing does.
func TestNothingIsSavedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 10_000_000
		l := limitedTo(t, rate)
		now := make(chan struct{})
		close(now)
		atOnce := func() (n int) {
			for n < 2*rate && l.Wait(now, 1000) {
				n += 1000
			}
			return n
		}
		if n := atOnce(); n > 0 {
			t.Errorf("%d bytes passed at once after a change", n)
		}
		time.Sleep(time.Hour)
		if n := atOnce(); n > rate/burstsPerSecond {
			t.Errorf("%d bytes passed at once after an hour", n)
		}
	})
}

// A change is heard by those who wait already: for more, for no limit, and for less.
func TestChangeDuringWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := New(true)
		set := func(rate int64) {
			t.Helper()
			if err := limits.Change(api.LimitsChange{SourceRate: rateOf(rate)}); err != nil {
				t.Fatal(err)
			}
		}
		set(MinRate)
		var wg sync.WaitGroup
		begun := time.Now()
		for range 20 { // 20 MB at 125 kB/s: 160 s
			wg.Go(func() { limits.Source.Wait(nil, 1_000_000) })
		}
		time.Sleep(10 * time.Second)
		set(10_000_000)
		time.Sleep(time.Second)
		set(0)
		wg.Wait()
		if took := time.Since(begun); took != 11*time.Second {
			t.Errorf("who waited went on %s after the first change", took-10*time.Second)
		}
		ctx, cancel := context.WithCancel(t.Context())
		set(10_000_000)
		counts := senders(ctx, &wg, limits.Source, 20, 1000)
		time.Sleep(2 * time.Second)
		set(1_000_000)
		synctest.Wait()
		before := sum(counts)
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if passed := sum(counts) - before; passed < 3_800_000 || passed > 4_200_000 {
			t.Errorf("%d bytes in 4 s after the change to 1 MB/s", passed)
		}
		cancel()
		wg.Wait()
	})
}

// A wait ends with its context, and gives back what it has not used.
func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limitedTo(t, MinRate)
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for range 50 {
			wg.Go(func() {
				if err := l.Take(ctx, 1<<30); !errors.Is(err, context.Canceled) {
					t.Errorf("ended with %v", err)
				}
			})
		}
		time.Sleep(time.Second)
		begun := time.Now()
		cancel()
		wg.Wait()
		if took := time.Since(begun); took > 0 {
			t.Errorf("they went on for %s", took)
		}
		if err := l.Take(t.Context(), l.Slice()); err != nil || time.Since(begun) > time.Second/slicesPerSecond+time.Millisecond {
			t.Errorf("the next one had to wait %s: %v", time.Since(begun), err)
		}
		if err := l.Take(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that is over: %v", err)
		}
	})
}

// Waits for a limit are heard of, and stand outside a time-out.
func TestTimeWithoutWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limitedTo(t, MinRate)
		var waits atomic.Int64
		ctx := OnWait(t.Context(), func(bool) { waits.Add(1) })
		ctx, cancel := WithTimeout(ctx, 10*time.Second)
		defer cancel()
		for range 3 {
			time.Sleep(3 * time.Second)
			if err := l.Take(ctx, 100*MinRate); err != nil {
				t.Fatal(err)
			}
		}
		if n := waits.Load(); n == 0 || n%2 != 0 {
			t.Errorf("%d beginnings and ends of waits", n)
		}
		time.Sleep(999 * time.Millisecond)
		if ctx.Err() != nil {
			t.Error("over after 9.999 s")
		}
		<-ctx.Done()
		if !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			t.Errorf("ended for %v", context.Cause(ctx))
		}
	})
}

func TestReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := bytes.Repeat([]byte("0123456789"), 100_000)
		begun := time.Now()
		r := limitedTo(t, 500_000).ReadSeeker(t.Context(), bytes.NewReader(content))
		for range 2 { // what is sent again counts again
			if _, err := r.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
				t.Errorf("not what there is to read: %v", err)
			}
		}
		if took := time.Since(begun); took < 3900*time.Millisecond || took > 4100*time.Millisecond {
			t.Errorf("2 MB at 500 kB/s took %s", took)
		}
		var none *Limiter
		if got, err := io.ReadAll(none.Reader(t.Context(), bytes.NewReader(content))); err != nil || len(got) != len(content) {
			t.Errorf("without a limit: %d bytes, %v", len(got), err)
		}
	})
}

func TestBounds(t *testing.T) {
	l := New(true)
	if err := l.Change(api.LimitsChange{UploadRate: rateOf(MinRate), LandingRate: rateOf(MaxRate)}); err != nil {
		t.Fatal(err)
	}
	before := l.Rates()
	for _, bad := range []int64{-1, 1, MinRate - 1, MaxRate + 1} {
		err := l.Change(api.LimitsChange{UploadRate: rateOf(MaxRate), DownloadRate: rateOf(MaxRate), SourceRate: rateOf(bad)})
		if err == nil || !strings.Contains(err.Error(), "sourceRate") {
			t.Errorf("%d: %v", bad, err)
		}
		if now := l.Rates(); now.UploadRate != before.UploadRate || now.DownloadRate != 0 || now.SourceRate != 0 {
			t.Errorf("%d changed something: %+v", bad, now)
		}
	}
	if err := New(false).Change(api.LimitsChange{UploadRate: rateOf(MinRate), LandingRate: rateOf(MinRate)}); err == nil {
		t.Error("a seeder has a landing rate")
	}
	for in, want := range map[string]int64{"0": 0, "200MB": 200_000_000, "1Gbit": 125_000_000, "1Mbit": MinRate, "1TB": MaxRate, "124999": -1, "1.1TB": -1, "-1": -1, "": -1, "NaN": -1, "fast": -1} {
		if got, err := Rate(in); (err != nil) != (want < 0) || err == nil && int64(*got) != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "limits.json")
	for text, want := range map[string]int64{
		`{}`:                              -1,
		`{"uploadRate": "200MB"}`:         200_000_000,
		`{"uploadRate": 300000}`:          300_000,
		`{"uploadRate": null}`:            -1,
		`{"uploadRate": 0}` + "\n":        0,
		`{"uploadRate": "1Mbit"}`:         MinRate,
		``:                                -2,
		`[]`:                              -2,
		`{"uploadRate": 5}`:               -2,
		`{"uploadRate": 1.5}`:             -2,
		`{"uploadRate": "fast"}`:          -2,
		`{"uploadRate": 1e30}`:            -2,
		`{"rate": 300000}`:                -2,
		`{} {}`:                           -2,
		`{}` + strings.Repeat(" ", 1<<16): -2,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := ReadFile(file)
		got := int64(-1)
		if err != nil {
			got = -2
		} else if c.UploadRate != nil {
			got = int64(*c.UploadRate)
		}
		if got != want {
			t.Errorf("%.40q: %d (%v), want %d", text, got, err, want)
		}
	}
	if _, err := ReadFile(file + "-none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// BenchmarkNoLimit is what everybody pays who sets no limit.
func BenchmarkNoLimit(b *testing.B) {
	l := New(false).Upload
	b.ReportAllocs()
	for b.Loop() {
		l.Wait(nil, 64<<10)
	}
}
