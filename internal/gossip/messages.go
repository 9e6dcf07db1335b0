package gossip

import (
	"context"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/call"
)

const (
	// maxMessages bounds what waits to be sent to one seeder: the progress of hundreds
	// of builds. What comes beyond that is old when it arrives, and dropped.
	maxMessages = 64
	// messagesIdle is how long a seeder's queue outlives its last message.
	messagesIdle = time.Minute
)

// messages sends progress to seeders over TLS: a queue and a goroutine for each, so that
// nobody waits for one that does not answer. Seeders are bounded by maxMembers.
type messages struct {
	ctx    context.Context
	client *call.Client
	failed func(addr string, err error)
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	queues map[string]chan []byte
}

func newMessages(ctx context.Context, client *call.Client, failed func(string, error)) *messages {
	return &messages{ctx: ctx, client: client, failed: failed, queues: make(map[string]chan []byte)}
}

// send queues a message for the seeder at an address. It does not block.
func (m *messages) send(addr string, message []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	q := m.queues[addr]
	if q == nil {
		q = make(chan []byte, maxMessages)
		m.queues[addr] = q
		m.wg.Go(func() { m.work(addr, q) })
	}
	select {
	case q <- message:
	default:
	}
}

func (m *messages) work(addr string, q chan []byte) {
	timer := time.NewTimer(messagesIdle)
	defer timer.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case message := <-q:
			if err := m.client.Send(m.ctx, addr, message); err != nil && m.ctx.Err() == nil {
				m.failed(addr, err)
			}
			timer.Reset(messagesIdle)
		case <-timer.C:
			m.mu.Lock()
			if len(q) == 0 {
				delete(m.queues, addr)
				m.mu.Unlock()
				return
			}
			m.mu.Unlock()
			timer.Reset(messagesIdle)
		}
	}
}

// close waits for what is under way; the context has ended.
func (m *messages) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.wg.Wait()
}
