//go:build linux

package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxHeld bounds a body that is read before its call goes on, in bytes: parts are
// 5 MiB here.
const maxHeld = 64 << 20

// Gate is one member's way to S3 and DynamoDB: a proxy that counts, and makes the
// faults that it is told to. It keeps the Host header, so that signatures stay
// right.
type Gate struct {
	name  string
	http  *http.Server
	proxy *httputil.ReverseProxy
	wire  *wire
	log   *os.File
	done  chan struct{}
	open  atomic.Int64 // calls under way

	mu       sync.Mutex
	rng      *rand.Rand
	rules    []*Rule
	troubled time.Time // when a fault was last possible
	pulled   map[[2]string]int64
	parts    map[PartID]int
	ops      map[string]int
	noted    map[string]bool // uploads that the member has told the table of
}

// PartID names one part of one multipart upload.
type PartID struct{ Bucket, Key, UploadID, Part string }

// Rule is a fault and the calls that it meets. The first rule that fits a call
// counts.
type Rule struct {
	// When chooses the calls; nil means all.
	When func(Call) bool
	// Chance is how likely a call meets the fault; 0 means always.
	Chance float64
	// Times is how many calls meet it at most; 0 means any number.
	Times int
	Do    Fault

	gate   *Gate
	met    int
	healed chan struct{}
}

// exchange is one call on its way.
type exchange struct {
	Call
	gate *Gate
	w    http.ResponseWriter
	r    *http.Request
	conn *net.TCPConn
	// healed is closed when the fault is taken away.
	healed <-chan struct{}
	// inAnswer changes the store's answer; nil leaves it.
	inAnswer func(*http.Response) error
}

type connKey struct{}
type exchangeKey struct{}

// errCut ends a body where a fault wants it to.
var errCut = errors.New("cut by the gate")

// newGate serves a member at listen until close.
func newGate(name, listen, behind, logFile string, seed uint64) (_ *Gate, err error) {
	g := &Gate{
		name:   name,
		rng:    rand.New(rand.NewPCG(seed, 0)),
		pulled: make(map[[2]string]int64),
		parts:  make(map[PartID]int),
		ops:    make(map[string]int),
		noted:  make(map[string]bool),
		done:   make(chan struct{}),
	}
	if g.log, err = os.Create(logFile); err != nil {
		return nil, err
	}
	quiet := log.New(io.Discard, "", 0)
	g.proxy = &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: cloudAddr})
			p.Out.Host = p.In.Host
		},
		Transport:      &http.Transport{MaxIdleConnsPerHost: 32, DisableCompression: true},
		ModifyResponse: g.answered,
		// There is nobody to tell: the connection ends.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     quiet,
	}
	g.http = &http.Server{
		Handler:     g,
		ErrorLog:    quiet,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	l, err := net.Listen("tcp", behind)
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(g.done)
		_ = g.http.Serve(l) // until close
	}()
	if g.wire, err = newWire(name, listen, behind); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *Gate) close() {
	g.Heal()
	if g.wire != nil {
		g.wire.close()
	}
	g.http.Close()
	<-g.done
	g.proxy.Transport.(*http.Transport).CloseIdleConnections()
	g.log.Close()
}

// Break makes a fault, until it is healed, alone or with all of the gate's.
func (g *Gate) Break(r Rule) *Rule {
	r.gate, r.healed = g, make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rules = append(g.rules, &r)
	g.troubled = time.Now()
	return &r
}

// Heal ends the fault. Again it does nothing.
func (r *Rule) Heal() { r.gate.heal(r) }

// Met is how many calls have met the fault so far.
func (r *Rule) Met() int {
	r.gate.mu.Lock()
	defer r.gate.mu.Unlock()
	return r.met
}

func (g *Gate) heal(rule *Rule) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.troubled = time.Now()
	if i := slices.Index(g.rules, rule); i >= 0 {
		g.rules = slices.Delete(g.rules, i, i+1)
		close(rule.healed)
	}
}

// Heal ends all faults of the gate, those of its wire too.
func (g *Gate) Heal() {
	g.mu.Lock()
	rules := slices.Clone(g.rules)
	g.mu.Unlock()
	for _, r := range rules {
		g.heal(r)
	}
	if g.wire != nil {
		g.wire.heal()
	}
}

// Troubled reports whether a call may have met a fault since then.
func (g *Gate) Troubled(since time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.rules) > 0 || g.troubled.After(since) || g.wire.troubledSince(since)
}

// Pulled is how many bytes of an object the member has read.
func (g *Gate) Pulled(bucket, key string) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pulled[[2]string{bucket, key}]
}

// Ops is how many calls of an operation were answered with success.
func (g *Gate) Ops(op string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ops[op]
}

// Open is how many calls are under way. Those of a process that was killed end by
// themselves, but not at that moment.
func (g *Gate) Open() int { return int(g.open.Load()) }

var uploadID = regexp.MustCompile(`"uploadId":\{"S":"([^"]+)"`)

func (g *Gate) note(body []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, found := range uploadID.FindAllSubmatch(body, -1) {
		g.noted[string(found[1])] = true
	}
}

// Noted reports whether the member has told the table of an upload, or has tried to.
func (g *Gate) Noted(uploadID string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.noted[uploadID]
}

// partsTaken adds to sum how often the store took each part.
func (g *Gate) partsTaken(sum map[PartID]int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p, n := range g.parts {
		sum[p] += n
	}
}

// fault finds what a call meets.
func (g *Gate) fault(c Call) (Fault, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.rules {
		if r.When != nil && !r.When(c) || r.Times > 0 && r.met >= r.Times || r.Chance > 0 && g.rng.Float64() >= r.Chance {
			continue
		}
		r.met++
		g.troubled = time.Now()
		return r.Do, r.healed
	}
	return nil, nil
}

func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.open.Add(1)
	defer g.open.Add(-1)
	x := &exchange{Call: parse(r), gate: g, w: w}
	x.conn, _ = r.Context().Value(connKey{}).(*net.TCPConn)
	x.r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	if !x.S3() {
		body, err := io.ReadAll(io.LimitReader(r.Body, maxHeld))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		x.Body = body
		g.note(body)
		x.r.Body = io.NopCloser(bytes.NewReader(body))
	}
	do, healed := g.fault(x.Call)
	if do == nil {
		x.forward()
		return
	}
	x.healed = healed
	x.note("fault")
	do(x)
}

// forward brings the call to the store and the answer back.
func (x *exchange) forward() { x.gate.proxy.ServeHTTP(x.w, x.r) }

// answered sees the store's answer to a call before the member does.
func (g *Gate) answered(res *http.Response) error {
	x := res.Request.Context().Value(exchangeKey{}).(*exchange)
	x.note(res.Status)
	if x.inAnswer != nil {
		if err := x.inAnswer(res); err != nil {
			return err
		}
	}
	if res.StatusCode/100 != 2 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ops[x.Op]++
	switch x.Op {
	case "UploadPart":
		g.parts[PartID{x.Bucket, x.Key, x.UploadID, x.Part}]++
	case "GetObject":
		res.Body = &countedBody{res.Body, func(n int) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.pulled[[2]string{x.Bucket, x.Key}] += int64(n)
		}}
	}
	return nil
}

// note writes a line to the gate's log, for whoever has to find out what
// happened.
func (x *exchange) note(what string) {
	fmt.Fprintln(x.gate.log, time.Now().Format(time.RFC3339Nano), x.Op, x.Bucket, x.Key, x.UploadID, x.Part, what)
}

// countedBody tells how many bytes were read.
type countedBody struct {
	io.ReadCloser
	read func(n int)
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.read(n)
	return n, err
}
