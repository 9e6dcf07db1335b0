package hostwire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// headerLength is how long the length before a frame's JSON is, in bytes.
const headerLength = 4

// Encoded is a message as it goes over the wire, so that what many hosts get is written
// once. Nobody changes it.
type Encoded []byte

// Encode writes a message. The error wraps ErrInvalid where the other side would refuse it.
func Encode(m Message) (Encoded, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	var f frame
	switch m := m.(type) {
	case *Hello:
		f.Hello = m
	case *State:
		f.State = m
	case *Holds:
		f.Holds = m
	case *Welcome:
		f.Welcome = m
	case *Goal:
		f.Goal = m
	case *Beat:
		f.Beat = m
	case *Recipe:
		f.Recipe = m
	case *Neighbours:
		f.Neighbours = m
	case *Leave:
		f.Leave = m
	case *Ping:
		f.Ping = m
	}
	b := bytes.NewBuffer(make([]byte, headerLength, 256))
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false) // which would make texts six times as long
	if err := e.Encode(f); err != nil {
		return nil, fmt.Errorf("writing a message of a fleet's stream: %w", err)
	}
	b.Truncate(b.Len() - 1) // the newline
	length := b.Len() - headerLength
	if length > MaxFrame {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrInvalid, length, MaxFrame)
	}
	binary.BigEndian.PutUint32(b.Bytes(), uint32(length))
	return b.Bytes(), nil
}

// Read reads one message, at most MaxFrame bytes of it; nil for one of a kind that this
// version does not know. The error is io.EOF when the stream has ended before it, and wraps
// ErrInvalid for what is no message.
func Read(r io.Reader) (m Message, n int, err error) {
	var header [headerLength]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, 0, err
	}
	length := binary.BigEndian.Uint32(header[:])
	if length > MaxFrame {
		return nil, 0, fmt.Errorf("%w: %d bytes, at most %d", ErrInvalid, length, MaxFrame)
	}
	// Who says that much will come has to send it first: the buffer grows with it.
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(length)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, 0, err
	}
	m, err = decode(b.Bytes())
	return m, headerLength + int(length), err
}

func decode(b []byte) (Message, error) {
	var f frame
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var m Message
	several := false
	add := func(there bool, found Message) {
		if there {
			m, several = found, m != nil
		}
	}
	add(f.Hello != nil, f.Hello)
	add(f.State != nil, f.State)
	add(f.Holds != nil, f.Holds)
	add(f.Welcome != nil, f.Welcome)
	add(f.Goal != nil, f.Goal)
	add(f.Beat != nil, f.Beat)
	add(f.Recipe != nil, f.Recipe)
	add(f.Neighbours != nil, f.Neighbours)
	add(f.Leave != nil, f.Leave)
	add(f.Ping != nil, f.Ping)
	switch {
	case several:
		return nil, fmt.Errorf("%w: two messages in one frame", ErrInvalid)
	case m == nil:
		return nil, nil
	}
	return m, m.check()
}
