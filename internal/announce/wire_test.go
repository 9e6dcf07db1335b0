package announce

import (
	"crypto/sha256"
	"fmt"
	"testing"
)

// TestWire holds what is sent to what it was before the envelope was shared: members of both versions are about while
// a cluster is upgraded. Ed25519's signatures are the same every time.
func TestWire(t *testing.T) {
	for want, doc := range map[string]any{
		"7af71f06af2f673de59f9a3c9cbe3a013c7ca4cf596e575868ed1ed05bc1a80a": announcement(1),
		"44bd7506dcb0ab7004794c289d9a58cab7381f67fdb02ab6976d50b7eaed23bb": end(1, noon),
	} {
		if got := fmt.Sprintf("%x", sha256.Sum256(sign(t, doc))); got != want {
			t.Errorf("%T: %s, expected %s", doc, got, want)
		}
	}
}
