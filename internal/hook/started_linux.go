package hook

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// startOf says when a process was started, in the kernel's ticks since the boot, and
// since which one; os.ErrProcessDone for one that has ended.
func startOf(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return "", os.ErrProcessDone
	}
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	// The name, which may hold anything, is the second field and in brackets; the third is
	// the state, the 22nd the start.
	end := strings.LastIndexByte(string(stat), ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat is not as expected", pid)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return "", os.ErrProcessDone
	}
	return fields[19] + "@" + strings.TrimSpace(string(boot)), nil
}
