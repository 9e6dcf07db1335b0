package gossip

import (
	"context"
	"net"
	"sync"
	"testing"
)

// hangingDNS is a network whose DNS server never answers. asked is closed once it is
// asked for something.
func hangingDNS(t *testing.T) (n network, asked <-chan struct{}) {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	open := make([]net.Conn, 0, 8) // nil after the end
	first := make(chan struct{})
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if open == nil {
			return nil, net.ErrClosed
		}
		if len(open) == 0 {
			close(first)
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "udp", server.LocalAddr().String())
		if err == nil {
			open = append(open, conn)
		}
		return conn, err
	}
	t.Cleanup(func() { // the resolver waits longer than those who ask it
		mu.Lock()
		defer mu.Unlock()
		for _, conn := range open {
			conn.Close()
		}
		open = nil
		server.Close()
	})
	n = hostNetwork
	n.lookup = lookupWith(&net.Resolver{PreferGo: true, Dial: dial})
	return n, first
}

// A name of --join for which no DNS server answers is said, keeps nobody from the
// members whose address is known, and does not keep the process from ending.
func TestDNSThatHangs(t *testing.T) {
	s := start(t, seeder("s"), nil)
	hanging, asked := hangingDNS(t)
	log := listen()
	a := start(t, agent("a", "a"), all(log.logger, func(c *Config) {
		c.Join, c.network = []string{"seeder.example:7946", s.Addr()}, hanging
	}))
	<-asked
	a.await(t, 2)
	log.line(t, "level=WARN", "no member reached", "join=seeder.example:7946")
}
