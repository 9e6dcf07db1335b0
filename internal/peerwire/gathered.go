package peerwire

import (
	"net"
	"sync"
)

// bufferSize is how much is read at a time below TLS, and gathered before it is written, in
// bytes. TLS itself makes two calls for each of its records of 16 KiB.
const bufferSize = 256 << 10

// buffers are lent to connections on which bytes pass; an idle one has none.
var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// gathered is the connection below TLS: the records of a write go out in one call, and
// where much comes, much is read at a time.
type gathered struct {
	net.Conn

	// Of the one who reads: what came and was not taken yet, in the buffer that was lent
	// for it; whether the last read was full, so that there is more.
	buffer *[]byte
	rest   []byte
	full   bool

	// writing is held while something is written: TLS answers by itself, too.
	writing   sync.Mutex
	gathering bool
	out       *[]byte
	length    int   // of what is gathered
	failed    error // of a write below; nothing can follow it
}

func (g *gathered) Read(b []byte) (int, error) {
	if len(g.rest) == 0 {
		if !g.full || len(b) >= bufferSize {
			n, err := g.Conn.Read(b)
			g.full = n == len(b)
			return n, err
		}
		g.buffer = buffers.Get().(*[]byte)
		n, err := g.Conn.Read(*g.buffer)
		g.rest, g.full = (*g.buffer)[:n], n == bufferSize
		if err != nil {
			g.giveBack()
			return 0, err
		}
	}
	n := copy(b, g.rest)
	if g.rest = g.rest[n:]; len(g.rest) == 0 {
		g.giveBack()
	}
	return n, nil
}

func (g *gathered) giveBack() {
	if g.buffer != nil {
		buffers.Put(g.buffer)
	}
	g.buffer, g.rest = nil, nil
}

// gather keeps back what is written until flush.
func (g *gathered) gather() {
	g.writing.Lock()
	defer g.writing.Unlock()
	g.gathering = true
}

// flush writes what was kept back.
func (g *gathered) flush() error {
	g.writing.Lock()
	defer g.writing.Unlock()
	g.gathering = false
	g.send()
	if g.out != nil {
		buffers.Put(g.out)
		g.out = nil
	}
	return g.failed
}

func (g *gathered) Write(b []byte) (int, error) {
	g.writing.Lock()
	defer g.writing.Unlock()
	if g.failed != nil {
		return 0, g.failed
	}
	if !g.gathering {
		return g.Conn.Write(b)
	}
	if g.out == nil {
		g.out = buffers.Get().(*[]byte)
	}
	for rest := b; len(rest) > 0; {
		n := copy((*g.out)[g.length:], rest)
		g.length += n
		rest = rest[n:]
		if g.length == bufferSize {
			g.send()
		}
	}
	return len(b), g.failed
}

// send writes what is gathered. The caller holds writing.
func (g *gathered) send() {
	if g.length > 0 && g.failed == nil {
		_, g.failed = g.Conn.Write((*g.out)[:g.length])
	}
	g.length = 0
}
