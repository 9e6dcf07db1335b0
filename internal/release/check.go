package release

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/hook"
	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// checkTry is how long one answer may take, checkInterval the time between two.
	checkTry, checkInterval = 10 * time.Second, time.Second
)

// IsURL reports whether a check is asked over HTTP, and not a command.
func IsURL(check string) bool {
	return strings.HasPrefix(check, "http://") || strings.HasPrefix(check, "https://")
}

// untilHealthy asks the check again and again until it says that the service is healthy,
// or the time is up: once at least. giveUp, which may be nil, ends the wait.
func (s *Service) untilHealthy(ctx context.Context, r record, giveUp <-chan struct{}) (output string, err error) {
	if s.cfg.Check == "" {
		return "", nil
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if giveUp != nil {
		go func() {
			select {
			case <-giveUp:
				stop(ErrGivenUp)
			case <-ctx.Done():
			}
		}()
	}
	for deadline := time.Now().Add(s.cfg.CheckTimeout); ; {
		output, err = s.ask(ctx, r)
		if err == nil {
			return output, nil
		}
		last := time.Now().Add(checkInterval).After(deadline)
		if !last {
			retry.Wait(ctx, checkInterval)
		}
		switch {
		case ctx.Err() != nil:
			return output, context.Cause(ctx)
		case last:
			return output, fmt.Errorf("not healthy in %s: %w", s.cfg.CheckTimeout, err)
		}
	}
}

// Healthy asks the check once, and returns why the service is not healthy.
func (s *Service) Healthy(ctx context.Context) error {
	r := s.record()
	if r.running.ExecutionID == "" {
		return ErrNothing
	}
	if s.cfg.Check == "" {
		return nil
	}
	output, err := s.ask(ctx, r)
	if err != nil && output != "" {
		err = fmt.Errorf("%w: %s", err, output)
	}
	return err
}

// ask asks the check once, and returns the end of what it answered.
func (s *Service) ask(ctx context.Context, r record) (output string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, checkTry, fmt.Errorf("no answer in %s", checkTry))
	defer cancel()
	if IsURL(s.cfg.Check) {
		return get(ctx, s.cfg.Check)
	}
	output, err = hook.Hook{Args: hook.Shell(s.cfg.Check), Dir: s.dir, Env: s.environment(r), Limit: checkTry}.Run(ctx)
	if err != nil {
		err = fmt.Errorf("check: %w", err)
	}
	return output, err
}

// checker asks without a proxy, follows nothing, and keeps no connection to a service that
// may be on its way out.
var checker = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func get(ctx context.Context, url string) (output string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := checker.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		return "", nil
	}
	out := new(hook.Tail)
	_, _ = io.Copy(out, io.LimitReader(resp.Body, hook.MaxOutput)) // for people; the status is the answer
	return out.String(), fmt.Errorf("GET %s: %s", url, resp.Status)
}
