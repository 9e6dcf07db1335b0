//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	if err := n.joiner.waitFor(ctx, switchReady); err != nil {
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
		n.joiner.stop()
	}
	return removeLeftovers()
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

// process is a program in a namespace.
type process struct {
	name  string
	cmd   *exec.Cmd
	stdin *os.File
	log   string
	ended chan struct{}
	err   error // how it ended
}

// start runs a program, in a namespace unless ns is empty, with its output in a
// log beside the others. Its standard input stays open until stop.
func start(ns, name, dir string, env []string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	in, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	p.stdin = stdin
	if ns != "" { // `ip netns exec` becomes the program, so the process id is its own
		args = append([]string{"ip", "netns", "exec", ns}, args...)
	}
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = in, log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		stdin.Close()
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// peakMemory is the most memory it had resident so far, in bytes.
func (p *process) peakMemory() int64 { return p.memory("VmHWM:") }

// memory is a line of /proc/PID/status in bytes.
func (p *process) memory(name string) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name); ok {
			kib, _ := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// waitFor waits until the log has a line that contains text.
func (p *process) waitFor(ctx context.Context, text string) error {
	return until(ctx, fmt.Sprintf("%s to say %q", p.name, text), func() (bool, error) {
		log, err := os.ReadFile(p.log)
		if err != nil || strings.Contains(string(log), text) {
			return true, err
		}
		return false, p.alive()
	})
}

// answer waits for a line that begins with prefix and returns the rest of it.
func (p *process) answer(ctx context.Context, prefix string) (rest string, err error) {
	err = until(ctx, fmt.Sprintf("%s to say %q", p.name, prefix), func() (bool, error) {
		log, err := os.ReadFile(p.log)
		if err != nil {
			return false, err
		}
		for line := range strings.Lines(string(log)) {
			if text, ok := strings.CutPrefix(line, prefix); ok && strings.HasSuffix(text, "\n") {
				rest = strings.TrimSpace(text)
				return true, nil
			}
		}
		return false, p.alive()
	})
	return rest, err
}

// metric reads a number without labels from a Prometheus page.
func metric(ctx context.Context, url, name string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(io.LimitReader(resp.Body, 16*mib))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(page)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return int64(n), err
		}
	}
	return 0, fmt.Errorf("%s has no %s", url, name)
}

// alive is an error once the process has ended.
func (p *process) alive() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s has ended (%w), see %s", p.name, p.err, p.log)
	default:
		return nil
	}
}

// stopTimeout is how long a process may take to end politely.
const stopTimeout = 15 * time.Second

func (p *process) stop() {
	p.stdin.Close()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// stopAll stops processes side by side.
func stopAll(processes []*process) {
	for _, p := range processes {
		go p.stop()
	}
	for _, p := range processes {
		<-p.ended
	}
}

// pollInterval is how often a condition is looked at.
const pollInterval = 25 * time.Millisecond

// until waits for a condition to hold or to fail.
func until(ctx context.Context, what string, holds func() (bool, error)) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		if done, err := holds(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}
