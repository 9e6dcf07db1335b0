package operator

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// rereadInterval is how often it is seen whether the file has changed: one that was
// removed is let in for that long.
const rereadInterval = 2 * time.Second

// Why nobody is known by a token.
var (
	ErrMissing = errors.New("the operator token is missing")
	ErrWrong   = errors.New("the operator token is wrong")
	ErrExpired = errors.New("the operator token has expired")
)

// TokenName is who has the token of --operator-token: every role, and no name of its own.
const TokenName = "operator-token"

// Access knows who is who by the tokens: the one of --operator-token, and those of a file
// that is read again when it changes. A nil Access asks for none.
type Access struct {
	token Token // empty for none
	file  string
	list  atomic.Pointer[map[[sha256.Size]byte]Operator]
	read  os.FileInfo // of Run, as the file was read last
}

// NewAccess reads the file, where one is named. Nil where there is neither a token nor a
// file.
func NewAccess(token Token, file string) (*Access, error) {
	if token == "" && file == "" {
		return nil, nil
	}
	a := &Access{token: token, file: file}
	a.list.Store(&map[[sha256.Size]byte]Operator{})
	if file == "" {
		return a, nil
	}
	return a, a.reread()
}

// reread takes the operators as the file has them now.
func (a *Access) reread() error {
	info, err := os.Stat(a.file) // before: what changes meanwhile is read once more
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("operators: %w (`seeder operator add` makes the file)", err)
	}
	if err != nil {
		return fmt.Errorf("operators: %w", err)
	}
	list, err := ReadList(a.file)
	if err != nil {
		return err
	}
	byHash := make(map[[sha256.Size]byte]Operator, len(list))
	for _, o := range list {
		byHash[o.hash] = o
	}
	a.list.Store(&byHash)
	a.read = info
	return nil
}

// Run reads the file again whenever it has changed, until ctx ends. One that cannot be
// read changes nothing, and is said once.
func (a *Access) Run(ctx context.Context, logger *slog.Logger) error {
	if a == nil || a.file == "" {
		return nil
	}
	ticker := time.NewTicker(rereadInterval)
	defer ticker.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		info, err := os.Stat(a.file)
		if err == nil && os.SameFile(info, a.read) && info.ModTime().Equal(a.read.ModTime()) && info.Size() == a.read.Size() && info.Mode() == a.read.Mode() {
			continue
		}
		if err = a.reread(); err == nil {
			said = ""
			logger.Info("operators changed", "file", a.file, "operators", len(*a.list.Load()))
		} else if err.Error() != said {
			said = err.Error()
			logger.Error("operators not read again, those of before hold", "error", err)
		}
	}
}

// Who is the operator of a token. The error is ErrMissing, ErrWrong, or wraps ErrExpired
// beside the operator that it was.
func (a *Access) Who(given string, now time.Time) (Operator, error) {
	switch {
	case given == "":
		return Operator{}, ErrMissing
	case len(given) > maxToken:
		return Operator{}, ErrWrong
	case a.token.Is(given):
		return Operator{Name: TokenName, Role: Admin}, nil
	}
	// A hash tells nothing of the token, nor does the time to look for one.
	o, ok := (*a.list.Load())[sha256.Sum256([]byte(given))]
	switch {
	case !ok:
		return Operator{}, ErrWrong
	case o.Expired(now):
		return o, fmt.Errorf("%w: that of %s on %s", ErrExpired, o.Name, o.Expires.UTC().Format(time.RFC3339))
	}
	return o, nil
}
