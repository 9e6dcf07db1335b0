package seeder

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/web"
)

// maxFetch is the tests' bound, far above the bytes that they send within it.
const maxFetch = 100_000

// fetcher is a seeder with a build source and an empty bucket.
func fetcher(t *testing.T, address string) *Seeder {
	t.Helper()
	b, err := bucket.Open(t.Context(), cloud.AWS, cloud.Bucket(t), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	builds, err := newBuildSource(address)
	if err != nil {
		t.Fatal(err)
	}
	return &Seeder{cfg: Config{Bucket: b, MaxFetch: maxFetch, Logger: slog.New(slog.DiscardHandler)}, builds: builds, reserved: newReservations()}
}

// nothingLeft fails the test unless the bucket has neither objects nor uploads.
func nothingLeft(t *testing.T, s *Seeder) {
	t.Helper()
	name := s.cfg.Bucket.Name()
	objects, err := cloud.S3.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &name})
	if err != nil {
		t.Fatal(err)
	}
	uploads, err := cloud.S3.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &name})
	if err != nil {
		t.Fatal(err)
	}
	if len(objects.Contents)+len(uploads.Uploads) > 0 {
		t.Errorf("%d objects and %d uploads are left", len(objects.Contents), len(uploads.Uploads))
	}
}

func statusOf(err error) int {
	var answer *web.Error
	if errors.As(err, &answer) {
		return answer.Code
	}
	return 0
}

// What a build source does beside sending a build, the seeder does not go along with.
func TestBuildSourceOnTheWeb(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "seeder.key")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("%s was asked for", r.URL)
	}))
	defer elsewhere.Close()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(make([]byte, 100*maxFetch)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	redirect := func(code int, to string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Location", to); w.WriteHeader(code) }
	}
	send := func(length int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if length >= 0 {
				w.Header().Set("Content-Length", fmt.Sprint(length))
			}
			_, _ = io.WriteString(w, body)
		}
	}
	answers := map[string]struct {
		do   http.HandlerFunc
		code int
	}{
		"to-a-file":      {redirect(http.StatusFound, "file://"+secret), http.StatusBadGateway},
		"to-another":     {redirect(http.StatusTemporaryRedirect, elsewhere.URL), http.StatusBadGateway},
		"to-itself":      {redirect(http.StatusMovedPermanently, "/to-itself"), http.StatusBadGateway},
		"nothing":        {http.NotFound, http.StatusNotFound},
		"forbidden":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, http.StatusBadGateway},
		"a-part":         {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPartialContent) }, http.StatusBadGateway},
		"cut-short":      {send(1000, "short"), http.StatusBadGateway},
		"says-too-large": {send(maxFetch+1, ""), http.StatusRequestEntityTooLarge},
		"too-large":      {send(-1, strings.Repeat("x", 2*maxFetch)), http.StatusRequestEntityTooLarge},
		"broken-off": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, http.StatusBadGateway},
	}
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Path[len("/builds/"):]
		switch a, ok := answers[name]; {
		case ok:
			a.do(w, r)
		case name == "packed":
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(packed.Bytes())
		default:
			w.Header().Set("Content-Type", "application/x-build")
			_, _ = io.WriteString(w, "a build")
		}
	}))
	defer source.Close()
	s := fetcher(t, strings.Replace(source.URL, "http://", "http://user:password@", 1)+"/builds")
	for commit, a := range answers {
		_, err := s.storeBuild(t.Context(), commit, commit+".zip", false)
		if statusOf(err) != a.code || strings.Contains(fmt.Sprint(err), "password") {
			t.Errorf("%s: status %d, want %d: %v", commit, statusOf(err), a.code, err)
		}
	}
	nothingLeft(t, s)
	o, err := s.storeBuild(t.Context(), "packed", "packed.zip", false)
	if err != nil || o.Size != int64(packed.Len()) {
		t.Errorf("packed: %+v, %v", o, err)
	}
	for key, want := range map[string]bucket.Headers{
		"packed.zip": {ContentEncoding: "gzip", Metadata: map[string]string{"commit": "packed"}},
		"good.zip":   {ContentType: "application/x-build", Metadata: map[string]string{"commit": "good"}},
	} {
		if _, err := s.storeBuild(t.Context(), strings.TrimSuffix(key, ".zip"), key, false); err != nil {
			t.Fatal(err)
		}
		o, err := s.cfg.Bucket.Head(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if want.ContentType == "" {
			want.ContentType = o.ContentType
		}
		if differ := want.Differ(o.Headers); len(differ) > 0 {
			t.Errorf("%s: %v differ: %+v", key, differ, o.Headers)
		}
	}
	source.Close()
	if _, err := s.storeBuild(t.Context(), "good", "good.zip", false); statusOf(err) != http.StatusBadGateway || strings.Contains(err.Error(), "password") {
		t.Errorf("a source that is away: %v", err)
	}
}

// Of a directory only its own regular files are builds.
func TestBuildSourceIsADirectory(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	for _, err := range []error{
		os.WriteFile(filepath.Join(outside, "seeder.key"), []byte("secret"), 0o600),
		os.WriteFile(filepath.Join(dir, "good"), []byte("a build"), 0o600),
		os.WriteFile(filepath.Join(dir, "large"), make([]byte, maxFetch+1), 0o600),
		os.Symlink(filepath.Join(outside, "seeder.key"), filepath.Join(dir, "link")),
		os.Symlink(outside, filepath.Join(dir, "linked-directory")),
		os.Symlink("good", filepath.Join(dir, "inside")),
		os.Mkdir(filepath.Join(dir, "directory"), 0o700),
		os.WriteFile(filepath.Join(dir, "directory", "index.html"), []byte("index"), 0o600),
		syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := fetcher(t, "file://"+dir)
	for commit, code := range map[string]int{
		"none": http.StatusNotFound, "link": http.StatusBadGateway, "linked-directory": http.StatusBadGateway,
		"directory": http.StatusBadGateway, "pipe": http.StatusBadGateway, "large": http.StatusRequestEntityTooLarge,
	} {
		if _, err := s.storeBuild(t.Context(), commit, commit+".zip", false); statusOf(err) != code {
			t.Errorf("%s: status %d, want %d: %v", commit, statusOf(err), code, err)
		}
	}
	nothingLeft(t, s)
	for _, commit := range []string{"good", "inside"} {
		if o, err := s.storeBuild(t.Context(), commit, commit+".zip", false); err != nil || o.Size != int64(len("a build")) {
			t.Errorf("%s: %+v, %v", commit, o, err)
		}
	}
	s = fetcher(t, "file://"+dir+"/nowhere")
	if _, err := s.storeBuild(t.Context(), "good", "good.zip", false); statusOf(err) != http.StatusBadGateway && statusOf(err) != http.StatusNotFound {
		t.Errorf("no directory: %v", err)
	}
}

func TestCheckBuildSource(t *testing.T) {
	for _, address := range []string{"", "http://builds:8080", "https://user:secret@builds.example.com/x?y=z", "file:///srv/builds", "file://localhost/srv"} {
		if err := CheckBuildSource(address); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, address := range []string{"builds", "/srv/builds", "ftp://builds/", "http://", "https:///x", "file://srv/builds", "file:relative", "file:///srv?x", "http://user:secret@bad host/", "http://user:secret@h/%zz", "ftp://secret/", "http:///secret?secret#secret", "file:///srv?secret"} {
		err := CheckBuildSource(address)
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// Destinations are refused that would rewrite the source, and those that nobody knows
// unless they are insisted upon; so are sources that the seeder was not told of.
func TestDeployRefuses(t *testing.T) {
	s := fetcher(t, "")
	global := s.cfg.Bucket.Name()
	s.cfg.Destinations, s.cfg.SourceBuckets = []string{"configured"}, []string{"other-source"}
	s.served = map[string]bool{"served": true}
	for name, c := range map[string]struct {
		source string
		to     []string
		force  bool
		code   int
	}{
		"the source":             {global, []string{global}, false, 400},
		"the source, forced":     {global, []string{"configured", global}, true, 400},
		"another source":         {"other-source", []string{"other-source"}, true, 400},
		"the global bucket":      {"other-source", []string{global}, true, 400},
		"nobody's":               {global, []string{"configured", "nobodys"}, false, 400},
		"no name":                {global, []string{"No Name"}, true, 400},
		"a source not named":     {"secrets", []string{"configured"}, true, 403},
		"nobody's, forced":       {global, []string{"nobodys"}, true, 404},
		"configured":             {global, []string{"configured"}, false, 404},
		"served":                 {global, []string{"served"}, false, 404},
		"the seeder's own":       {global, nil, false, 404},
		"a source that is named": {"other-source", nil, false, 404},
	} {
		s.sources = source.NewBuckets(cloud.AWS, s.cfg.Bucket)
		_, err := s.deploy(context.Background(), api.DeployRequest{SourceBucket: c.source, SourceKey: "build.zip", DestinationBuckets: c.to, Force: c.force})
		if statusOf(err) != c.code {
			t.Errorf("%s: status %d, want %d: %v", name, statusOf(err), c.code, err)
		}
		if name == "nobody's" && !strings.Contains(err.Error(), "--force") || name == "a source not named" && !strings.Contains(err.Error(), "--source-buckets") {
			t.Errorf("%s: no next step in %v", name, err)
		}
	}
}
