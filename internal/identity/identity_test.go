package identity

import (
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	long := strings.Repeat("a", MaxName)
	for _, c := range []struct {
		uri  string
		want ID // the zero value: refused
	}{
		{"spiffe://prod/seeder/s1", ID{"prod", Seeder, "", "s1"}},
		{"spiffe://prod.example.com/seeder/s-1.a_b", ID{"prod.example.com", Seeder, "", "s-1.a_b"}},
		{"spiffe://prod/agent/region-a/a1", ID{"prod", Agent, "region-a", "a1"}},
		{"spiffe://region-a.prod/host/h1", ID{"prod", Host, "region-a", "h1"}},
		{"spiffe://region-a.prod.example.com/host/h1", ID{"prod.example.com", Host, "region-a", "h1"}},
		{"spiffe://" + long + ".prod/host/" + long, ID{"prod", Host, long, long}},
		{uri: ""},
		{uri: "spiffe://"},
		{uri: "spiffe://prod"},
		{uri: "spiffe://prod/"},
		{uri: "spiffe://prod/seeder"},
		{uri: "spiffe://prod/seeder/"},
		{uri: "spiffe://prod/seeder/s1/"},
		{uri: "spiffe://prod/seeder/s1/more"},
		{uri: "spiffe://prod/Seeder/s1"},
		{uri: "spiffe://prod/seeder/S1"},
		{uri: "spiffe://Prod/seeder/s1"},
		{uri: "SPIFFE://prod/seeder/s1"},
		{uri: "https://prod/seeder/s1"},
		{uri: "spiffe:/prod/seeder/s1"},
		{uri: "spiffe://prod:443/seeder/s1"},
		{uri: "spiffe://user@prod/seeder/s1"},
		{uri: "spiffe://prod/seeder/s1?x=1"},
		{uri: "spiffe://prod/seeder/s1#x"},
		{uri: "spiffe://prod/seeder/%73"},
		{uri: "spiffe://prod/seeder/."},
		{uri: "spiffe://prod/seeder/.."},
		{uri: "spiffe://prod//s1"},
		{uri: "spiffe:///seeder/s1"},
		{uri: "spiffe://prod./seeder/s1"},
		{uri: "spiffe://.prod/seeder/s1"},
		{uri: "spiffe://-prod/seeder/s1"},
		{uri: "spiffe://prod/agent/a1"},
		{uri: "spiffe://prod/agent//a1"},
		{uri: "spiffe://prod/agent/region.a/a1"},
		{uri: "spiffe://prod/agent/region_a/a1"},
		{uri: "spiffe://prod/agent/region-a/a1/more"},
		{uri: "spiffe://prod/host/h1"},
		{uri: "spiffe://region-a.prod/host/region-a/h1"},
		{uri: "spiffe://prod/operator/o1"},
		{uri: "spiffe://prod/seeder/" + long + "a"},
		{uri: "spiffe://" + long + "a/seeder/s1"},
		{uri: "spiffe://" + strings.Repeat("abc.", MaxCluster/4) + "abcd/seeder/s1"},
		{uri: "spiffe://prod/seeder/" + strings.Repeat("a", MaxURI)},
		{uri: "spiffe://prod/seeder/s1\n"},
		{uri: "spiffe://prod/seeder/s1\x00"},
	} {
		got, err := Parse(c.uri)
		if got != c.want || (err == nil) != (c.want != ID{}) {
			t.Errorf("Parse(%q) = %+v, %v", c.uri, got, err)
		}
		if err == nil && (got.String() != c.uri || got.URL().String() != c.uri) {
			t.Errorf("%q comes back as %q and %q", c.uri, got, got.URL())
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://prod/agent/region-a/a1")
	f.Add("spiffe://region-a.prod/host/h1")
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := Parse(uri)
		if err == nil && id.String() != uri {
			t.Errorf("%q comes back as %q", uri, id)
		}
	})
}

func TestParseDenied(t *testing.T) {
	f := Fingerprint{1, 2, 3}
	for _, c := range []struct{ line, want string }{
		{"serial 00FF", "serial ff"},
		{"serial 00:ff:0A", "serial ff0a"},
		{"fingerprint " + f.String(), "fingerprint " + f.String()},
		{"fingerprint 01:02:03" + strings.Repeat(":00", 29), "fingerprint " + f.String()},
		{"  id   spiffe://prod/agent/region-a/a1 ", "id spiffe://prod/agent/region-a/a1"},
		{"serial", ""},
		{"serial -1", ""},
		{"serial xyz", ""},
		{"serial " + strings.Repeat("1", 65), ""},
		{"fingerprint abc", ""},
		{"id prod", ""},
		{"everybody", ""},
	} {
		got, err := ParseDenied(c.line)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("ParseDenied(%q) = %q, %v", c.line, got, err)
		}
	}
	var many strings.Builder
	for range maxDenied + 1 {
		many.WriteString("serial 1\n")
	}
	if _, err := parseDenied(many.String()); err != nil {
		t.Errorf("the same entry many times: %v", err)
	}
	many.Reset()
	for i := range maxDenied + 1 {
		many.WriteString("serial " + strings.Repeat("1", 1+i%50) + strings.Repeat("2", 1+i/50%13) + strings.Repeat("3", 1+i/650) + "\n")
	}
	if _, err := parseDenied(many.String()); err == nil {
		t.Errorf("%d entries were taken, at most %d", maxDenied+1, maxDenied)
	}
}

func TestFileBounds(t *testing.T) {
	file := t.TempDir() + "/ca.pem"
	if err := os.WriteFile(file, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadCerts(file, 1); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a file that is too long: %v", err)
	}
}
