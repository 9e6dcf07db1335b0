package command

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/term"
)

// hangUps is what a hang-up (SIGHUP) does; nil for the end of the process.
type hangUps struct {
	do atomic.Pointer[func()]

	mu   sync.Mutex
	read []func() error // what is read anew
}

type hangUpsKey struct{}

// untilTold returns a context that ends when the process is told to end: by an
// interrupt, SIGTERM, or a hang-up that no Daemon has taken. stop has signals do again
// what they do by themselves, so that a second one ends the process at once.
func untilTold() (ctx context.Context, stop func()) {
	h := new(hangUps)
	ctx, end := context.WithCancel(context.WithValue(context.Background(), hangUpsKey{}, h))
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		signals = append(signals, syscall.SIGHUP)
	}
	come := make(chan os.Signal, 8)
	signal.Notify(come, signals...)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-come:
				do := h.do.Load()
				if s != syscall.SIGHUP || do == nil {
					end()
					return
				}
				(*do)()
			}
		}
	}()
	return ctx, func() { signal.Stop(come); end() }
}

// OutliveReaders has the process go on when nobody reads its output any more: writes
// fail, where otherwise SIGPIPE would end it. For what runs long; a command in a pipe
// ends with its reader, as others do.
func OutliveReaders() { signal.Ignore(syscall.SIGPIPE) }

// OnHangUp has read called at each hang-up that a Daemon takes, one after the other; its
// error is logged, and is to say that nothing has changed. ctx is a command's.
func OnHangUp(ctx context.Context, read func() error) {
	if h, ok := ctx.Value(hangUpsKey{}).(*hangUps); ok {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.read = append(h.read, read)
	}
}

// Daemon has the process outlive the readers of its log, and take a hang-up for a
// question after new settings (OnHangUp); unless its input is a terminal: then a hang-up
// is that terminal's end, which what runs in it ends with. ctx is a command's.
func Daemon(ctx context.Context, logger *slog.Logger) {
	OutliveReaders()
	h, ok := ctx.Value(hangUpsKey{}).(*hangUps)
	if !ok || term.IsTerminal(int(os.Stdin.Fd())) {
		return
	}
	do := func() {
		h.mu.Lock()
		read := slices.Clone(h.read)
		h.mu.Unlock()
		if len(read) == 0 {
			logger.Info("SIGHUP: there is nothing to read anew, going on; SIGTERM ends the process")
		}
		for _, f := range read {
			if err := f(); err != nil {
				logger.Error("SIGHUP: not read anew, going on as before", "error", err)
			}
		}
	}
	h.do.Store(&do)
}

// Interruptible calls f, and gives it up when ctx ends first: for what knows no
// context, in a process that is about to end.
func Interruptible[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type outcome struct {
		v   T
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		v, err := f()
		done <- outcome{v, err}
	}()
	select {
	case o := <-done:
		return o.v, o.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// UnlessTold is err, but nil for the error that is only the end of a process that was
// told to end.
func UnlessTold(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
