// Package webrtc takes the place of github.com/pion/webrtc, which anacrolix/torrent
// imports for peers in browsers: sixteen modules that parse what comes from the network.
//
// Landfall never speaks WebRTC: the swarm package switches it off, and where a connection
// could begin, NewPeerConnection, there is an error. See docs/decisions/0002-no-utp.md.
package webrtc

import (
	"errors"

	"github.com/pion/datachannel"
	"github.com/pion/logging"
)

var errNotBuiltIn = errors.New("WebRTC is not built into this binary")

// API makes connections, or would.
type API struct{}

// NewAPI takes options and ignores them.
func NewAPI(...func(*API)) *API { return &API{} }

// SettingEngine is what is set before NewAPI.
type SettingEngine struct {
	LoggerFactory interface {
		NewLogger(scope string) logging.LeveledLogger
	}
}

// DetachDataChannels changes nothing.
func (*SettingEngine) DetachDataChannels() {}

// WithSettingEngine is an option of NewAPI.
func WithSettingEngine(SettingEngine) func(*API) { return func(*API) {} }

// NewPeerConnection always fails.
func (*API) NewPeerConnection(Configuration) (*PeerConnection, error) { return nil, errNotBuiltIn }

// Configuration of a connection.
type Configuration struct{ ICEServers []ICEServer }

// ICEServer is one of the servers that peers find each other by.
type ICEServer struct {
	URLs       []string
	Username   string
	Credential any
}

// SessionDescription is an offer, or the answer to one.
type SessionDescription struct {
	Type string `json:"type"`
	SDP  string `json:"sdp"`
}

// StatsReport has nothing to report.
type StatsReport map[string]any

// PeerConnectionState is that of a connection.
type PeerConnectionState int

// PeerConnectionStateClosed is the only one there is.
const PeerConnectionStateClosed PeerConnectionState = 0

func (PeerConnectionState) String() string { return "closed" }

// PeerConnection has no values: NewPeerConnection always fails.
type PeerConnection struct{}

// What follows is what anacrolix/torrent calls on one, and is never reached.

func (*PeerConnection) Close() error                                      { return nil }
func (*PeerConnection) ConnectionState() PeerConnectionState              { return PeerConnectionStateClosed }
func (*PeerConnection) OnConnectionStateChange(func(PeerConnectionState)) {}
func (*PeerConnection) OnDataChannel(func(*DataChannel))                  {}
func (*PeerConnection) SetLocalDescription(SessionDescription) error      { return errNotBuiltIn }
func (*PeerConnection) SetRemoteDescription(SessionDescription) error     { return errNotBuiltIn }
func (*PeerConnection) LocalDescription() *SessionDescription             { return nil }
func (*PeerConnection) GetStats() StatsReport                             { return nil }
func (*PeerConnection) SCTP() *SCTPTransport                              { return nil }

func (*PeerConnection) CreateOffer(any) (SessionDescription, error) {
	return SessionDescription{}, errNotBuiltIn
}

func (*PeerConnection) CreateAnswer(any) (SessionDescription, error) {
	return SessionDescription{}, errNotBuiltIn
}

func (*PeerConnection) CreateDataChannel(string, any) (*DataChannel, error) {
	return nil, errNotBuiltIn
}

// GatheringCompletePromise is closed already.
func GatheringCompletePromise(*PeerConnection) <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

// DataChannelState is that of a channel.
type DataChannelState int

// DataChannelStateClosed is the only one there is.
const DataChannelStateClosed DataChannelState = 0

// DataChannel has no values, either.
type DataChannel struct{}

func (*DataChannel) Close() error                                 { return nil }
func (*DataChannel) ReadyState() DataChannelState                 { return DataChannelStateClosed }
func (*DataChannel) OnOpen(func())                                {}
func (*DataChannel) OnClose(func())                               {}
func (*DataChannel) Detach() (datachannel.ReadWriteCloser, error) { return nil, errNotBuiltIn }

// SCTPTransport, DTLSTransport and ICETransport lie below a connection.
type SCTPTransport struct{}

func (*SCTPTransport) Transport() *DTLSTransport { return nil }

// DTLSTransport is one of them.
type DTLSTransport struct{}

func (*DTLSTransport) ICETransport() *ICETransport { return nil }

// ICETransport is one of them.
type ICETransport struct{}

// GetSelectedCandidatePair always fails.
func (*ICETransport) GetSelectedCandidatePair() (*ICECandidatePair, error) {
	return nil, errNotBuiltIn
}

// ICECandidatePair is the two ends of a connection.
type ICECandidatePair struct{ Local, Remote *ICECandidate }

// ICECandidate is one of them.
type ICECandidate struct {
	Address string
	Port    uint16
}
