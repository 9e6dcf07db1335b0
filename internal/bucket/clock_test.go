package bucket

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
)

// TestOpenWithAClockThatIsOff: S3 answers a HEAD of another time with 403, without a code by
// which the SDK would know why. It is asked again by its own time, and so is all that follows.
func TestOpenWithAClockThatIsOff(t *testing.T) {
	for name, off := range map[string]time.Duration{"an hour ahead": -time.Hour, "an hour behind": time.Hour} {
		t.Run(name, func(t *testing.T) {
			asked, refused := 0, 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked++
				now := time.Now().Add(off)
				w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
				if at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date")); err != nil || now.Sub(at).Abs() > 15*time.Minute {
					refused++
					w.WriteHeader(http.StatusForbidden)
				}
			}))
			defer server.Close()
			cfg := aws.Config{
				Region: "us-east-1", BaseEndpoint: &server.URL, Credentials: credentials.NewStaticCredentialsProvider("a", "b", ""),
				HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
			}
			b, err := Open(t.Context(), cfg, "builds", Options{})
			if err != nil || asked != 2 || refused != 1 {
				t.Fatalf("%v, %d requests, %d refused", err, asked, refused)
			}
			if err := b.Check(t.Context()); err != nil || asked != 3 || refused != 1 {
				t.Errorf("%v, %d requests, %d refused", err, asked, refused)
			}
		})
	}
}
