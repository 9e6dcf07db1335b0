//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/landfall-dist/landfall/internal/command"
)

const (
	switchReady = "switching"
	// frameBytes is the longest frame: 64 KiB of one segmentation offload, with
	// the headers before it.
	frameBytes = 65536 + 128
	// vnetHeader is the virtio_net_hdr before each frame: segmentation and
	// checksums stay offloaded. gsoSize is where it has the bytes of a segment.
	vnetHeader, gsoSize = 10, 4
	// segmentHeaders are repeated for each segment: Ethernet, IPv4, TCP with
	// timestamps.
	segmentHeaders = 66
	// turn is how often the switch looks: it is the error of the latency, and
	// a wake-up for each frame would cost most of a core.
	turn = 500 * time.Microsecond
	// readsPerTurn bounds what is taken from one port before the others.
	readsPerTurn = 256
)

// switchCommand joins the members. It is latency for kernels without netem: each
// frame is held for a while on its way. (A bridge and a second token bucket would
// do where there is none, at a quarter more CPU.)
func switchCommand() *cli.Command {
	return &cli.Command{
		Name:      "switch",
		Usage:     "join tap devices by a switch with latency and rates (used by wan)",
		ArgsUsage: "RATE…",
		Hidden:    true,
		Flags:     []cli.Flag{command.Duration("latency", 40*time.Millisecond, "`TIME` each way")},
		Action: func(c *cli.Context) error {
			s := &tapSwitch{latency: c.Duration("latency"), addresses: make(map[macAddress]*tapPort)}
			defer s.close()
			for i, arg := range c.Args().Slice() {
				rate, err := strconv.ParseInt(arg, 10, 64)
				if err != nil {
					return err
				}
				fd, err := openTap(tapName(i))
				if err != nil {
					return fmt.Errorf("tap device %s: %w", tapName(i), err)
				}
				s.ports = append(s.ports, &tapPort{fd: fd, rate: rate})
			}
			fmt.Println(switchReady)
			return s.run(c.Context)
		},
	}
}

// tapName is the device of a member before it is moved there.
func tapName(index int) string { return fmt.Sprintf("t%d", index) }

type macAddress [6]byte

// tapSwitch is an Ethernet switch with latency, and with a rate for what it sends
// to each port: as much is queued as before the senders' token buckets, then drops.
type tapSwitch struct {
	latency   time.Duration
	ports     []*tapPort
	addresses map[macAddress]*tapPort
	free      [][]byte
}

type tapPort struct {
	fd     int
	rate   int64 // bits/s
	frames []heldFrame
	first  int       // of frames that is not sent yet
	busy   time.Time // until when the frames in the queue occupy the link
}

type heldFrame struct {
	buf []byte
	due time.Time
}

func (s *tapSwitch) run(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for ctx.Err() == nil {
		for _, p := range s.ports {
			if err := s.read(p); err != nil {
				return err
			}
		}
		now := time.Now()
		for _, p := range s.ports {
			s.write(p, now)
		}
		time.Sleep(turn)
	}
	return nil
}

// read takes what a member has sent.
func (s *tapSwitch) read(from *tapPort) error {
	for range readsPerTurn {
		buf := s.buffer()
		n, err := unix.Read(from.fd, buf)
		if err != nil || n < vnetHeader+14 {
			s.free = append(s.free, buf)
			// EIO: the device is not up yet, or its namespace is gone.
			if err == nil || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.EIO) {
				return nil
			}
			return fmt.Errorf("reading a tap device: %w", err)
		}
		now := time.Now()
		to, source := macAddress(buf[vnetHeader:]), macAddress(buf[vnetHeader+6:])
		s.addresses[source] = from
		if port, ok := s.addresses[to]; ok {
			s.hold(port, buf[:n], now)
			continue
		}
		for _, port := range s.ports { // broadcast, or not learned yet
			if port != from {
				s.hold(port, append(s.buffer()[:0], buf[:n]...), now)
			}
		}
		s.free = append(s.free, buf)
	}
	return nil
}

// hold puts a frame into the queue of its port, or drops it when that is full.
func (s *tapSwitch) hold(to *tapPort, frame []byte, now time.Time) {
	arrived := now.Add(s.latency)
	if to.busy.Before(arrived) {
		to.busy = arrived
	}
	if to.busy.Sub(arrived) > queue {
		s.free = append(s.free, frame[:frameBytes])
		return
	}
	to.busy = to.busy.Add(time.Duration(8 * wireBytes(frame) * int64(time.Second) / to.rate))
	to.frames = append(to.frames, heldFrame{frame, to.busy})
}

// wireBytes is a frame's length on the wire, with the headers of each of its
// segments, as tc counts.
func wireBytes(frame []byte) int64 {
	n := int64(len(frame) - vnetHeader)
	if size := int64(binary.NativeEndian.Uint16(frame[gsoSize:])); size > 0 {
		n += (n - segmentHeaders - 1) / size * segmentHeaders
	}
	return n
}

// write sends what is due.
func (s *tapSwitch) write(p *tapPort, now time.Time) {
	for ; p.first < len(p.frames) && !p.frames[p.first].due.After(now); p.first++ {
		// What the device does not take is lost, as frames are.
		_, _ = unix.Write(p.fd, p.frames[p.first].buf)
		s.free = append(s.free, p.frames[p.first].buf[:frameBytes])
	}
	switch {
	case p.first == len(p.frames):
		p.frames, p.first = p.frames[:0], 0
	case p.first > 1024:
		p.frames, p.first = append(p.frames[:0], p.frames[p.first:]...), 0
	}
}

func (s *tapSwitch) buffer() []byte {
	if n := len(s.free); n > 0 {
		buf := s.free[n-1]
		s.free = s.free[:n-1]
		return buf
	}
	return make([]byte, frameBytes)
}

func (s *tapSwitch) close() {
	for _, p := range s.ports {
		_ = unix.Close(p.fd) // the end of the device
	}
}

func openTap(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return 0, err
	}
	const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}
