//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/landfall-dist/landfall/internal/processtest"
)

const (
	// nsPrefix begins the names of all namespaces made here; leftovers of a
	// run that was killed are found by it.
	nsPrefix = "landfall-bench-"
	hub      = nsPrefix + "hub"
	// burst and queue are the token bucket's: one segmentation offload, and
	// 100 ms at the link's rate before packets are dropped.
	burst = 64 << 10
	queue = 100 * time.Millisecond
)

// rates of a member's link in bits/s, Ethernet headers included.
type rates struct{ Up, Down int64 }

// link is a member's interface.
type link struct {
	rates
	// subnet is 0 where the interface is in the network of all, 1 in one that only
	// the seeder and the global bucket's S3 share.
	subnet byte
}

// network is one namespace for each member, joined by a switch in another.
type network struct {
	members []*member
	joiner  *process
}

// member is one host.
type member struct {
	index int
	ns    string
	addr  netip.Addr // of its first interface
}

// newNetwork makes a network whose member i has the i-th links, all with the same
// latency each way and the same congestion control. Close it.
func newNetwork(ctx context.Context, links [][]link, latency time.Duration, congestion, dir string) (_ *network, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root: run it with sudo")
	}
	if err := checkNeighbours(len(links)); err != nil {
		return nil, err
	}
	if err := removeLeftovers(); err != nil {
		return nil, err
	}
	n := &network{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if err := run("ip", "netns", "add", hub); err != nil {
		return nil, err
	}
	for i, of := range links {
		n.members = append(n.members, &member{index: i, ns: nsPrefix + strconv.Itoa(i), addr: addrOf(i, of[0])})
	}
	if err := n.join(ctx, links, latency, dir); err != nil {
		return nil, err
	}
	var setUp [][]string
	for i, m := range n.members {
		setUp = append(setUp, []string{"ip", "-n", m.ns, "link", "set", "lo", "up"})
		for k, l := range links[i] {
			addr, dev := addrOf(i, l).String(), device(k)
			setUp = append(setUp,
				[]string{"ip", "-n", m.ns, "addr", "add", addr + "/24", "dev", dev},
				[]string{"ip", "-n", m.ns, "link", "set", dev, "up"},
				shape(m.ns, dev, l.Up),
			)
			if congestion != "" {
				setUp = append(setUp, []string{"ip", "-n", m.ns, "route", "change", fmt.Sprintf("10.99.%d.0/24", l.subnet), "dev", dev,
					"proto", "kernel", "scope", "link", "src", addr, "congctl", congestion})
			}
		}
		// One switch joins both networks: an interface answers for its own address
		// alone.
		if err := m.inside(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/arp_ignore", []byte("1"), 0o644) }); err != nil {
			return nil, err
		}
	}
	for _, args := range setUp {
		if err := run(args...); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// checkNeighbours says what to do where the kernel has one table of neighbours for all
// namespaces that is too small for every member to know every other: what does not fit is
// "no route to host".
func checkNeighbours(members int) error {
	const name, spare = "net.ipv4.neigh.default.gc_thresh3", 256
	text, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return err
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	if need := members*members + spare; most < need {
		return fmt.Errorf("%d members are more than this kernel has room for in its table of neighbours: sysctl -w %s=%d", members, name, 2*need)
	}
	return nil
}

// addrOf is the address of a member's interface.
func addrOf(index int, l link) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 99, l.subnet, byte(index + 1)})
}

// device is the name of a member's k-th interface.
func device(k int) string { return fmt.Sprintf("eth%d", k) }

// join starts the switch and gives each member its ends.
func (n *network) join(ctx context.Context, links [][]link, latency time.Duration, dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{self, "switch", "--latency", latency.String()}
	for _, of := range links {
		for _, l := range of {
			args = append(args, strconv.FormatInt(l.Down, 10))
		}
	}
	n.joiner, err = start(hub, "switch", dir, nil, args...)
	if err != nil {
		return err
	}
	if err := n.joiner.WaitFor(ctx, switchReady); err != nil {
		return err
	}
	port := 0
	for i, m := range n.members {
		if err := run("ip", "netns", "add", m.ns); err != nil {
			return err
		}
		for k := range links[i] {
			if err := run("ip", "-n", hub, "link", "set", tapName(port), "netns", m.ns, "name", device(k)); err != nil {
				return err
			}
			port++
		}
	}
	return nil
}

// shape limits what a member sends; what it receives is limited by the switch.
func shape(ns, dev string, rate int64) []string {
	return []string{"tc", "-n", ns, "qdisc", "add", "dev", dev, "root", "tbf",
		"rate", strconv.FormatInt(rate, 10) + "bit", "burst", strconv.Itoa(burst), "latency", queue.String()}
}

// sent is how many bytes the member has put on its first link, the headers of every
// packet included.
func (m *member) sent() (int64, error) {
	out, err := output("tc", "-n", m.ns, "-s", "-j", "qdisc", "show", "dev", "eth0")
	if err != nil {
		return 0, err
	}
	var disciplines []struct{ Bytes int64 }
	if err := json.Unmarshal([]byte(out), &disciplines); err != nil || len(disciplines) == 0 {
		return 0, fmt.Errorf("%s: tc says %q: %w", m.ns, out, err)
	}
	return disciplines[0].Bytes, nil
}

// inside calls f on a thread within the member's namespace: sockets made there
// stay there.
func (m *member) inside(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	there, err := os.Open(filepath.Join("/run/netns", m.ns))
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering %s: %w", m.ns, err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // the thread stays locked and ends
	}
	runtime.UnlockOSThread()
	return err
}

// client speaks HTTP from within the member's namespace.
func (m *member) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 16,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = m.inside(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		},
	}}
}

// listen opens a port on the member.
func (m *member) listen(port int) (l net.Listener, err error) {
	err = m.inside(func() error {
		l, err = net.Listen("tcp", netip.AddrPortFrom(m.addr, uint16(port)).String())
		return err
	})
	return l, err
}

// Close removes the network. The processes in it must have ended.
func (n *network) Close() error {
	if n.joiner != nil {
		n.joiner.End(syscall.SIGTERM)
	}
	return removeLeftovers()
}

// alone holds a file as long as it is open: the namespaces of two runs would have the
// same names, and each would remove the other's.
func alone(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("holding %s: %w: is another bench wan running on this machine? Wait until it has ended", file, err)
	}
	return f, nil
}

func removeLeftovers() error {
	out, err := output("ip", "netns", "list")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(name, nsPrefix) {
			if err := run("ip", "netns", "del", name); err != nil {
				return err
			}
		}
	}
	return nil
}

func run(args ...string) error {
	_, err := output(args...)
	return err
}

func output(args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return string(out), nil
}

// process is a program.
type process = processtest.Process

// start runs a program, in a namespace unless ns is empty, with its output in a
// log beside the others.
func start(ns, name, dir string, env []string, args ...string) (*process, error) {
	if ns != "" { // `ip netns exec` becomes the program, so the process id is its own
		args = append([]string{"ip", "netns", "exec", ns}, args...)
	}
	return processtest.Start(processtest.Config{
		Name: name, Log: filepath.Join(dir, name+".log"), Env: append(os.Environ(), env...), Args: args,
	})
}
