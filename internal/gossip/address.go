package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// DefaultPort is the gossip's where none is given.
const DefaultPort = 7946

// maxListed bounds the addresses of this host that a line names.
const maxListed = 8

// shared is the address space of carriers and large clouds (RFC 6598): no more public
// than a private one.
var shared = netip.MustParsePrefix("100.64.0.0/10")

// CheckAddrs reports what is wrong with the form of the addresses of --gossip-listen,
// --advertise and --join, without looking up a name.
func CheckAddrs(listen, advertise string, join []string) error {
	if _, _, err := splitAddr(listen, DefaultPort); err != nil {
		return fmt.Errorf("--gossip-listen: %w", err)
	}
	if advertise != "" {
		if _, err := parseAddr(advertise, DefaultPort); err != nil {
			return fmt.Errorf("--advertise: %w", err)
		}
	}
	_, err := ParseJoin(join)
	return err
}

// ParseJoin returns the addresses of --join as HOST:PORT.
func ParseJoin(join []string) ([]string, error) {
	all := make([]string, 0, len(join))
	for _, j := range join {
		addr, err := parseAddr(j, DefaultPort)
		if err != nil {
			return nil, fmt.Errorf("--join: %w", err)
		}
		all = append(all, addr)
	}
	return all, nil
}

// splitAddr takes HOST, HOST:PORT, an IPv6 address with or without brackets, and
// :PORT apart.
func splitAddr(addr string, defaultPort uint16) (host string, port uint16, err error) {
	if addr == "" {
		return "", 0, errors.New("no address is given")
	}
	host = addr
	if inner, ok := strings.CutPrefix(addr, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			host = inner
		}
	}
	if _, err := netip.ParseAddr(host); err != nil && strings.Contains(addr, ":") || strings.Contains(addr, "]:") {
		text := ""
		if host, text, err = net.SplitHostPort(addr); err != nil {
			return "", 0, fmt.Errorf("address %q is not HOST or HOST:PORT", addr)
		}
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return "", 0, fmt.Errorf("address %q: the port is not a number from 0 to 65535", addr)
		}
		defaultPort = uint16(n)
	}
	if strings.ContainsAny(host, "/[] \t\r\n,") {
		return "", 0, fmt.Errorf("address %q: %q is no host", addr, host)
	}
	return host, defaultPort, nil
}

// parseAddr returns HOST:PORT of an address where somebody can be reached.
func parseAddr(addr string, defaultPort uint16) (string, error) {
	host, port, err := splitAddr(addr, defaultPort)
	switch ip, ipErr := netip.ParseAddr(host); {
	case err != nil:
		return "", err
	case host == "":
		return "", fmt.Errorf("address %q names no host", addr)
	case port == 0:
		return "", fmt.Errorf("address %q: nobody is reached at port 0", addr)
	case ipErr == nil && (ip.IsUnspecified() || ip.IsMulticast()):
		return "", fmt.Errorf("address %q: nobody is reached at %s", addr, ip)
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

// place is where the gossip listens and what the others are told.
type place struct {
	bind netip.AddrPort // port 0 picks one
	// advertise has port 0 for the port that is bound.
	advertise netip.AddrPort
	// wide is set beyond loopback.
	wide bool
	// chosen is set where the address was not given but is the only one there is.
	chosen bool
	others []netip.Addr // further addresses of this host that the others might reach
}

// network is what is asked about names and addresses; tests have another.
type network struct {
	// lookup takes at most lookupTimeout.
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	local  func() ([]netip.Addr, error)
}

var hostNetwork = network{
	lookup: lookupWith(net.DefaultResolver),
	local: func() ([]netip.Addr, error) {
		all, err := net.InterfaceAddrs()
		var out []netip.Addr
		for _, a := range all {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out = append(out, p.Addr())
			}
		}
		return out, err
	},
}

func lookupWith(r *net.Resolver) func(ctx context.Context, host string) ([]netip.Addr, error) {
	return func(ctx context.Context, host string) ([]netip.Addr, error) {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		return r.LookupNetIP(ctx, "ip", host)
	}
}

// placeOf resolves --gossip-listen and --advertise. What the others are told is an
// address that a person gave, or the only one there is; never one that means "any".
// Where that is all that is wrong, what it returns beside the error says what is bound.
func (n network) placeOf(ctx context.Context, listen, advertise string) (place, error) {
	host, port, err := splitAddr(listen, DefaultPort)
	if err != nil {
		return place{}, fmt.Errorf("--gossip-listen: %w", err)
	}
	local, err := n.local()
	if err != nil {
		return place{}, fmt.Errorf("addresses of this host: %w", err)
	}
	reachable := slices.DeleteFunc(unmapped(local), func(a netip.Addr) bool { return a.IsLoopback() || !a.IsGlobalUnicast() })
	var ip netip.Addr
	switch host {
	case "":
		ip = netip.IPv6Unspecified()
	case "localhost":
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	default:
		found, err := n.addresses(ctx, host)
		if err != nil {
			return place{}, fmt.Errorf("--gossip-listen %s: %w", listen, err)
		}
		ip = found[0]
		for _, a := range found { // of a name's addresses, one that is here
			if slices.Contains(unmapped(local), a) {
				ip = a
				break
			}
		}
	}
	if ip.Zone() != "" {
		return place{}, fmt.Errorf("--gossip-listen %s: an address of one link means nothing to the others", listen)
	}
	p := place{bind: netip.AddrPortFrom(ip, port), wide: !ip.IsLoopback()}
	switch {
	case advertise != "":
		if p.advertise, err = n.advertised(ctx, advertise); err != nil {
			return p, fmt.Errorf("--advertise %s: %w", advertise, err)
		}
	case !ip.IsUnspecified():
		p.advertise = netip.AddrPortFrom(ip, 0)
	default:
		if ip.Is4() {
			reachable = slices.DeleteFunc(reachable, netip.Addr.Is6)
		}
		if len(reachable) != 1 {
			return p, fmt.Errorf("--gossip-listen %s listens on every address, and the others must be told one: give --advertise HOST, or an address to --gossip-listen; this host has %s",
				listen, listOf(reachable))
		}
		p.advertise, p.chosen = netip.AddrPortFrom(reachable[0], 0), true
	}
	p.others = slices.DeleteFunc(reachable, func(a netip.Addr) bool { return a == p.advertise.Addr() })
	return p, nil
}

func (n network) advertised(ctx context.Context, advertise string) (netip.AddrPort, error) {
	host, port, err := splitAddr(advertise, 0)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if host == "" {
		return netip.AddrPort{}, errors.New("it names no host")
	}
	found, err := n.addresses(ctx, host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ip := found[0]
	if ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("the others cannot reach anybody at %s", ip)
	}
	return netip.AddrPortFrom(ip, port), nil
}

// addresses are those of a host, IPv4 first; at least one.
func (n network) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	found, err := n.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has no address", host)
	}
	found = unmapped(found)
	slices.SortStableFunc(found, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return found, nil
}

func unmapped(addrs []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.Unmap())
	}
	return out
}

func listOf(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "none but loopback"
	}
	var texts []string
	for _, a := range addrs[:min(len(addrs), maxListed)] {
		texts = append(texts, a.String())
	}
	if more := len(addrs) - maxListed; more > 0 {
		texts = append(texts, fmt.Sprintf("%d more", more))
	}
	return strings.Join(texts, ", ")
}

// PeersReachable reports whether the others can connect to peers who listen at an
// address, given --gossip-listen and --advertise: its host is what they are told.
func PeersReachable(ctx context.Context, listen, advertise string, peers netip.Addr) error {
	return hostNetwork.peersReachable(ctx, listen, advertise, peers)
}

func (n network) peersReachable(ctx context.Context, listen, advertise string, peers netip.Addr) error {
	p, err := n.placeOf(ctx, listen, advertise)
	if err != nil {
		return nil // which New says
	}
	switch told := p.advertise.Addr(); {
	case peers.IsUnspecified(), peers == told, !p.wide:
		return nil
	case peers.IsLoopback():
		return fmt.Errorf("the others connect to %s, and --peer-listen is on loopback", told)
	case advertise == "":
		return fmt.Errorf("the others connect to %s, and --peer-listen is at %s", told, peers)
	}
	return nil
}

// say logs what the others are told, where that may not be what was meant.
func (p place) say(logger *slog.Logger, told string) {
	addr := p.advertise.Addr()
	switch {
	case addr.IsLoopback() && p.wide:
		logger.Warn("the advertised address is loopback, other members cannot reach it; --advertise gives another", "advertised", told)
	case !addr.IsPrivate() && !addr.IsLoopback() && !shared.Contains(addr):
		logger.Warn("the advertised address is public; --advertise gives another", "advertised", told)
	case p.chosen, len(p.others) > 0 && p.wide:
		logger.Info("address advertised to other members; --advertise gives another", "advertised", told, "others", listOf(p.others))
	}
}
