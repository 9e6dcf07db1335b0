package announce

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/landfall-dist/landfall/internal/signing"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestTraceParent(t *testing.T) {
	a := announcement(1)
	if bytes.Contains(sign(t, a), []byte("trace")) {
		t.Error("an announcement without a trace is not what it was before there were any")
	}
	a.TraceParent = parent
	doc, err := Open(sign(t, a), trust, noon)
	if err != nil || doc.(*Announcement).TraceParent != parent {
		t.Errorf("%+v, %v", doc, err)
	}
}

func TestMalformedTraceParentIsIgnored(t *testing.T) {
	for _, value := range []string{
		`""`, `5`, `null`, `{"a":[1]}`, `"\u0000"`,
		`"` + parent + `-00"`,
		`"` + parent[:54] + `"`,
		`"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"`,
		`"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"`,
		`"00-00000000000000000000000000000000-b7ad6b7169203331-01"`,
		`"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"`,
		`"00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01"`,
		`"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g"`,
		`"00-0af7651916cd43dd8448eb211c80319c\nb7ad6b7169203331-01"`,
	} {
		body := fmt.Appendf(nil, `{"executionId":"00000000000000000000000001","key":"a","sourceBucket":"abc","destinationBuckets":["abc"],"scheme":"ramp","pieceLength":131072,"partLength":5242880,"infohashes":"AQIDBAUGBwgJCgsMDQ4PEBESExQ=","size":1,"traceparent":%s,"issued":"2026-06-01T12:00:00Z","expires":"2026-06-02T12:00:00Z"}`, value)
		doc := new(Announcement)
		if err := decode(signing.Opened{Body: body}, doc, noon); err != nil || doc.TraceParent != "" {
			t.Errorf("%s: %+v, %v", value, doc, err)
		}
	}
}

func FuzzTraceParent(f *testing.F) {
	f.Add(parent)
	f.Fuzz(func(t *testing.T, s string) {
		if isTraceParent(s) && (len(s) != len(parent) || s[2] != '-' || s[35] != '-' || s[52] != '-') {
			t.Errorf("%q", s)
		}
	})
}
