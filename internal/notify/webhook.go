package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// ParseWebhook reads the URL of a webhook. Its error does not repeat the URL,
// which may carry a token.
func ParseWebhook(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return nil, errors.New("expected an http or https URL, such as https://example.com/hook")
	}
	return u, nil
}

// webhook takes notices as POST requests.
type webhook struct {
	url    *url.URL
	client *http.Client
}

func newWebhook(u *url.URL) *webhook {
	return &webhook{u, &http.Client{
		Transport: http.DefaultTransport.(*http.Transport).Clone(),
		// Whoever the receiver points at was not chosen by the operator; and
		// most redirects turn a POST into a GET, which tells nobody anything.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// name is scheme and host: user, path and query may carry a token.
func (w *webhook) name() string { return w.url.Scheme + "://" + w.url.Host }

func (w *webhook) close() { w.client.CloseIdleConnections() }

// send posts the notice. Any status but 2xx is a refusal.
func (w *webhook) send(ctx context.Context, m *message) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url.String(), bytes.NewReader(m.body))
	if err != nil {
		return bare(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := w.client.Do(req)
	if err != nil {
		return bare(err)
	}
	res.Body.Close() // what it says is not looked at: it may repeat the URL
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return refused{error: fmt.Errorf("answered %d %s", res.StatusCode, http.StatusText(res.StatusCode)), code: res.StatusCode}
	}
	return nil
}

// bare takes the URL off an error of net/http.
func bare(err error) error {
	var e *url.Error
	for errors.As(err, &e) {
		err = e.Err
	}
	return err
}
