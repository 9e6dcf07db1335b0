//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/landfall-dist/landfall/internal/command"
)

const (
	delayReady = "delaying"
	// frame is the longest that passes: 64 KiB of one segmentation offload,
	// with the headers before it.
	frame = 65536 + 128
	// inFlight bounds the frames on their way in one direction of one link.
	inFlight = 1 << 15
	// Send buffers of the packet sockets: the token bucket behind them is to
	// drop, not they.
	sendBuffer = 16 << 20
)

// delayCommand is latency for kernels without netem: each frame that a member
// sends is held for a while before it reaches the bridge.
func delayCommand() *cli.Command {
	return &cli.Command{
		Name:   "delay",
		Usage:  "hold every frame between a link and the bridge (used by wan)",
		Hidden: true,
		Flags:  []cli.Flag{command.Duration("latency", 40*time.Millisecond, "`TIME` each way")},
		Action: func(c *cli.Context) error {
			group, ctx := errgroup.WithContext(c.Context)
			for _, arg := range c.Args().Slice() {
				port, tap, _ := strings.Cut(arg, ",")
				if err := delayLink(ctx, group, port, tap, c.Duration("latency")); err != nil {
					return fmt.Errorf("%s: %w", arg, err)
				}
			}
			fmt.Println(delayReady)
			return group.Wait()
		},
	}
}

// delayLink passes frames between a port and a tap device that it puts into the
// bridge: those from the port late, those to it at once. Frames carry a
// virtio_net_hdr, so that segmentation and checksums stay offloaded.
func delayLink(ctx context.Context, group *errgroup.Group, port, tapName string, latency time.Duration) error {
	device, err := net.InterfaceByName(port)
	if err != nil {
		return err
	}
	link, err := openPacket(device.Index)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	tap, err := openTap(tapName)
	if err != nil {
		return fmt.Errorf("tap device: %w", err)
	}
	for _, args := range [][]string{
		{"ip", "link", "set", tapName, "master", "br0"},
		{"ip", "link", "set", tapName, "up"},
	} {
		if err := run(args...); err != nil {
			return err
		}
	}
	buffers := sync.Pool{New: func() any { return new([frame]byte) }}
	type held struct {
		buf *[frame]byte
		n   int
		due time.Time
	}
	queue := make(chan held, inFlight)
	group.Go(func() error {
		defer close(queue)
		for {
			buf := buffers.Get().(*[frame]byte)
			n, err := link.Read(buf[:])
			if err != nil {
				return ended(ctx, err)
			}
			queue <- held{buf, n, time.Now().Add(latency)}
		}
	})
	group.Go(func() error {
		for h := range queue {
			time.Sleep(time.Until(h.due))
			// A frame that the bridge does not take is lost, as frames are.
			_, _ = tap.Write(h.buf[:h.n])
			buffers.Put(h.buf)
		}
		return nil
	})
	group.Go(func() error {
		buf := new([frame]byte)
		for {
			n, err := tap.Read(buf[:])
			if err != nil {
				return ended(ctx, err)
			}
			_, _ = link.Write(buf[:n]) // the token bucket drops: lost
		}
	})
	context.AfterFunc(ctx, func() { link.Close(); tap.Close() })
	return nil
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func openPacket(index int) (*os.File, error) {
	protocol := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1},
		{unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
		{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer},
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sendBuffer},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packet"), nil
}

func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return nil, err
	}
	const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
		unix.Close(fd)
		return nil, err
	}
	runtime.KeepAlive(request)
	return os.NewFile(uintptr(fd), "tap"), nil
}
