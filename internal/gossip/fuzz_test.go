package gossip

import (
	"bytes"
	"encoding/json"
	"net"
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"

	"github.com/landfall-dist/landfall/internal/announce"
)

// FuzzMeta: whatever a member says of itself, what it is taken for is within its bounds, and
// what counts as signed by it is what it says.
func FuzzMeta(f *testing.F) {
	b, err := json.Marshal(Meta{ID: "a1", Role: Agent, Region: "region-a", Bucket: "a-builds", PeerPort: 7, HTTPPort: 8, Cert: "x", Hello: "y", Trusts: []string{"z"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a1-01", b)
	f.Add("a1-01", append(bytes.TrimSuffix(b, []byte("}")), signatureField+`AAAA"}`...))
	f.Add("s1-01", []byte(`{"id":"s1","role":"seeder","sig":"AAAA","sig":"BBBB"}`))
	f.Fuzz(func(t *testing.T, name string, meta []byte) {
		n := &memberlist.Node{Name: name, Addr: net.IPv4(10, 0, 0, 1), Port: 7, Meta: meta}
		if m, ok := member(n); ok {
			if len(m.ID) > maxName || len(m.Region) > maxName || len(m.Table) > maxTable || m.Role != Seeder && announce.CheckBucketName(m.Bucket) != nil {
				t.Errorf("taken for %+v", m)
			}
			if isSeeder(meta) != (m.Role == Seeder) || isCertified(meta) != (m.Cert != "") {
				t.Errorf("judged as another: %+v", m)
			}
		}
		_ = startOf(name)
		message, signature, err := signedMeta(name, "10.0.0.1:7", meta)
		if err != nil {
			return
		}
		// The signature is the end of the meta, and covers all before it.
		said, ok := strings.CutPrefix(string(message), name+"\x0010.0.0.1:7\x00")
		if !ok || !bytes.HasPrefix(meta, []byte(said)) || len(said)+len(signatureField)+len(signature) > len(meta) {
			t.Errorf("%q is signed of %q", said, meta)
		}
	})
}
