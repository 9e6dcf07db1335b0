package gossip

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/hashicorp/memberlist"
)

func nodeOf(t *testing.T, name string, meta Meta, addr string) *memberlist.Node {
	t.Helper()
	b, err := json.Marshal(meta)
	if err != nil {
		t.Fatal(err)
	}
	ap := netip.MustParseAddrPort(addr)
	return &memberlist.Node{Name: name, Meta: b, Addr: ap.Addr().AsSlice(), Port: ap.Port()}
}
