// Package processtest is what tests and benchmarks that run real programs have in
// common: building Landfall's, running and watching one, and a network of their own.
package processtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
)

// Root is the top of the source tree.
var Root = func() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}()

// Build puts the programs of cmd/ into a directory. They are built just as `make
// build` does it, without cgo and with the same flags, so that in `make test`
// nothing is compiled for it once more.
func Build(dir string) error { return build(dir, "./cmd/...") }

// build is Build of some packages, with more flags before them.
func build(dir string, more ...string) error {
	c := exec.Command("go", append([]string{"build", "-trimpath", "-o", dir + string(filepath.Separator)}, more...)...)
	c.Dir = Root
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return nil
}

// AWS reaches the embedded S3 and DynamoDB at a URL.
func AWS(endpoint string) aws.Config {
	return aws.Config{
		Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
	}
}

// AWSEnv is the environment in which the SDK reaches the embedded S3 and DynamoDB at
// a URL.
func AWSEnv(endpoint string) []string {
	return []string{
		"AWS_ENDPOINT_URL=" + endpoint, "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test",
		"AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true",
	}
}
