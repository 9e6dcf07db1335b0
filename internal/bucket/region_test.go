package bucket

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
)

// A HEAD of a bucket in another region can be a bare 400.
func TestBucketOfAnotherRegion(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) }))
	defer s.Close()
	cfg := aws.Config{Region: "eu-west-1", BaseEndpoint: &s.URL, Credentials: credentials.NewStaticCredentialsProvider("a", "b", ""), RetryMaxAttempts: 1}
	_, err := Open(t.Context(), cfg, "region-a-builds", Options{})
	if err == nil || !strings.Contains(err.Error(), "--bucket-region") || strings.Contains(err.Error(), "SSE-C") {
		t.Error(err)
	}
}
