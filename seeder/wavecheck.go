package seeder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/hook"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

const (
	// checkTimeout bounds a wave's check.
	checkTimeout = 30 * time.Second
	// maxCheckAnswer bounds what is read of a URL's answer, in bytes; maxCheckWords what is
	// told of a program's, the end of it.
	maxCheckAnswer, maxCheckWords = 64 << 10, 200
)

// waveChecks is the directory of the programs that a deployment may name as its check;
// empty for none. Who may deploy chooses among them and gives no command: that would be a
// shell at the seeder.
type waveChecks string

// find returns what a check names: a URL, or else a program of the directory.
func (dir waveChecks) find(check string) (u *url.URL, program string, err error) {
	if strings.Contains(check, "://") {
		u, err = url.Parse(check)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, "", errors.New("expected a URL that begins with http:// or https://")
		}
		return u, "", nil
	}
	if dir == "" {
		return nil, "", errors.New("expected a URL that begins with http:// or https://; programs can be named where the seeder runs with --wave-checks DIR")
	}
	if err := hostwire.CheckName(check); err != nil {
		return nil, "", fmt.Errorf("expected a URL, or the name of a program in the seeder's --wave-checks: %w", err)
	}
	program = filepath.Join(string(dir), check)
	info, err := os.Stat(program)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, "", errors.New("the seeder's --wave-checks has no such program")
	case err != nil:
		return nil, "", fmt.Errorf("the seeder's --wave-checks: %w", err)
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
		return nil, "", errors.New("in the seeder's --wave-checks that is no program: chmod +x is missing, or it is a directory")
	}
	return nil, program, nil
}

// ask asks whether a wave of a service may begin: yes is an answer of 200 to 299, or a
// program's exit status of 0.
func (dir waveChecks) ask(ctx context.Context, service string, a deployment.Check) error {
	u, program, err := dir.find(a.Ask)
	switch {
	case err != nil:
	case u != nil:
		q := u.Query()
		q.Set("service", service)
		q.Set("deployment", a.Deployment)
		q.Set("wave", strconv.Itoa(a.Wave))
		u.RawQuery = q.Encode()
		err = askURL(ctx, u)
	default:
		var output string
		output, err = hook.Hook{
			Args: []string{program}, Dir: string(dir), Limit: checkTimeout,
			Env: append(hook.Environment(), "LANDFALL_SERVICE="+service, "LANDFALL_DEPLOYMENT="+a.Deployment, "LANDFALL_WAVE="+strconv.Itoa(a.Wave)),
		}.Run(ctx)
		if err != nil {
			err = fmt.Errorf("%s: %w", a.Ask, err)
			if said := strings.ToValidUTF8(output[max(0, len(output)-maxCheckWords):], ""); said != "" {
				err = fmt.Errorf("%w: %s", err, hostwire.Line(said))
			}
		}
	}
	if err != nil {
		return fmt.Errorf("wave check: %w", err)
	}
	return nil
}

func askURL(ctx context.Context, u *url.URL) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, maxCheckAnswer)); err != nil {
		return err
	}
	if response.StatusCode < 200 || response.StatusCode > 299 {
		return fmt.Errorf("%s answers %s", u.Host, response.Status)
	}
	return nil
}
