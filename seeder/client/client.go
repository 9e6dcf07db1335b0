// Package client is how Go programs speak to a seeder over HTTP: they publish builds,
// follow them, cancel them and send them again. docs/openapi.yaml describes the calls.
// The commands of `seeder` and `agent` use it themselves.
//
// Every call ends with its context. An answer that is not a success is a *StatusError.
// Answers keep what they have from version to version, and may get more fields.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
)

// maxAnswer bounds a JSON answer in bytes.
const maxAnswer = 64 << 20

// Client speaks to a seeder, or with Healthy, Ready, AgentStatus, Limits and SetLimits to
// an agent. It may be used by several goroutines at once.
type Client struct {
	// URL is the base, such as http://127.0.0.1:7070.
	URL string
	// Token is an operator's token, for the calls that change something, and for others
	// where the daemon asks for one; empty where it wants none.
	Token string
	// HTTP may be nil for http.DefaultClient; TLS makes one for https by certificates of
	// one's own. A Transport of one's own should set
	// ExpectContinueTimeout, as the default one does: without it an upload that is
	// refused may end as a broken connection.
	HTTP *http.Client

	readingClosed atomic.Bool // the daemon has asked for the token of who only reads
}

// NotFound reports whether err is a 404.
func NotFound(err error) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Code == http.StatusNotFound
}

// Deploy asks for an execution, which goes on by itself.
func (c *Client) Deploy(ctx context.Context, r DeployRequest) (*DeployAnswer, error) {
	return call[DeployAnswer](ctx, c, http.MethodPost, "/deploy", r)
}

// Build asks the seeder to fetch what was built of a commit, and to distribute it.
func (c *Client) Build(ctx context.Context, commit string) (*BuildAnswer, error) {
	return c.BuildFor(ctx, BuildRequest{Commit: commit})
}

// BuildFor is Build with all that a request can say, such as the priority.
func (c *Client) BuildFor(ctx context.Context, r BuildRequest) (*BuildAnswer, error) {
	return call[BuildAnswer](ctx, c, http.MethodPost, "/builds", r)
}

// Upload streams size bytes into the global bucket under key; size is -1 where nobody
// knows it. Nothing is read from body before the seeder has agreed, or 1 s after it was
// asked. The build is not sent anywhere before Deploy asks for that, or, for a key that
// the seeder watches for, before half a minute has passed.
func (c *Client) Upload(ctx context.Context, key string, body io.Reader, size int64, contentType string) (*UploadAnswer, error) {
	return c.UploadFor(ctx, DeployRequest{SourceKey: key}, body, size, contentType)
}

// UploadFor is Upload under the SourceKey of a request that Deploy is going to make: what
// would be refused of its destinations then is refused before anything is read.
func (c *Client) UploadFor(ctx context.Context, r DeployRequest, body io.Reader, size int64, contentType string) (*UploadAnswer, error) {
	address := c.URL + "/uploads/" + escapeKey(r.SourceKey)
	q := make(url.Values)
	if len(r.DestinationBuckets) > 0 {
		q["destination"] = r.DestinationBuckets
		if r.Force {
			q.Set("force", "true")
		}
	}
	if r.Priority != "" {
		q.Set("priority", r.Priority)
	}
	if len(q) > 0 {
		address += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, address, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	if size == 0 {
		req.Body = http.NoBody // an unset length would mean chunks
	}
	req.Header.Set("Content-Type", contentType)
	if size != 0 {
		// A seeder that refuses says so before gigabytes have gone, and is heard.
		req.Header.Set("Expect", "100-continue")
	}
	return do[UploadAnswer](c, req)
}

// escapeKey keeps slashes, and escapes dots that stand alone, which clients and
// servers would resolve as path segments.
func escapeKey(key string) string {
	parts := strings.Split(key, "/")
	for i, p := range parts {
		if p == "." || p == ".." {
			parts[i] = strings.ReplaceAll(p, ".", "%2E")
			continue
		}
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// Executions lists executions, newest first; after is empty for the first page,
// limit 0 for the server's own.
func (c *Client) Executions(ctx context.Context, limit int, after string) (*Executions, error) {
	q := url.Values{}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	if after != "" {
		q.Set("after", after)
	}
	return call[Executions](ctx, c, http.MethodGet, "/executions?"+q.Encode(), nil)
}

// ErrNoExecution is ByKey's answer for a key that was never distributed.
var ErrNoExecution = errors.New("no execution")

// ByKey returns the newest execution of a key, or ErrNoExecution.
func (c *Client) ByKey(ctx context.Context, key string) (*Execution, error) {
	q := url.Values{"key": {key}, "limit": {"1"}}
	page, err := call[Executions](ctx, c, http.MethodGet, "/executions?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	if len(page.Executions) == 0 {
		return nil, fmt.Errorf("%w of %q: `seeder list` shows what there is", ErrNoExecution, key)
	}
	return &page.Executions[0], nil
}

// Execution returns one execution; a *StatusError of 410 for one that was superseded
// names its successor.
func (c *Client) Execution(ctx context.Context, id string) (*Execution, error) {
	return call[Execution](ctx, c, http.MethodGet, "/executions/"+url.PathEscape(id), nil)
}

// Cancel stops an execution: its unfinished destinations are failed.
func (c *Client) Cancel(ctx context.Context, id string) (*Execution, error) {
	return call[Execution](ctx, c, http.MethodPost, "/executions/"+url.PathEscape(id)+"/cancel", struct{}{})
}

// Retry sends the unfinished destinations of an execution again.
func (c *Client) Retry(ctx context.Context, id string) (*Execution, error) {
	return call[Execution](ctx, c, http.MethodPost, "/executions/"+url.PathEscape(id)+"/retry", struct{}{})
}

// Swarm returns who has what of an execution's build, and from whom.
func (c *Client) Swarm(ctx context.Context, id string) (*SwarmView, error) {
	return call[SwarmView](ctx, c, http.MethodGet, "/executions/"+url.PathEscape(id)+"/swarm", nil)
}

// AgentStatus returns an agent's status.
func (c *Client) AgentStatus(ctx context.Context) (*AgentStatus, error) {
	return call[AgentStatus](ctx, c, http.MethodGet, "/status", nil)
}

// Limits returns how fast bytes may pass at a seeder or an agent.
func (c *Client) Limits(ctx context.Context) (*Limits, error) {
	return call[Limits](ctx, c, http.MethodGet, "/limits", nil)
}

// SetLimits changes the limits of a seeder or an agent that the change names, and returns
// those that hold then.
func (c *Client) SetLimits(ctx context.Context, change LimitsChange) (*Limits, error) {
	return call[Limits](ctx, c, http.MethodPost, "/limits", change)
}

// Audit returns the newest requests that were to change something, the last first; limit 0
// for the server's own. It takes the token of an admin.
func (c *Client) Audit(ctx context.Context, limit int) (*Changes, error) {
	q := url.Values{}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	return call[Changes](ctx, c, http.MethodGet, "/audit?"+q.Encode(), nil)
}

// Healthy asks for /healthz.
func (c *Client) Healthy(ctx context.Context) error { return c.ping(ctx, "/healthz") }

// Ready asks for /readyz; the error says what is missing.
func (c *Client) Ready(ctx context.Context) error { return c.ping(ctx, "/readyz") }

// ping expects a success and no particular body.
func (c *Client) ping(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+path, nil)
	if err != nil {
		return err
	}
	res, err := c.send(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

func call[T any](ctx context.Context, c *Client, method, path string, body any) (*T, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return do[T](c, req)
}

func do[T any](c *Client, req *http.Request) (*T, error) {
	res, err := c.send(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	out := new(T)
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(out); err != nil {
		return nil, fmt.Errorf("%s %s: answer is not the JSON expected: %w", req.Method, req.URL, err)
	}
	return out, nil
}

// send returns a success; any other answer is a *StatusError. The caller closes
// the body.
func (c *Client) send(req *http.Request) (*http.Response, error) {
	if c.Token != "" && (req.Method != http.MethodGet || c.readingClosed.Load()) {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	refused := res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden // as whose certificate it is
	if refused && c.Token != "" && req.Header.Get("Authorization") == "" {
		res.Body.Close()
		c.readingClosed.Store(true)
		return c.send(req) // which has no body
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	e := &StatusError{Code: res.StatusCode}
	if json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&e.Body) != nil || e.Body.Error == "" {
		e.Body.Error = fmt.Sprintf("%s %s: %s", req.Method, req.URL, res.Status)
	}
	return nil, e
}
