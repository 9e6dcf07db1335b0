package gossip

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

// isFleet reports whether a message is one about the fleet.
func isFleet(kind byte) bool {
	switch kind {
	case kindGoals, kindWant, kindCounts, kindRosterOf, kindRoster, kindHostsOf, kindHosts, kindNear, kindTally:
		return true
	}
	return false
}

// mostOf bounds a message of a kind in bytes.
func mostOf(kind byte) int {
	switch {
	case kind == kindRoster:
		return maxRoster
	case isFleet(kind):
		return maxFleet
	}
	return maxMessage
}

// packFleet makes a message about the fleet.
func packFleet(kind byte, sender string, body []byte) []byte {
	out := append(make([]byte, 0, 2+len(sender)+len(body)), kind, byte(len(sender)))
	return append(append(out, sender...), body...)
}

// openFleet takes one apart. Its body is not copied.
func openFleet(message []byte) (kind byte, sender string, body []byte, err error) {
	if len(message) < 2 || !isFleet(message[0]) {
		return 0, "", nil, errors.New("no message about the fleet")
	}
	kind = message[0]
	if len(message) > mostOf(kind) {
		return 0, "", nil, fmt.Errorf("message of %d bytes, at most %d", len(message), mostOf(kind))
	}
	n := int(message[1])
	if len(message) < 2+n {
		return 0, "", nil, errors.New("the sender's name is cut short")
	}
	return kind, string(message[2 : 2+n]), message[2+n:], nil
}

// HostsQuestion asks for hosts of a service.
type HostsQuestion struct {
	Service string `json:"s"`
	State   string `json:"t,omitempty"` // empty for all
	Limit   int    `json:"l"`           // 1 to MaxHosts
	ID      uint64 `json:"i"`
	// Region has its agents alone be asked; empty for all.
	Region string `json:"-"`
	// After is the host after whose place they are to begin; the zero value for the first.
	After HostPlace `json:"a,omitzero"`
}

// In is what After means to an agent of a region, all of whose hosts are of that region: some
// of them stand after that place, and those after the host that it names; all where it names
// none.
func (q *HostsQuestion) In(region string) (after string, some bool) {
	if q.After.Region == region {
		return q.After.Host, true
	}
	return "", q.After.Region < region
}

func (q *HostsQuestion) check() error {
	if err := goal.CheckService(q.Service); err != nil {
		return err
	}
	if q.State != "" && !slices.Contains(api.HostStates(), q.State) {
		return fmt.Errorf("state %.40q", q.State)
	}
	if q.Limit < 1 || q.Limit > MaxHosts {
		return fmt.Errorf("limit %d, expected 1 to %d", q.Limit, MaxHosts)
	}
	return nil
}

// HostsAnswer is what one agent knows of a service's hosts.
type HostsAnswer struct {
	From Member // empty at who answers
	// All is how many there are in the state asked for, wherever they stand; Hosts those after
	// the place asked for, in order, as far as they fit; Rest how many stand after the last.
	All   int
	Hosts []api.HostView
	Rest  int
}

type hostsAnswer struct {
	ID    uint64         `json:"i"`
	All   int            `json:"a"`
	Hosts []api.HostView `json:"h"`
	// Rest is nil of a program from before there was an After, which answers with the first.
	Rest *int `json:"r,omitempty"`
}

// rest is how many hosts stand after the last.
func (a *hostsAnswer) rest() int {
	if a.Rest == nil {
		return max(a.All-len(a.Hosts), 0)
	}
	return *a.Rest
}

func decodeHosts(body []byte) (a hostsAnswer, err error) {
	if err := json.Unmarshal(body, &a); err != nil {
		return a, fmt.Errorf("hosts: %w", err)
	}
	if rest := a.rest(); min(a.All, rest) < 0 || max(a.All, rest) > goal.MaxHostsOfAgent || len(a.Hosts) > MaxHosts {
		return a, fmt.Errorf("hosts: %d of %d, and %d more", len(a.Hosts), a.All, rest)
	}
	for i := range a.Hosts {
		h := &a.Hosts[i]
		if err := goal.CheckName("host", h.Host); err != nil {
			return a, err
		}
		if !slices.Contains(api.HostStates(), h.State) {
			return a, fmt.Errorf("hosts: %s is %.40q", h.Host, h.State)
		}
		if max(len(h.Zone), len(h.Program), len(h.Running), len(h.Phase), len(h.Error)) > maxHostText || len(h.Output) > goal.MaxOutput {
			return a, fmt.Errorf("hosts: what is said of %s is too long", h.Host)
		}
		h.Key = "" // which is not an agent's to say
		if len(h.Labels) > hostwire.MaxLabels {
			return a, fmt.Errorf("hosts: %d labels of %s, at most %d", len(h.Labels), h.Host, hostwire.MaxLabels)
		}
		for k, v := range h.Labels {
			if max(len(k), len(v)) > hostwire.MaxLabel {
				return a, fmt.Errorf("hosts: a label of %s is too long", h.Host)
			}
		}
	}
	return a, nil
}

func decodeCounts(body []byte) (list []goal.Counts, err error) {
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("counts: %w", err)
	}
	if len(list) > goal.MaxServices {
		return nil, fmt.Errorf("counts of %d services, at most %d", len(list), goal.MaxServices)
	}
	for i := range list {
		if err := list[i].Check(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func decodeWant(body []byte) (names []string, err error) {
	if err := json.Unmarshal(body, &names); err != nil {
		return nil, fmt.Errorf("wanted goals: %w", err)
	}
	if len(names) > goal.MaxServices+1 {
		return nil, fmt.Errorf("%d goals are wanted, at most %d", len(names), goal.MaxServices+1)
	}
	return names, nil
}

// encodeRoster writes a service and the hashes of its hosts.
func encodeRoster(service string, hashes []uint32) []byte {
	out := append(make([]byte, 0, 1+len(service)+4*len(hashes)), byte(len(service)))
	out = append(out, service...)
	for _, h := range hashes {
		out = binary.BigEndian.AppendUint32(out, h)
	}
	return out
}

func decodeRoster(body []byte) (service string, hashes []uint32, err error) {
	if len(body) < 1 || len(body) < 1+int(body[0]) {
		return "", nil, errors.New("roster: cut short")
	}
	service, body = string(body[1:1+body[0]]), body[1+body[0]:]
	if err := goal.CheckService(service); err != nil {
		return "", nil, err
	}
	if len(body)%4 != 0 || len(body)/4 > MaxRoster {
		return "", nil, fmt.Errorf("roster of %s: %d bytes", service, len(body))
	}
	hashes = make([]uint32, 0, len(body)/4)
	for ; len(body) > 0; body = body[4:] {
		h := binary.BigEndian.Uint32(body)
		if n := len(hashes); n > 0 && hashes[n-1] > h {
			return "", nil, fmt.Errorf("roster of %s is not in order", service)
		}
		hashes = append(hashes, h)
	}
	return service, hashes, nil
}

// eachFrame calls f with each frame of goals, until it returns false.
func eachFrame(body []byte, f func(wire []byte) bool) error {
	for len(body) > 0 {
		if len(body) < 2 {
			return errors.New("goals: cut short")
		}
		n := int(binary.BigEndian.Uint16(body))
		if body = body[2:]; n == 0 || n > len(body) || n > goal.MaxLength {
			return errors.New("goals: cut short, or too long")
		}
		if !f(body[:n:n]) {
			return nil
		}
		body = body[n:]
	}
	return nil
}

// encodeHosts leaves out the last hosts, those that a message has no room for.
func encodeHosts(a hostsAnswer) ([]byte, error) {
	n, room := 0, maxFleet-2-2*maxName-128 // kind, sender, and all but the hosts
	for ; n < len(a.Hosts); n++ {
		b, err := compact(&a.Hosts[n])
		if err != nil {
			return nil, err
		}
		if room -= len(b) + 1; room < 0 {
			break
		}
	}
	if left := len(a.Hosts) - n; left > 0 && a.Rest != nil {
		rest := *a.Rest + left
		a.Rest = &rest
	}
	a.Hosts = a.Hosts[:n]
	return compact(&a)
}

// compact is JSON as it is, for no page: each <, > and & takes one byte, not six.
func compact(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
