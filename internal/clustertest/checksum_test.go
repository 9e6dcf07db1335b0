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

// Bytes that are damaged on their way from the global bucket land nowhere: what is
// damaged once is read again, what stays so fails with the reason, and lands by a retry
// after it was mended.
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

	damage.Store(1)
	store(t, c, "build.tar", content, bucket.Headers{})
	c.Await(c.Deploy("build.tar").ExecutionID, "COMPLETED")
	c.Holds("build.tar", content)

	content[0]++
	damage.Store(1 << 40)
	store(t, c, "build.tar", content, bucket.Headers{})
	id := c.Deploy("build.tar").ExecutionID
	for _, d := range c.Await(id, "FAILED").Destinations {
		for _, part := range []string{"what was read is not what was stored", "build.tar", c.Global, string(bucket.CRC64NVME), "upload the build again"} {
			if !strings.Contains(d.Error, part) {
				t.Errorf("%s failed with %q, without %q", d.Bucket, d.Error, part)
			}
		}
	}
	content[0]--
	c.Holds("build.tar", content) // still the one before
	content[0]++
	damage.Store(0)
	if _, err := c.Seeder.Retry(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	c.Await(id, "COMPLETED")
	c.Holds("build.tar", content)
}
