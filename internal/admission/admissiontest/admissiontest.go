// Package admissiontest is for tests of what ports let in.
package admissiontest

import (
	"net"
	"testing"
)

// Elsewhere dials on loopback from another address than everybody else, or skips the test
// where this machine has but one, as darwin does unless it is given more.
func Elsewhere(t *testing.T) *net.Dialer {
	t.Helper()
	from := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}
	l, err := net.ListenTCP("tcp", from)
	if err != nil {
		t.Skipf("this machine has no second address: %v", err)
	}
	l.Close()
	return &net.Dialer{LocalAddr: from}
}
