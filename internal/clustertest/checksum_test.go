package clustertest

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// Bytes that are damaged on their way from the global bucket land nowhere: the execution
// fails with the reason, and a retry begins another, which reads all of it again.
func TestDamagedOnTheWay(t *testing.T) {
	var damage atomic.Int64 // so many of the GETs to come
	cfg := cloud.AWS.Copy()
	next := cfg.HTTPClient.(*http.Client).Transport
	cfg.HTTPClient = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		answer, err := next.RoundTrip(r)
		if err != nil || r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/build.tar") || damage.Add(-1) < 0 {
			return answer, err
		}
		b, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if len(b) > 0 {
			b[0] ^= 1
		}
		answer.Body = io.NopCloser(bytes.NewReader(b))
		return answer, err
	})}
	c := Start(t, cloud, Options{Regions: 2, AWS: &cfg})
	content := make([]byte, 9<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)

	store(t, c, "build.tar", content, bucket.Headers{})
	c.Await(c.Deploy("build.tar").ExecutionID, "COMPLETED")
	c.Holds("build.tar", content)

	content[0]++
	store(t, c, "build.tar", content, bucket.Headers{})
	damage.Store(1 << 40)
	id := c.Deploy("build.tar").ExecutionID
	fails := func() {
		t.Helper()
		c.Await(id, "FAILED")
		// An agent that still moves is what is shown: the table has the reason.
		for name, result := range c.Record("build.tar").Results {
			for _, part := range []string{"what was read is not what was stored", "build.tar", c.Global, string(bucket.CRC64NVME), "upload the build again"} {
				if !strings.Contains(result.Error, part) {
					t.Errorf("%s failed with %q, without %q", name, result.Error, part)
				}
			}
		}
		content[0]--
		c.Holds("build.tar", content) // still the one before
		content[0]++
	}
	fails()
	// What was announced of the first may not be contradicted: another one is sent.
	again := func() {
		t.Helper()
		if _, err := c.Seeder.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		c.Until("another execution begins", func() bool { return c.Record("build.tar").ExecutionID != id })
		id = c.Record("build.tar").ExecutionID
	}
	damage.Store(1) // once is enough
	again()
	fails()
	again()
	c.Await(id, "COMPLETED")
	c.Holds("build.tar", content)
}
