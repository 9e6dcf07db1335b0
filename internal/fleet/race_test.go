//go:build race

package fleet

// The race detector has memory of its own for all that is in use.
func init() { raced = true }
