// Package notify tells people that a build did not reach a destination: each
// notice goes to a webhook, to an SNS topic, or to both.
//
// There are two kinds of notices: a destination has failed, and a service's deployment has
// stopped or gone back. The execution as a whole gets none, for it says nothing new: an execution is FAILED when a destination
// has failed and none is pending, so its failure was told when that destination's
// was, with the buckets that had landed, were pending and had failed by then. A
// notice that names no pending bucket is the one that ended the execution; where
// others were pending, the execution ends FAILED unless this one arrives late.
//
// Notices wait in memory, in a queue for each receiver, so that one which hangs
// holds up neither the seeder nor the other. When the seeder ends, what waits gets
// one more try within lastChance, for nobody tells it after that: to the next
// start these destinations have failed already. What is lost is logged; the table
// has every failure, and is the place to look. A receiver may see a notice twice,
// when its answer to the first was lost.
package notify

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"

	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// queueSize is how many notices wait for one receiver; more are dropped.
	// One build that nobody gets is up to 64 of them, and a region that goes
	// down fails every build under way.
	queueSize = 1024
	// maxTries bounds how often a notice is sent to one receiver.
	maxTries = 3
	// tryTimeout bounds one try; a notice is a few kilobytes.
	tryTimeout = 5 * time.Second
	// firstBackoff and maxBackoff bound the wait between tries; it doubles, with
	// full jitter.
	firstBackoff, maxBackoff = 2 * time.Second, 10 * time.Second
	// lastChance is how long all that waits may still take when the seeder ends.
	lastChance = 2 * time.Second
)

// Config says where notices go. At least one of Webhook and Topic must be set.
type Config struct {
	// Webhook is what ParseWebhook made of its URL; nil for none.
	Webhook *url.URL
	// Topic is what ParseTopic made of its ARN; nil for none.
	Topic *arn.ARN
	// AWS reaches the topic, in the region that the ARN names.
	AWS    aws.Config
	Logger *slog.Logger
}

// Notifier sends notices. It is safe for concurrent use.
type Notifier struct {
	logger *slog.Logger
	boxes  []*outbox

	mu    sync.Mutex
	ended bool // the queues are closed

	// These are counted for each receiver, once the log has said so.
	sent, failed, dropped atomic.Int64

	// The constants of these names; tests have less time.
	tryTimeout, firstBackoff, lastChance time.Duration
}

// receiver is where notices go.
type receiver interface {
	// send tries once; its error names no secret.
	send(ctx context.Context, m *message) error
	// name is how logs call it, without secrets.
	name() string
	// close frees connections that are kept.
	close()
}

// message is a notice on its way.
type message struct {
	Notice
	body []byte // the notice as JSON
}

// New connects to nobody yet.
func New(cfg Config) (*Notifier, error) {
	n := &Notifier{logger: cfg.Logger, tryTimeout: tryTimeout, firstBackoff: firstBackoff, lastChance: lastChance}
	if cfg.Webhook != nil {
		n.add(newWebhook(cfg.Webhook))
	}
	if cfg.Topic != nil {
		n.add(newTopic(cfg.AWS, cfg.Topic))
	}
	if len(n.boxes) == 0 {
		return nil, errors.New("notices have no receiver: neither a webhook nor a topic")
	}
	return n, nil
}

func (n *Notifier) add(r receiver) {
	n.boxes = append(n.boxes, &outbox{Notifier: n, receiver: r, queue: make(chan *message, queueSize)})
}

// Send queues a notice and returns at once. One that finds a queue full, or comes
// when Run is over, is dropped and logged.
func (n *Notifier) Send(notice Notice) {
	m := &message{notice, notice.encode()}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range n.boxes {
		if n.ended {
			b.drop(m, "the seeder is ending")
			continue
		}
		select {
		case b.queue <- m:
		default:
			b.drop(m, "too many are waiting")
		}
	}
}

// Run sends what is queued until ctx ends, and at most lastChance longer. It is
// called once.
func (n *Notifier) Run(ctx context.Context) error {
	sending, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var group sync.WaitGroup
	for _, b := range n.boxes {
		group.Go(func() { b.run(ctx, sending) })
	}
	<-ctx.Done()
	defer time.AfterFunc(n.lastChance, stop).Stop()
	n.end()
	group.Wait()
	return nil
}

// end closes the queues.
func (n *Notifier) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = true
	for _, b := range n.boxes {
		close(b.queue)
	}
}

// outbox is what waits for one receiver.
type outbox struct {
	*Notifier
	receiver
	queue chan *message
}

// run sends until the queue is closed and empty, or sending ends: what is left
// then is lost.
func (b *outbox) run(ctx, sending context.Context) {
	defer b.close()
	lost := 0
	for m := range b.queue {
		if sending.Err() != nil {
			lost++
			continue
		}
		b.deliver(ctx, sending, m)
	}
	if lost > 0 {
		b.logger.Error("notices lost at the end", "receiver", b.name(), "notices", lost)
		b.dropped.Add(int64(lost))
	}
}

// deliver sends a message, at most maxTries times. Of these at most one begins
// when ctx is over, without a wait before it.
func (b *outbox) deliver(ctx, sending context.Context, m *message) {
	logger := b.log(m)
	for try := 1; ; try++ {
		last := try == maxTries || ctx.Err() != nil
		err := b.try(sending, m)
		if err == nil {
			b.sent.Add(1)
			return
		}
		if last || settled(err) || sending.Err() != nil {
			logger.Error("notice not sent", "tries", try, "error", err)
			b.failed.Add(1)
			return
		}
		delay := retry.Policy{First: b.firstBackoff, Max: maxBackoff}.Delay(try)
		logger.Warn("notice not sent, trying again", "try", try, "error", err, "retryIn", delay.Round(time.Millisecond).String())
		retry.Wait(ctx, delay)
	}
}

func (b *outbox) try(ctx context.Context, m *message) error {
	ctx, cancel := context.WithTimeout(ctx, b.tryTimeout)
	defer cancel()
	return b.send(ctx, m)
}

func (b *outbox) drop(m *message, why string) {
	b.log(m).Error("notice dropped", "error", why)
	b.dropped.Add(1)
}

func (b *outbox) log(m *message) *slog.Logger {
	return b.logger.With("key", m.Key, "executionId", m.ExecutionID, "bucket", m.Bucket, "receiver", b.name())
}

// refused is an answer that says no.
type refused struct {
	error
	code int // HTTP status
	// throttled: it may say yes later, whatever the status.
	throttled bool
}

func (r refused) Unwrap() error { return r.error }

// settled reports whether another try would get the same answer: the notice, or
// where it is sent, is wrong.
func settled(err error) bool {
	var r refused
	if !errors.As(err, &r) || r.throttled {
		return false
	}
	switch r.code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	}
	return r.code >= 300 && r.code < 500
}
