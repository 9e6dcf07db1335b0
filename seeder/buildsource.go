package seeder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/answers"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/web"
	"github.com/landfall-dist/landfall/internal/wholefile"
)

const (
	// DefaultMaxFetch is the longest build taken from a build source, in bytes.
	DefaultMaxFetch = 20 << 30
	// fetchTimeout bounds the fetch of a build: DefaultMaxFetch at 1 MB/s.
	fetchTimeout = 6 * time.Hour
)

// fetched is a build on its way from a build source.
type fetched struct {
	io.ReadCloser
	size    int64 // bytes; -1 where the source does not say
	headers bucket.Headers
}

// buildSource is where POST /builds finds builds by commit.
type buildSource interface {
	// open begins to read the build of a commit. Its errors, and those of the body,
	// carry a status and name no secret.
	open(ctx context.Context, commit string) (*fetched, error)
}

// CheckBuildSource reports what is wrong with a URL for Config.BuildSource, and repeats
// none of it: it may carry a token.
func CheckBuildSource(address string) error {
	_, err := newBuildSource(address)
	return err
}

// newBuildSource is nil for an empty address.
func newBuildSource(address string) (buildSource, error) {
	if address == "" {
		return nil, nil
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("build source: %w", withoutURL(err))
	}
	switch u.Scheme {
	case "http", "https":
		if u.Host == "" || u.Fragment != "" {
			return nil, errors.New("build source: expected a URL such as https://builds.example.com/by-commit")
		}
		return &webSource{u, buildClient()}, nil
	case "file":
		if u.Host != "" && u.Host != "localhost" || !filepath.IsAbs(u.Path) || u.RawQuery != "" || u.Fragment != "" {
			return nil, errors.New("build source: expected file:///DIRECTORY")
		}
		return directorySource(u.Path), nil
	}
	return nil, errors.New("build source: expected http, https or file")
}

// withoutURL keeps credentials in a build source's URL out of answers and logs.
func withoutURL(err error) error {
	for e := (*url.Error)(nil); errors.As(err, &e); {
		err = e.Err
	}
	return err
}

// webSource is a web server.
type webSource struct {
	base   *url.URL
	client answers.Client
}

// buildClient goes nowhere but where it is sent, and takes bytes as they are: what a
// build source, or who sits on its wire, redirects to or packs is not fetched.
func buildClient() answers.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true
	return answers.Builds(&http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	})
}

func (s *webSource) open(ctx context.Context, commit string) (*fetched, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base.JoinPath(commit).String(), nil)
	if err != nil {
		return nil, badSource(withoutURL(err))
	}
	req.Header.Set("Accept-Encoding", "identity")
	res, err := s.client.Do(req)
	if err != nil {
		return nil, badSource(withoutURL(err))
	}
	switch {
	case res.StatusCode == http.StatusOK:
		return &fetched{sourceBody{res.Body}, res.ContentLength, bucket.Headers{
			ContentType:     res.Header.Get("Content-Type"),
			ContentEncoding: strings.Join(res.Header.Values("Content-Encoding"), ", "),
		}}, nil
	case res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusGone:
		err = noBuild(commit)
	case res.StatusCode/100 == 3:
		err = badSource(fmt.Errorf("it answered %s for %s, and redirects are not followed: start the seeder with the --build-source that it leads to", res.Status, commit))
	default:
		err = badSource(fmt.Errorf("it answered %s for %s", res.Status, commit))
	}
	res.Body.Close()
	return nil, err
}

func noBuild(commit string) error {
	return web.Errorf(http.StatusNotFound, "the build source has no build of %s", commit)
}

func badSource(err error) error {
	return &web.Error{Code: http.StatusBadGateway, Err: fmt.Errorf("build source: %w", err)}
}

// sourceBody has errors of reading be those of the source.
type sourceBody struct{ io.ReadCloser }

func (b sourceBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = badSource(err)
	}
	return n, err
}

// directorySource is a directory with a file for each commit. No link leads out of it.
type directorySource string

func (dir directorySource) open(_ context.Context, commit string) (*fetched, error) {
	root, err := os.OpenRoot(string(dir))
	if err != nil {
		return nil, badSource(err)
	}
	f, err := wholefile.OpenIn(root, commit)
	if err != nil {
		root.Close()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, noBuild(commit)
		}
		return nil, badSource(err)
	}
	return &fetched{sourceBody{rooted{f, root}}, f.Size(), bucket.Headers{}}, nil
}

// rooted is a file and its directory.
type rooted struct {
	*wholefile.File
	root *os.Root
}

func (r rooted) Close() error { return errors.Join(r.File.Close(), r.root.Close()) }

// atMost is a body that must end within so many bytes.
type atMost struct {
	io.Reader
	left int64
	err  error // beyond them
}

func (r *atMost) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if r.left -= int64(n); r.left < 0 {
		return 0, r.err
	}
	return n, err
}
