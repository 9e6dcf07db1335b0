package terminal

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
)

const (
	// refresh is how often bars are drawn.
	refresh = 150 * time.Millisecond
	// patience is how many answers in a row may fail before following gives
	// up: a seeder that is restarted goes on.
	patience = 60
)

// Upload shows how a body is read, on a terminal. Call done at the end.
func Upload(w io.Writer, quiet bool, name string, body io.Reader, size int64) (_ io.Reader, done func()) {
	if quiet || !IsTerminal(w) || size == 0 {
		return body, func() {}
	}
	p := mpb.New(mpb.WithOutput(w), mpb.WithAutoRefresh(), mpb.WithRefreshRate(refresh))
	bar := p.AddBar(size,
		mpb.PrependDecorators(decor.Name("uploading "+plain(name)+" ")),
		mpb.AppendDecorators(decor.Percentage(), decor.AverageSpeed(decor.SizeB1024(0), " % .1f")))
	return readerFunc(func(b []byte) (int, error) {
			n, err := body.Read(b)
			bar.IncrBy(n)
			return n, err
		}), func() {
			bar.Abort(false)
			p.Wait()
		}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// Follow shows an execution with a bar for each destination until it has ended,
// and then the table of arrivals. It returns the last answer. With quiet it
// prints nothing.
func Follow(ctx context.Context, w io.Writer, quiet bool, interval time.Duration, get func(context.Context) (*api.Execution, error)) (*api.Execution, error) {
	var show follower = lines{w, map[string]string{}}
	switch {
	case quiet:
		show = silent{}
	case IsTerminal(w):
		show = newBars(w)
	}
	e, err := poll(ctx, interval, get, show.update)
	show.end()
	if err != nil {
		return nil, err
	}
	if !quiet {
		return e, Arrivals(w, e)
	}
	return e, nil
}

func poll(ctx context.Context, interval time.Duration, get func(context.Context) (*api.Execution, error), update func(*api.Execution)) (*api.Execution, error) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	failed := 0
	for {
		e, err := get(ctx)
		switch {
		case err == nil:
			failed = 0
			update(e)
			if e.Ended() {
				return e, nil
			}
		case ctx.Err() != nil:
			return nil, ctx.Err()
		default:
			if failed++; failed > patience {
				return nil, err
			}
			if _, answered := err.(*api.StatusError); answered {
				return nil, err // superseded, for example: it will not change
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ticker.C:
		}
	}
}

type follower interface {
	update(*api.Execution)
	end()
}

type silent struct{}

func (silent) update(*api.Execution) {}
func (silent) end()                  {}

// lines prints a line for each change of a destination's state, for pipes.
type lines struct {
	w    io.Writer
	last map[string]string
}

func (l lines) update(e *api.Execution) {
	for _, d := range e.Destinations {
		if text := describe(e, &d); l.last[d.Bucket] != d.State {
			l.last[d.Bucket] = d.State
			fmt.Fprintf(l.w, "%s: %s\n", d.Bucket, text)
		}
	}
}

func (l lines) end() {}

// describe says in a few words how a destination stands.
func describe(e *api.Execution, d *api.Destination) string {
	switch d.State {
	case api.StateLanded:
		return fmt.Sprintf("landed in %.1f s", d.Seconds)
	case api.StateDownloading:
		return fmt.Sprintf("downloading %s %s/s", percent(d.VerifiedBytes, e.Size, d.State), command.FormatSize(d.Rate))
	case api.StateLanding:
		return fmt.Sprintf("landing %s", percent(d.LandedBytes, e.Size, d.State))
	case api.StateQueued:
		if e.Phase == api.PhasePulling {
			return "the seeder pulls " + percent(e.PulledBytes, e.Size, e.Phase)
		}
		return "queued"
	default:
		if d.Error != "" {
			return d.State + ": " + plain(d.Error)
		}
		return d.State
	}
}

// bars shows one bar for each destination: half of it is the download, half the
// landing.
type bars struct {
	progress *mpb.Progress
	rows     map[string]*row
}

type row struct {
	bar  *mpb.Bar
	text chan string // holds the newest text
}

func newBars(w io.Writer) *bars {
	return &bars{
		progress: mpb.New(mpb.WithOutput(w), mpb.WithAutoRefresh(), mpb.WithRefreshRate(refresh)),
		rows:     make(map[string]*row),
	}
}

func (b *bars) update(e *api.Execution) {
	for _, d := range e.Destinations {
		r, ok := b.rows[d.Bucket]
		if !ok {
			r = b.add(d.Bucket, e.Size)
		}
		select {
		case <-r.text:
		default:
		}
		r.text <- describe(e, &d)
		done := d.VerifiedBytes + d.LandedBytes
		if d.State == api.StateLanded {
			done = 2 * max(e.Size, 1)
		}
		r.bar.SetCurrent(done)
	}
}

func (b *bars) add(bucket string, size int64) *row {
	r := &row{text: make(chan string, 1)}
	var shown string
	r.bar = b.progress.AddBar(2*max(size, 1),
		mpb.PrependDecorators(decor.Name(bucket+" ", decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			select {
			case shown = <-r.text:
			default:
			}
			return shown
		})))
	b.rows[bucket] = r
	return r
}

func (b *bars) end() {
	for _, r := range b.rows {
		r.bar.Abort(false)
	}
	b.progress.Wait()
}
