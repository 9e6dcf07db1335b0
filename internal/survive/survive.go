// Package survive keeps a fault in the work on one build from ending the process
// and with it all others: a panic becomes an error, which is shown and tried again
// as any other. What Go itself makes fatal, such as a map written to by two
// goroutines, still ends the process.
package survive

import (
	"fmt"
	"log/slog"
	"runtime/debug"
)

// Panic is the error that a panic has become.
type Panic struct{ Value any }

func (p *Panic) Error() string {
	return fmt.Sprintf("internal fault: %v; the log has its stack, please report it", p.Value)
}

// Run calls f and returns its error; a panic is logged with its stack and returned as
// a *Panic. What f holds must be released by its own deferred calls.
func Run(logger *slog.Logger, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			logger.Error("internal fault, the rest goes on", "error", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = &Panic{v}
		}
	}()
	return f()
}
