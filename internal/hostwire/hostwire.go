// Package hostwire is the stream between a host and an agent of its region: what they say
// to each other, how that is written, and both ends of the HTTP/2 request that carries it.
//
// A host opens one stream with a POST to Path, whose body goes up while the answer's body
// comes down. Both are frames: four bytes of length, most significant first, and so many
// bytes of JSON, an object whose one key is the kind of message.
//
// Older and newer versions work together: a kind that the reader does not know is skipped,
// and so is a key of a message. What a key is has its form for ever; what is new has a key of
// its own. Names that there may be more of (a version, a scheme, a state, a phase) are taken
// as they come, and whoever cannot follow one says so: no stream ends over it.
//
// It knows what a message may look like, and nothing of what follows from it.
package hostwire

import (
	"errors"
	"net/netip"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/manifest"
)

const (
	// Version of what is said here.
	Version = 1
	// Path is where an agent's listener for hosts takes streams.
	Path = "/fleet/stream"
	// MaxFrame bounds the JSON of one message in bytes. The longest are a goal
	// (MaxDocument, a third more in base64) and a hello of MaxServices failures.
	MaxFrame = 64 << 10
	// PingInterval is how often each side says that it is there.
	PingInterval = 15 * time.Second
	// LostAfter is how long a side may be silent before its stream is ended: it has
	// missed three pings.
	LostAfter = 45 * time.Second
)

// What a message may hold.
const (
	// MaxName bounds names of hosts and services, and an executionId, in bytes.
	MaxName = 63
	// MaxServices bounds the services of one host.
	MaxServices = 16
	// MaxLabels bounds a host's labels, MaxLabel each key and each value in bytes, a
	// zone's name too.
	MaxLabels, MaxLabel = 16, 63
	// MaxPeerName bounds a peer's name in the swarm in bytes: a member's with its ULID.
	MaxPeerName = 100
	// MaxError bounds why something failed, MaxOutput the last lines of what a hook has
	// printed, in bytes. Line and Tail make texts fit.
	MaxError, MaxOutput = 256, 1 << 10
	// MaxPeers bounds the peers in one message, MaxAgents the agents' addresses.
	MaxPeers, MaxAgents = 128, 16
	// MaxDocument bounds a signed document in bytes.
	MaxDocument = 24 << 10
	// MaxHolds bounds the builds that one host says it has in its hello.
	MaxHolds = 64
	// maxURL bounds an agent's address in bytes.
	maxURL = 300
)

// ErrInvalid says that a message is not what one may look like.
var ErrInvalid = errors.New("not a message of a fleet's stream")

// Message is one of *Hello, *State, *Holds (up), *Welcome, *Goal, *Beat, *Recipe,
// *Neighbours, *Leave (down) and *Ping (both ways).
type Message interface {
	// check reports what is wrong with it.
	check() error
}

// Hello is the first message of a host, and the whole of what it is and does: an agent
// that has just started knows the host by it.
type Hello struct {
	// Version is the sender's Version.
	Version int `json:"version"`
	// Host is its name, which does not change. Where TLS is spoken it is the
	// certificate's.
	Host string `json:"host"`
	// Start is another one for each start of the process, a ULID.
	Start string `json:"start"`
	// Zone is where in the region it is; empty where there are none.
	Zone   string            `json:"zone,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Program is its program's version; empty of one from before it was said.
	Program string `json:"program,omitempty"`
	// PeerPort is where its swarm listens, at the address that the stream comes from; 0
	// for a host that others can't connect to.
	PeerPort uint16 `json:"peerPort,omitempty"`
	// Services are what it runs, and how that stands. The agent sends goals of no others.
	Services []ServiceState `json:"services"`
	// Holds are the builds that it has whole or in part.
	Holds []Holds `json:"holds,omitempty"`
}

// ServiceState is how one service of a host stands.
type ServiceState struct {
	Service string `json:"service"`
	// Goal is the version of the goal that the host follows; 0 for none yet.
	Goal int64 `json:"goal"`
	// State is one of goal's states of a host.
	State string `json:"state"`
	// Running is the executionId that `current` names; empty for none.
	Running string `json:"running,omitempty"`
	// Wants is the executionId that the host holds, and switches to as soon as it has
	// leave; empty while it waits for none.
	Wants string `json:"wants,omitempty"`
	// Phase is where a switch is or has failed, Error why, Output what the hook has
	// printed last; Attempt counts the tries of this version.
	Phase   string `json:"phase,omitempty"`
	Error   string `json:"error,omitempty"`
	Output  string `json:"output,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
}

// State says that a service of the host stands otherwise than said before.
type State struct{ ServiceState }

// Holds says how many segments of a build a host has whole. It is said when all are
// there, and when the build was dropped (0).
type Holds struct {
	ExecutionID string `json:"executionId"`
	Segments    int    `json:"segments"`
	Whole       bool   `json:"whole,omitempty"`
}

// Peer is where a swarm listens.
type Peer struct {
	// Name is another one for each start of the process: the peer id of the swarm follows
	// from it. Of a host it is what NameOf says.
	Name string `json:"name"`
	// ID is a host's or an agent's name, which its certificate has where TLS is spoken.
	ID   string         `json:"id"`
	Addr netip.AddrPort `json:"addr"`
}

// NameOf is the name in the swarm of a host's start.
func NameOf(host, start string) string { return host + "." + start }

// Welcome answers a hello, and is sent again when it changes.
type Welcome struct {
	Version int    `json:"version"`
	Region  string `json:"region"`
	// Agents are the URLs of the region's agents for hosts, this one among them.
	Agents []string `json:"agents,omitempty"`
}

// Goal is a service's goal as it was signed.
type Goal struct {
	Wire []byte `json:"wire"`
}

// Beat is the seeder's beat as it was signed.
type Beat struct {
	Wire []byte `json:"wire"`
}

// Recipe says of which segments a build is made. It is a hint of the agent: what decides is
// the composite SHA-256 that the goal names. It grows while the build is on its way into the
// region, and is sent at most once a second.
type Recipe struct {
	ExecutionID string `json:"executionId"`
	Key         string `json:"key"`
	// Size is the build's, in bytes; PieceLength and PartLength those of its shape.
	Size        int64           `json:"size"`
	Scheme      manifest.Scheme `json:"scheme"`
	PieceLength int64           `json:"pieceLength"`
	PartLength  int64           `json:"partLength"`
	// From is the first segment that this message names: what was said before is not said
	// again. Receive puts it together, and returns recipes from 0 on.
	From int `json:"from,omitempty"`
	// InfoHashes are those of the segments known so far.
	InfoHashes announce.InfoHashes `json:"infohashes"`
	// Sealed says that no more will come.
	Sealed bool `json:"sealed,omitempty"`
}

// Neighbours are the hosts to trade with, all of them: a later message takes the place of
// an earlier one.
type Neighbours struct {
	Peers []Peer `json:"peers"`
	// Sources are where the region's agents hand builds out, for the few hosts that get them
	// there; the others get them from those.
	Sources []Peer `json:"sources,omitempty"`
}

// Leave lets the host switch a service to what this version of the goal has it run. It ends
// when Seconds have passed since it came and the switch has not begun, with the next version
// of the goal, and with the stream.
type Leave struct {
	Service string `json:"service"`
	Version int64  `json:"version"`
	Seconds int    `json:"seconds"`
}

// Ping says that the sender is there.
type Ping struct{}

// frame is the JSON of a message: one of these, or none that this version knows.
type frame struct {
	Hello      *Hello      `json:"hello,omitempty"`
	State      *State      `json:"state,omitempty"`
	Holds      *Holds      `json:"holds,omitempty"`
	Welcome    *Welcome    `json:"welcome,omitempty"`
	Goal       *Goal       `json:"goal,omitempty"`
	Beat       *Beat       `json:"beat,omitempty"`
	Recipe     *Recipe     `json:"recipe,omitempty"`
	Neighbours *Neighbours `json:"neighbours,omitempty"`
	Leave      *Leave      `json:"leave,omitempty"`
	Ping       *Ping       `json:"ping,omitempty"`
}
