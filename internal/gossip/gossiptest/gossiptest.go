// Package gossiptest is for tests that run members.
package gossiptest

import "go.uber.org/goleak"

// Probes leaves out of account the goroutines of memberlist that its Shutdown does not
// wait for: a probe, or a push/pull, that was under way runs to its time-out.
func Probes() []goleak.Option {
	const list = "github.com/hashicorp/memberlist.(*Memberlist)."
	return []goleak.Option{
		goleak.IgnoreAnyFunction(list + "triggerFunc"),
		goleak.IgnoreAnyFunction(list + "pushPullTrigger"),
		goleak.IgnoreAnyFunction(list + "sendPingAndWaitForAck"),
		goleak.IgnoreAnyFunction(list + "Ping"),
	}
}
