// Package chaos breaks things on purpose. It runs the real binaries against an
// S3 and DynamoDB that fail in every way that can be made, kills, hangs and parts
// them from each other, and checks what Landfall promises: a regional bucket
// never shows an object that is not whole and verified, an arrival recorded is
// an arrival, an execution that can finish does so without a hand, and one that
// cannot says why.
//
//	w := chaos.Start(t, chaos.Options{Agents: []int{1, 1}})
//	v := w.Put("build.zip", 8<<20)
//	w.Agents[0].Kill()
//	w.Agents[0].Run()
//	w.Settle()
//
// A World is one cluster: a seeder and agents, each a process with a user and a
// loopback address of its own, so that the kernel can tell their traffic apart
// (network.go). Each member reaches the stores through a Gate of its own
// (gate.go, fault.go), in front of which the connections themselves can be
// harmed (wire.go). A watch (watch.go) looks at the buckets and the table all the
// time; Settle (settle.go) at all of it in the end. With Options.Fleet agents have hosts
// (hosts.go), and a watch of their own looks at those (fleetwatch.go).
package chaos
