//go:build !linux

package peerwire

import "net"

// unacknowledged is not known here: what was written counts as arrived.
func unacknowledged(net.Conn) int64 { return 0 }
