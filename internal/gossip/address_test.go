package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/announce"
)

// hostWith is a host with these addresses beside loopback and link-local ones, where
// some names are known.
func hostWith(addrs ...string) network {
	parse := func(texts ...string) (out []netip.Addr) {
		for _, t := range texts {
			out = append(out, netip.MustParseAddr(t))
		}
		return out
	}
	return network{
		local: func() ([]netip.Addr, error) {
			return append(parse("127.0.0.1", "::1", "fe80::1", "169.254.3.4"), parse(addrs...)...), nil
		},
		lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
			switch host {
			case "inner.example":
				return parse("2001:db8::7", "::ffff:10.9.9.9", "10.0.0.5"), nil
			case "here.example":
				return parse("127.0.1.1"), nil
			case "none.example":
				return nil, nil
			}
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		},
	}
}

func TestWhatIsBoundAndWhatIsTold(t *testing.T) {
	one := hostWith("10.0.0.5")
	several := hostWith("10.0.0.5", "203.0.113.9", "2001:db8::7")
	for _, c := range []struct {
		host              network
		listen, advertise string
		bind, told        string
		wide              bool
	}{
		{one, "127.0.0.1:0", "", "127.0.0.1:0", "127.0.0.1:0", false},
		{one, "localhost:7946", "", "127.0.0.1:7946", "127.0.0.1:0", false},
		{one, "here.example:7946", "", "127.0.1.1:7946", "127.0.1.1:0", false},
		{one, "[::1]:7", "", "[::1]:7", "[::1]:0", false},
		{one, "::1", "", "[::1]:7946", "[::1]:0", false},
		{one, "10.0.0.5", "", "10.0.0.5:7946", "10.0.0.5:0", true},
		{one, ":7946", "", "[::]:7946", "10.0.0.5:0", true},
		{one, "[::]:7946", "", "[::]:7946", "10.0.0.5:0", true},
		{one, "0.0.0.0:7946", "", "0.0.0.0:7946", "10.0.0.5:0", true},
		{several, "inner.example:7946", "", "10.0.0.5:7946", "10.0.0.5:0", true}, // the one that is here
		{several, ":7946", "203.0.113.9", "[::]:7946", "203.0.113.9:0", true},
		{several, ":7946", "203.0.113.9:17946", "[::]:7946", "203.0.113.9:17946", true},
		{several, ":7946", "inner.example", "[::]:7946", "10.9.9.9:0", true},
		{several, ":7946", "[2001:db8::7]:1", "[::]:7946", "[2001:db8::7]:1", true},
		{hostWith("10.0.0.5", "2001:db8::7"), "0.0.0.0:7946", "", "0.0.0.0:7946", "10.0.0.5:0", true},
	} {
		p, err := c.host.placeOf(t.Context(), c.listen, c.advertise)
		if err != nil {
			t.Errorf("%s, %s: %v", c.listen, c.advertise, err)
			continue
		}
		if p.bind.String() != c.bind || p.advertise.String() != c.told || p.wide != c.wide {
			t.Errorf("%s, %s: bound %s, told %s, wide %t", c.listen, c.advertise, p.bind, p.advertise, p.wide)
		}
	}
	for _, c := range []struct {
		host              network
		listen, advertise string
		want              []string
	}{
		{several, ":7946", "", []string{"--advertise", "10.0.0.5", "203.0.113.9", "2001:db8::7"}},
		{several, "0.0.0.0:7946", "", []string{"--advertise", "10.0.0.5, 203.0.113.9"}},
		{several, "[::]:7946", "", []string{"--advertise"}},
		{hostWith(), ":7946", "", []string{"--advertise", "none but loopback"}},
		{one, "nowhere.example:7946", "", []string{"--gossip-listen", "nowhere.example"}},
		{one, "none.example:7946", "", []string{"no address"}},
		{one, "[fe80::1%eth0]:7946", "", []string{"one link"}},
		{one, "10.0.0.5:port", "", []string{"port"}},
		{one, "10.0.0.5:65536", "", []string{"port"}},
		{one, "1:2:3:4", "", []string{"HOST"}},
		{one, "", "", []string{"no address"}},
		{one, ":7946", "0.0.0.0", []string{"--advertise", "cannot reach"}},
		{one, ":7946", "[::]:7946", []string{"--advertise", "cannot reach"}},
		{one, ":7946", ":7946", []string{"--advertise", "no host"}},
		{one, ":7946", "10.0.0.5:x", []string{"--advertise", "port"}},
		{one, ":7946", "nowhere.example", []string{"--advertise", "nowhere.example"}},
	} {
		_, err := c.host.placeOf(t.Context(), c.listen, c.advertise)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q, %q: %v does not name %q", c.listen, c.advertise, err, want)
			}
		}
	}
}

func TestJoinForms(t *testing.T) {
	for addr, want := range map[string]string{
		"seeder.example":      "seeder.example:7946",
		"seeder.example:1":    "seeder.example:1",
		"10.0.0.1":            "10.0.0.1:7946",
		"::1":                 "[::1]:7946",
		"[::1]":               "[::1]:7946",
		"[2001:db8::1]:17946": "[2001:db8::1]:17946",
	} {
		if got, err := parseAddr(addr, DefaultPort); err != nil || got != want {
			t.Errorf("%s is %q, %v", addr, got, err)
		}
	}
	for _, addr := range []string{"", ":7946", "host:", "host:x", "host:0", "a:b:c", "name/10.0.0.1:7946", "ho st", "[::1", "0.0.0.0:7946", "[::]"} {
		if got, err := parseAddr(addr, DefaultPort); err == nil {
			t.Errorf("%q is taken for %s", addr, got)
		}
		if err := CheckAddrs("127.0.0.1:0", "", []string{addr}); err == nil || !strings.Contains(err.Error(), "--join") {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

// The key is asked for by what is bound, not by how it is written; and what is told is
// said.
func TestEveryWayBeyondLoopbackNeedsAKey(t *testing.T) {
	for _, listen := range []string{":0", "[::]:0", "0.0.0.0:0", "inner.example:0", "10.0.0.5:0"} {
		_, err := New(Config{
			Meta: seeder("s"), Listen: listen, network: hostWith("10.0.0.5"),
			Book: announce.NewBook(trust, nil), Logger: slog.New(slog.DiscardHandler),
		})
		if err == nil || !strings.Contains(err.Error(), "--gossip-key") {
			t.Errorf("%s: %v", listen, err)
		}
	}
	log := listen()
	n := start(t, seeder("s"), all(keyed(1), log.logger, func(c *Config) {
		c.Listen, c.network = ":0", hostWith("10.0.0.5")
	}))
	if host, port, err := net.SplitHostPort(n.Addr()); err != nil || host != "10.0.0.5" || port == "0" {
		t.Errorf("the others are told %s", n.Addr())
	}
	log.line(t, "address advertised to other members", "--advertise", "10.0.0.5")
	for _, addr := range []string{"203.0.113.9", "10.0.0.6", "100.64.0.1"} {
		log := listen()
		p, err := hostWith("10.0.0.5", addr).placeOf(t.Context(), addr+":7946", "")
		if err != nil {
			t.Fatal(err)
		}
		p.say(slog.New(slog.NewTextHandler(log, nil)), addr)
		if public := strings.Contains(log.String(), "level=WARN"); public != (addr == "203.0.113.9") || !strings.Contains(log.String(), addr) {
			t.Error(log)
		}
	}
}

func TestPeersMustBeWhereTheOthersConnect(t *testing.T) {
	host := hostWith("10.0.0.5", "10.0.0.6")
	for _, c := range []struct {
		listen, advertise, peers string
		reachable                bool
	}{
		{"10.0.0.5:7946", "", "10.0.0.5", true},
		{"10.0.0.5:7946", "", "::", true},
		{"10.0.0.5:7946", "", "127.0.0.1", false},
		{"10.0.0.5:7946", "", "10.0.0.6", false},
		{":7946", "203.0.113.9", "10.0.0.6", true}, // translated on the way, perhaps
		{":7946", "203.0.113.9", "127.0.0.1", false},
		{"127.0.0.1:7946", "", "127.0.0.1", true},
	} {
		err := host.peersReachable(t.Context(), c.listen, c.advertise, netip.MustParseAddr(c.peers))
		if (err == nil) != c.reachable {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestListedAddressesAreBounded(t *testing.T) {
	var many []netip.Addr
	for i := range 3 * maxListed {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	if text := listOf(many); strings.Count(text, "10.0.0.") != maxListed || !strings.Contains(text, fmt.Sprint(2*maxListed, " more")) {
		t.Error(text)
	}
	if !slices.Contains(strings.Split(listOf(many[:2]), ", "), "10.0.0.1") {
		t.Error(listOf(many[:2]))
	}
}
