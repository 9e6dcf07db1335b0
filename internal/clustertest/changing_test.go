package clustertest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
)

// restless has S3 answer with another ETag each time it is asked for one key.
type restless struct {
	next http.RoundTripper
	n    atomic.Int64
}

var (
	restlessEntry = regexp.MustCompile(`<Contents>.*?</Contents>`)
	listedETag    = regexp.MustCompile(`<ETag>[^<]*</ETag>`)
)

func (r *restless) etag() string { return fmt.Sprintf("%q", fmt.Sprintf("%032x", r.n.Add(1))) }

func (r *restless) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := r.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	switch {
	case req.Method == http.MethodHead && strings.HasSuffix(req.URL.Path, "/restless.zip"):
		res.Header.Set("ETag", r.etag())
	case req.URL.Query().Has("list-type"):
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			return nil, err
		}
		body = restlessEntry.ReplaceAllFunc(body, func(entry []byte) []byte {
			if !bytes.Contains(entry, []byte("restless.zip")) {
				return entry
			}
			return listedETag.ReplaceAll(entry, []byte("<ETag>"+r.etag()+"</ETag>"))
		})
		res.ContentLength = int64(len(body))
		res.Header.Del("Content-Length")
		res.Body = io.NopCloser(bytes.NewReader(body))
	}
	return res, nil
}

// An object with another ETag at each look begins executions at growing intervals,
// which is said, not each time, and the others arrive meanwhile. That it is said once is
// for who has a clock of his own (seeder TestChangesBackOff): one that is not looked at for some
// seconds has calmed down.
func TestObjectThatChangesAtEachLook(t *testing.T) {
	log := &lines{}
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: &restless{next: cloud.AWS.HTTPClient.(*http.Client).Transport}}
	c := Start(t, cloud, Options{Regions: 1, AWS: &cfg, Log: log})
	c.Put("restless.zip", []byte("restless"), nil)
	const said = "object changes again and again, its executions begin at growing intervals"
	log.await(c, said)
	content := []byte("calm")
	c.Publish("calm.zip", content)
	c.Holds("calm.zip", content)
	begun := len(log.of("execution accepted"))
	c.Until("one more execution began", func() bool { return len(log.of("execution accepted")) > begun })
	if n, m := len(log.of(said)), len(log.of("execution accepted")); n >= m-1 {
		t.Errorf("said %d times of %d executions", n, m)
	}
}
