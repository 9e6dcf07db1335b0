package operator

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/fresh"
)

// rereadInterval is how often it is seen whether the files have changed: one that was
// removed is let in for that long, and a second.
const rereadInterval = 2 * time.Second

// Why nobody is known by a token.
var (
	ErrMissing = errors.New("the operator token is missing")
	ErrWrong   = errors.New("the operator token is wrong")
	ErrExpired = errors.New("the operator token has expired")
)

// TokenName is who has the token of --operator-token: every role, and no name of its own.
const TokenName = "operator-token"

// Files are where it stands who may command. Each may be empty.
type Files struct {
	// Token has the token of all roles, List the named operators.
	Token, List string
	// ClientCA has the authorities by whose certificates operators of the list may show
	// who they are, in PEM.
	ClientCA string
}

// Access knows who is who by tokens and certificates: that of --operator-token, and those
// of a list. All files are read again when they change. A nil Access asks for none.
type Access struct {
	token    *fresh.Value[Token] // nil for none
	list     *fresh.Value[known] // nil for none
	clientCA *fresh.Value[*x509.CertPool]
}

// known are the operators of a list.
type known struct {
	byToken, byFingerprint map[[sha256.Size]byte]Operator
	byURI                  map[string]Operator
}

func (k known) count() int { return len(k.byToken) + len(k.byFingerprint) + len(k.byURI) }

// Open reads the files that are named. It is nil where none says who may command.
func Open(files Files) (*Access, error) {
	if files.Token == "" {
		return open("", files)
	}
	token, err := fresh.Open(func() (Token, error) { return ReadToken(files.Token) }, files.Token)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = ReadToken(files.Token) // which says how to make one
	}
	if err != nil {
		return nil, err
	}
	a, err := open(token.Load(), files)
	if err == nil {
		a.token = token
	}
	return a, err
}

// NewAccess is Open with a token that is not a file's.
func NewAccess(token Token, list string) (*Access, error) { return open(token, Files{List: list}) }

func open(token Token, files Files) (*Access, error) {
	if token == "" && files.List == "" {
		return nil, nil
	}
	a := &Access{}
	var err error
	if token != "" {
		a.token = fresh.Of(token)
	}
	if files.List != "" {
		a.list, err = fresh.Open(func() (known, error) { return readKnown(files.List) }, files.List)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("operators: %w (`seeder operator add` makes the file)", err)
	}
	if err == nil && files.ClientCA != "" {
		a.clientCA, err = fresh.Open(func() (*x509.CertPool, error) { return readAuthorities(files.ClientCA) }, files.ClientCA)
	}
	if err != nil {
		return nil, err
	}
	return a, nil
}

func readKnown(file string) (known, error) {
	k := known{make(map[[sha256.Size]byte]Operator), make(map[[sha256.Size]byte]Operator), make(map[string]Operator)}
	list, err := ReadList(file)
	for _, o := range list {
		switch o.by {
		case byToken:
			k.byToken[o.hash] = o
		case byFingerprint:
			k.byFingerprint[o.hash] = o
		case byURI:
			k.byURI[o.uri] = o
		}
	}
	return k, err
}

// Run reads the files again whenever they have changed, until ctx ends. One that cannot be
// read changes nothing, and is said once.
func (a *Access) Run(ctx context.Context, logger *slog.Logger) error {
	if a != nil {
		a.run(ctx, logger, rereadInterval)
	}
	return nil
}

func (a *Access) run(ctx context.Context, logger *slog.Logger, interval time.Duration) {
	var wg sync.WaitGroup
	wg.Go(func() {
		a.token.Watch(ctx, interval, func(Token) { logger.Info("operator token changed") },
			func(err error) { logger.Error("operator token not read again, that of before holds", "error", err) })
	})
	wg.Go(func() {
		a.list.Watch(ctx, interval, func(k known) { logger.Info("operators changed", "operators", k.count()) },
			func(err error) { logger.Error("operators not read again, those of before hold", "error", err) })
	})
	wg.Go(func() {
		a.clientCA.Watch(ctx, interval, func(*x509.CertPool) { logger.Info("authorities of client certificates changed") },
			func(err error) {
				logger.Error("authorities of client certificates not read again, those of before hold", "error", err)
			})
	})
	wg.Wait()
}

// Who is the operator of a token. The error is ErrMissing, ErrWrong, or wraps ErrExpired
// beside the operator that it was.
func (a *Access) Who(given string, now time.Time) (Operator, error) {
	switch {
	case given == "":
		return Operator{}, ErrMissing
	case len(given) > maxToken:
		return Operator{}, ErrWrong
	case a.token != nil && a.token.Load().Is(given):
		return Operator{Name: TokenName, Role: Admin}, nil
	case a.list == nil:
		return Operator{}, ErrWrong
	}
	// A hash tells nothing of the token, nor does the time to look for one.
	o, ok := a.list.Load().byToken[sha256.Sum256([]byte(given))]
	switch {
	case !ok:
		return Operator{}, ErrWrong
	case o.Expired(now):
		return o, fmt.Errorf("%w: that of %s on %s", ErrExpired, o.Name, o.Expires.UTC().Format(time.RFC3339))
	}
	return o, nil
}
