package peerwire

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const timeout = 60 * time.Second

// start returns a Wire whose connections are about nothing, and which ends with the test.
func start(t *testing.T, change func(*Config)) *Wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		l.Close()
		running.Wait()
	})
	cfg := Config{
		Listener:  l,
		Begin:     func(*Conn, manifest.InfoHash) (Torrent, error) { return nil, nil },
		Alongside: func(f func()) bool { running.Go(f); return true },
		Logger:    slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	return New(ctx, cfg)
}

func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	deadline := time.After(timeout)
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("not in %s", timeout)
		}
	}
}

func TestPeerID(t *testing.T) {
	a, b := PeerID("agent-1"), PeerID("agent-2")
	if a == b || a != PeerID("agent-1") || !bytes.HasPrefix(a[:], []byte("-LF0100-")) {
		t.Errorf("%q, %q", a, b)
	}
}
