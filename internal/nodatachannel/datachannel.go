// Package datachannel takes the place of github.com/pion/datachannel: see
// internal/nowebrtc.
package datachannel

import "io"

// ReadWriteCloser is what anacrolix/torrent expects of a data channel.
type ReadWriteCloser = io.ReadWriteCloser
