package bucket_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// attributes answers GetObjectAttributes as S3 does, a page at a time, from parts' sizes.
type attributes struct {
	parts int
	page  int // at most so many in an answer
	asked int
	// change alters what an answer says; nil for nothing.
	change func(asked int, answer string) string
	status int // of the answer; 0 for 200
}

func sumOf(part int) []byte {
	sum := sha256.Sum256([]byte(strconv.Itoa(part)))
	return sum[:]
}

func (a *attributes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !r.URL.Query().Has("attributes") {
		return // the bucket
	}
	a.asked++
	if a.status != 0 {
		refuse(w, a.status, "No")
		return
	}
	first, _ := strconv.Atoi(r.Header.Get("X-Amz-Part-Number-Marker"))
	most, _ := strconv.Atoi(r.Header.Get("X-Amz-Max-Parts"))
	end := min(first+min(most, a.page), a.parts)
	var out strings.Builder
	fmt.Fprintf(&out, "<GetObjectAttributesResponse><ETag>e-1</ETag><ObjectParts><IsTruncated>%v</IsTruncated><MaxParts>%d</MaxParts><NextPartNumberMarker>%d</NextPartNumberMarker><PartsCount>%d</PartsCount>",
		end < a.parts, most, end, a.parts)
	for i := first; i < end; i++ {
		fmt.Fprintf(&out, "<Part><PartNumber>%d</PartNumber><Size>%d</Size><ChecksumSHA256>%s</ChecksumSHA256></Part>", i+1, 5<<20+i, base64.StdEncoding.EncodeToString(sumOf(i)))
	}
	out.WriteString("</ObjectParts></GetObjectAttributesResponse>")
	answer := out.String()
	if a.change != nil {
		answer = a.change(a.asked, answer)
	}
	w.Write([]byte(answer)) //nolint:errcheck // the client sees it
}

func TestObjectParts(t *testing.T) {
	replace := func(old, new string) func(int, string) string {
		return func(_ int, answer string) string { return strings.Replace(answer, old, new, 1) }
	}
	for name, c := range map[string]struct {
		attributes
		want, asked int
		err         error  // that it is
		says        string // that it says
	}{
		"one part":                {attributes: attributes{parts: 1, page: 1000}, want: 1, asked: 1},
		"a page":                  {attributes: attributes{parts: 1000, page: 1000}, want: 1000, asked: 1},
		"several pages":           {attributes: attributes{parts: 2500, page: 1000}, want: 2500, asked: 3},
		"as many as can be":       {attributes: attributes{parts: manifest.MaxParts, page: 1000}, want: manifest.MaxParts, asked: 10},
		"a smaller page than ask": {attributes: attributes{parts: 25, page: 10}, want: 25, asked: 3},
		"more than can be":        {attributes: attributes{parts: 1 << 30, page: 1000}, asked: 11, says: "more than the 10000"},
		"no parts": {attributes: attributes{change: func(int, string) string {
			return "<GetObjectAttributesResponse><ETag>e-1</ETag></GetObjectAttributesResponse>"
		}}, asked: 1},
		"a part without a digest": {attributes: attributes{parts: 3, page: 10, change: replace(base64.StdEncoding.EncodeToString(sumOf(1)), "")}, asked: 1},
		"a digest that is none":   {attributes: attributes{parts: 3, page: 10, change: replace(base64.StdEncoding.EncodeToString(sumOf(1)), "AAAA")}, asked: 1},
		"a number is left out":    {attributes: attributes{parts: 3, page: 10, change: replace("<PartNumber>2<", "<PartNumber>3<")}, asked: 1},
		"fewer than it says":      {attributes: attributes{parts: 3, page: 10, change: replace("<PartsCount>3<", "<PartsCount>4<")}, asked: 1, says: "names 3 of 4"},
		"it goes on where it was": {attributes: attributes{parts: 25, page: 10, change: func(_ int, answer string) string {
			return strings.Replace(answer, "<NextPartNumberMarker>20<", "<NextPartNumberMarker>10<", 1)
		}}, asked: 2, says: "goes on where it has been before"},
		"it goes on and is empty": {attributes: attributes{change: replace("false", "true")}, asked: 1, says: "goes on and names none"},
		"it does not say where":   {attributes: attributes{parts: 25, page: 10, change: replace("<NextPartNumberMarker>10</NextPartNumberMarker>", "")}, asked: 1, says: "does not say how to go on"},
		"another object":          {attributes: attributes{parts: 3, page: 10, change: replace("e-1", "f-1")}, asked: 1, err: bucket.ErrChanged},
		"another on the next page": {attributes: attributes{parts: 25, page: 10, change: func(asked int, answer string) string {
			if asked == 2 {
				return strings.Replace(answer, "e-1", "f-1", 1)
			}
			return answer
		}}, asked: 2, err: bucket.ErrChanged},
		"the call is not known": {attributes: attributes{status: http.StatusNotImplemented}, asked: 1},
		"it is not allowed":     {attributes: attributes{status: http.StatusForbidden}, asked: 1},
		"it is no such query":   {attributes: attributes{status: http.StatusBadRequest}, asked: 1},
		"no object":             {attributes: attributes{status: http.StatusNotFound}, asked: 1, err: bucket.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := bucket.Open(t.Context(), stub(t, c.ServeHTTP), "builds", bucket.Options{})
			if err != nil {
				t.Fatal(err)
			}
			parts, err := b.ObjectParts(t.Context(), "k", `"e-1"`)
			if wrong := c.err != nil || c.says != ""; wrong != (err != nil) || c.err != nil && !errors.Is(err, c.err) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v", err)
			}
			if len(parts) != c.want || c.attributes.asked != c.asked {
				t.Errorf("%d parts after %d questions, want %d after %d", len(parts), c.attributes.asked, c.want, c.asked)
			}
			for i, p := range parts {
				if p.Number != i || p.Size != 5<<20+int64(i) || !bytes.Equal(p.SHA256, sumOf(i)) {
					t.Fatalf("part %d is %+v", i, p)
				}
			}
		})
	}
}
