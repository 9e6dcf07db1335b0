//go:build !linux

package swarm

import "net"

// unacknowledged is not known here: what was written counts as arrived.
func unacknowledged(net.Conn) int64 { return 0 }
