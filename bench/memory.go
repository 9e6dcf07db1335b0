//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reserve is memory held in readiness. A virtual machine that gives free memory
// back to its host pays for it dearly when it is used again (3 s a GiB were
// seen), and a trial keeps three copies of the file for each member in memory:
// it would be measured more than anything else. What is given out of the reserve
// just before it is needed costs nothing.
type reserve struct {
	memory []byte
	free   int64 // of the machine when the trial began, in bytes
	lead   int64 // given out before it is used, for the pull at the beginning
}

// releaseInterval is how often as much is released as the machine has used.
const releaseInterval = 50 * time.Millisecond

// space is how much a cell's data take, in bytes: three copies of the file for each
// member while it lands, and for the seeder with the global bucket.
func (c cell) space() int64 { return 3 * int64(c.Members+1) * c.size() }

// fits is an error where a directory, or the memory that it is in, has no room for a
// cell's data.
func fits(c cell, dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("looking how much room %s has: %w", dir, err)
	}
	free := int64(fs.Bavail) * fs.Bsize
	if fs.Type == unix.TMPFS_MAGIC {
		available, err := memInfo("MemAvailable")
		if err != nil {
			return err
		}
		free = min(free, available)
	}
	if need := c.space(); need > free {
		return fmt.Errorf("%s has room for %d MiB, %s needs %d: use --dir on a larger disk, or a smaller --rate or --seconds", dir, free/mib, c, need/mib)
	}
	return nil
}

// newReserve takes what a cell will use, at most half of what is available.
func newReserve(c cell) (*reserve, error) {
	available, err := memInfo("MemAvailable")
	if err != nil {
		return nil, err
	}
	size := min(c.space()+(1<<30), available/2)
	memory, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("reserving %d MiB: %w", size/mib, err)
	}
	for i := 0; i < len(memory); i += os.Getpagesize() {
		memory[i] = 1
	}
	free, err := memInfo("MemFree")
	return &reserve{memory, free, c.size() + 256*mib}, err
}

// release gives out memory as it is used, until ctx ends; then the rest.
func (r *reserve) release(ctx context.Context) error {
	ticker := time.NewTicker(releaseInterval)
	defer ticker.Stop()
	page := int64(os.Getpagesize())
	for at := int64(0); ; {
		select {
		case <-ctx.Done():
			return unix.Munmap(r.memory)
		case <-ticker.C:
		}
		free, err := memInfo("MemFree")
		if err != nil {
			return err
		}
		// What was released counts as free again, so this is what has been used
		// beyond it.
		wanted := (r.free + r.lead - free) / page * page
		if n := min(wanted, int64(len(r.memory))-at); n > 0 {
			if err := unix.Madvise(r.memory[at:at+n], unix.MADV_DONTNEED); err != nil {
				return err
			}
			at += n
		}
	}
}

// memInfo reads one line of /proc/meminfo, in bytes.
func memInfo(name string) (int64, error) {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no %s", name)
}
