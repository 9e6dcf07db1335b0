package hook

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// zombie is the state of a process that has ended and was not waited for (SZOMB).
const zombie = 5

// startOf says when a process was started; os.ErrProcessDone for one that has ended.
func startOf(pid int) (string, error) {
	p, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EIO) || err == nil && (p.Proc.P_pid != int32(pid) || p.Proc.P_stat == zombie) {
		return "", os.ErrProcessDone // without such a process the answer is empty, which is EIO
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d.%06d", p.Proc.P_starttime.Sec, p.Proc.P_starttime.Usec), nil
}
