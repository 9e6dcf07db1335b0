package clustertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/seeder/client"
)

// post sends JSON to the seeder and decodes the answer, which must have the code.
func post[T any](t *testing.T, c *Cluster, path, body string, code int) T {
	t.Helper()
	res, err := c.Seeder.HTTP.Post(c.Seeder.URL+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != code {
		t.Errorf("POST %s %s: %d, want %d: %s", path, body, res.StatusCode, code, b)
	}
	var out T
	if err := json.Unmarshal(b, &out); err != nil {
		t.Errorf("POST %s: answer is no JSON: %s", path, b)
	}
	return out
}

func TestBadRequests(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1, SourceBuckets: []string{"no-such-bucket"}})
	for body, code := range map[string]int{
		`{`:                                   400,
		`[]`:                                  400,
		`{}`:                                  400,
		`null`:                                400,
		`{"sourceBucket":"` + c.Global + `"}`: 400,
		`{"sourceBucket":"` + c.Global + `","sourceKey":"none.zip"}`:                                404,
		`{"sourceBucket":"no-such-bucket","sourceKey":"a.zip"}`:                                     404,
		`{"sourceBucket":"not-a-source","sourceKey":"a.zip"}`:                                       403,
		`{"sourceBucket":"../etc","sourceKey":"a.zip"}`:                                             400,
		`{"sourceBucket":"` + c.Global + `","sourceKey":"a.zip","destinationBuckets":["UPPER"]}`:    400,
		`{"sourceBucket":"` + c.Global + `","sourceKey":"a.zip","surprise":1}`:                      400,
		`{"sourceBucket":"` + c.Global + `","sourceKey":"a.zip","priority":"urgent"}`:               400,
		`{"sourceBucket":"` + c.Global + `","sourceKey":"` + strings.Repeat("k", 1025) + `"}`:       400,
		`{"sourceBucket":"` + c.Global + `","sourceKey":"` + strings.Repeat("k", 1<<20) + `"}`:      413,
		`{"sourceBucket":"` + c.Global + `","sourceKey":"a.zip","destinationBuckets":"not-a-list"}`: 400,
	} {
		if answer := post[api.Error](t, c, "/deploy", body, code); answer.Error == "" {
			t.Errorf("POST /deploy %.80s: no reason given", body)
		}
	}
	res, err := c.Seeder.HTTP.Post(c.Seeder.URL+"/deploy", "text/plain", strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 400 {
		t.Errorf("wrong content type: %d", res.StatusCode)
	}
	post[api.Error](t, c, "/builds", `{"commit":"abc"}`, 501)
	post[api.Error](t, c, "/builds", `{"commit":"abc","priority":"urgent"}`, 400)
	_, err = c.Seeder.UploadFor(t.Context(), api.DeployRequest{SourceKey: "a.zip", Priority: "urgent"}, strings.NewReader("a"), 1, "text/plain")
	if status := (*api.StatusError)(nil); !errors.As(err, &status) || status.Code != 400 {
		t.Errorf("an upload with a priority that is none: %v", err)
	}
	if _, err := c.Seeder.Execution(t.Context(), "01ARZ3NDEKTSV4RRFFQ69G5FAV"); !client.NotFound(err) {
		t.Errorf("unknown execution: %v", err)
	}
}

func TestUploads(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1})
	for _, key := range []string{"plain.zip", "a b+c%2F.zip", "dir//double.zip", "ü/ß.zip"} {
		b := content(1, 1000)
		if _, err := c.Seeder.Upload(t.Context(), key, bytes.NewReader(b), int64(len(b)), "application/zip"); err != nil {
			t.Logf("%q: %v", key, err) // what the embedded S3 refuses is reported
			if !strings.Contains(key, "//") {
				t.Errorf("%q: %v", key, err)
			}
			continue
		}
		if got, _ := c.Object(c.Global, key); !bytes.Equal(got, b) {
			t.Errorf("%q is not in the bucket", key)
		}
	}
	if _, err := c.Seeder.Upload(t.Context(), "../escape.zip", strings.NewReader("x"), 1, ""); err == nil {
		t.Error("../escape.zip was stored")
	}
	// A second upload of a key under way is refused.
	// More than the sockets between hold: when half is written, the seeder
	// reads.
	half := make([]byte, 16<<20)
	body, feed := io.Pipe()
	first := make(chan error, 1)
	go func() {
		_, err := c.Seeder.Upload(t.Context(), "same.zip", body, int64(2*len(half)), "")
		first <- err
	}()
	write := func() {
		if _, err := feed.Write(half); err != nil {
			t.Error(err)
		}
	}
	write()
	c.Until("a second upload is refused", func() bool {
		_, err := c.Seeder.Upload(t.Context(), "same.zip", strings.NewReader("x"), 1, "")
		return err != nil && strings.Contains(err.Error(), "already")
	})
	write()
	feed.Close()
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestListPages(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1})
	var want []string
	for _, key := range []string{"a.zip", "b.zip", "c.zip"} {
		want = append([]string{c.Publish(key, []byte(key)).ExecutionID}, want...)
	}
	var got []string
	after := ""
	for {
		page, err := c.Seeder.Executions(t.Context(), 2, after)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Executions {
			got = append(got, e.ExecutionID)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("pages give %v, want %v", got, want)
	}
	if e, err := c.Seeder.ByKey(t.Context(), "b.zip"); err != nil || e.ExecutionID != want[1] {
		t.Errorf("by key: %+v, %v", e, err)
	}
}
