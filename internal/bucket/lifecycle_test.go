package bucket_test

import (
	"encoding/xml"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// lifecycles is a store that has lifecycle rules, as S3 does.
type lifecycles struct {
	body []byte
	puts int
}

func (l *lifecycles) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !r.URL.Query().Has("lifecycle") {
		return // HeadBucket
	}
	switch {
	case r.Method == http.MethodPut:
		l.body, _ = io.ReadAll(r.Body)
		l.puts++
	case l.body == nil:
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, "<Error><Code>NoSuchLifecycleConfiguration</Code></Error>")
	default:
		w.Write(l.body)
	}
}

func TestAbortUnfinished(t *testing.T) {
	const other = `<LifecycleConfiguration><Rule><ID>mine</ID><Status>Enabled</Status><Filter><Prefix>tmp/</Prefix></Filter>` +
		`<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule></LifecycleConfiguration>`
	for name, c := range map[string]struct {
		before string
		days   int // before
		made   bool
		want   []string // after
	}{
		"none":                {"", 0, true, []string{"landfall-abort-unfinished-uploads"}},
		"of other keys":       {other, 0, true, []string{"mine", "landfall-abort-unfinished-uploads"}},
		"switched off":        {strings.ReplaceAll(strings.ReplaceAll(other, "tmp/", ""), "Enabled", "Disabled"), 0, true, []string{"mine", "landfall-abort-unfinished-uploads"}},
		"of all keys already": {strings.ReplaceAll(other, "tmp/", ""), 1, false, []string{"mine"}},
	} {
		t.Run(name, func(t *testing.T) {
			store := &lifecycles{}
			if c.before != "" {
				store.body = []byte(c.before)
			}
			server := httptest.NewServer(store)
			defer server.Close()
			cfg := cloud.AWS.Copy()
			cfg.BaseEndpoint = aws.String(server.URL)
			b, err := bucket.Open(t.Context(), cfg, "some-bucket", bucket.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if days, err := b.AbortDays(t.Context()); err != nil || days != c.days {
				t.Errorf("after %d days, %v", days, err)
			}
			for _, made := range []bool{c.made, false} {
				if got, err := b.AbortUnfinished(t.Context()); err != nil || got != made {
					t.Errorf("made %v, %v; want %v", got, err, made)
				}
			}
			var after struct{ Rule []struct{ ID string } }
			if err := xml.Unmarshal(store.body, &after); err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, r := range after.Rule {
				ids = append(ids, r.ID)
			}
			if strings.Join(ids, " ") != strings.Join(c.want, " ") {
				t.Errorf("rules %v, want %v", ids, c.want)
			}
			if days, err := b.AbortDays(t.Context()); err != nil || days == 0 || c.made && days != 7 {
				t.Errorf("then after %d days, %v", days, err)
			}
		})
	}
}

// A store without lifecycle rules says so.
func TestNoLifecycleRules(t *testing.T) {
	b, err := bucket.Open(t.Context(), cloud.AWS, cloud.Bucket(t), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	days, err := b.AbortDays(t.Context())
	made, makeErr := b.AbortUnfinished(t.Context())
	t.Logf("%d days, %v; made %v, %v", days, err, made, makeErr)
	if (err == nil) != (makeErr == nil) {
		t.Errorf("%v, but %v", err, makeErr)
	}
}
