//go:build linux

package chaos

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
)

// Loopback has one address of its own that everything is sent from. So that a
// packet's addresses say which member sent it to which, each member is a user of
// its own, and rules of routing give what a user sends its member's address.

const (
	// firstUser begins the user ids, which need no account.
	firstUser = 200_000
	// usersPerWorld is the most members of a world.
	usersPerWorld = 50
	// Preference of the rules: those of users come before the local table,
	// which has to give way for it.
	userPreference, localPreference = "100", "200"
)

// network is what the namespace can do.
var network struct {
	once sync.Once
	err  error // why there are no network faults
}

// networkFaults prepares the namespace; an error says why there will be no
// network faults.
func networkFaults() error {
	network.once.Do(func() {
		network.err = prepareNetwork()
		if network.err != nil {
			fmt.Println("chaos: no network faults:", network.err)
		}
	})
	return network.err
}

func prepareNetwork() error {
	if os.Getenv(insideEnv) == "" {
		return fmt.Errorf("no network namespace")
	}
	if b, err := os.ReadFile("/proc/self/uid_map"); err != nil || strings.Fields(string(b))[2] == "1" {
		return fmt.Errorf("members cannot be users of their own: run the tests as root")
	}
	for _, args := range [][]string{
		{"ip", "rule", "add", "pref", localPreference, "lookup", "local"},
		{"ip", "rule", "del", "pref", "0"},
		{"iptables", "-w", "-L", "INPUT"},
		{"tc", "qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb", "default", "0"},
	} {
		if err := run(args...); err != nil {
			return err
		}
	}
	return nil
}

func run(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// route makes a user's packets come from an address.
func route(uid int, from netip.Addr) error {
	id := strconv.Itoa(uid)
	if err := run("ip", "route", "add", "local", "127.0.0.0/8", "dev", "lo", "src", from.String(), "table", id); err != nil {
		return err
	}
	return run("ip", "rule", "add", "pref", userPreference, "uidrange", id+"-"+id, "lookup", id)
}

// Link bounds what a member sends to other members' swarms, in bytes/s. The
// membership's packets go beside it.
func (m *Member) Link(bytesPerSecond int64) {
	m.w.t().Helper()
	m.w.NeedsNetwork()
	class := fmt.Sprintf("1:%x", m.uid-firstUser+1)
	args := []string{"tc", "class", "replace", "dev", "lo", "parent", "1:", "classid", class,
		"htb", "rate", strconv.FormatInt(8*bytesPerSecond, 10) + "bit", "burst", "128k", "quantum", "60000"}
	if err := run(args...); err != nil {
		m.w.t().Fatal(err)
	}
	if m.linked {
		return
	}
	m.linked = true
	for _, port := range []string{"sport", "dport"} {
		if err := run("tc", "filter", "add", "dev", "lo", "parent", "1:", "protocol", "ip", "u32",
			"match", "ip", "src", m.addr.String()+"/32", "match", "ip", port, peerPort, "0xffff", "flowid", class); err != nil {
			m.w.t().Fatal(err)
		}
	}
}

// NeedsNetwork skips a test that is about network faults where there are none.
func (w *World) NeedsNetwork() {
	w.t().Helper()
	if err := networkFaults(); err != nil {
		w.t().Skip(err)
	}
}

// Drop swallows what one member sends to another, until the returned function is
// called, or Join.
func (w *World) Drop(from, to *Member) (heal func()) {
	rule := []string{"INPUT", "-s", from.addr.String(), "-d", to.addr.String(), "-j", "DROP"}
	if err := run(append([]string{"iptables", "-w", "-A"}, rule...)...); err != nil {
		w.t().Error(err)
		return func() {}
	}
	undo := sync.OnceFunc(func() {
		if err := run(append([]string{"iptables", "-w", "-D"}, rule...)...); err != nil {
			w.t().Error(err)
		}
	})
	w.dropped = append(w.dropped, undo)
	return undo
}

// Part lets two sides hear nothing of each other, in the same way.
func (w *World) Part(side, other []*Member) (heal func()) {
	var undo []func()
	for _, a := range side {
		for _, b := range other {
			undo = append(undo, w.Drop(a, b), w.Drop(b, a))
		}
	}
	return func() {
		for _, f := range undo {
			f()
		}
	}
}

// Join ends everything that Drop and Part have done.
func (w *World) Join() {
	for _, undo := range w.dropped {
		undo()
	}
	w.dropped = nil
}
