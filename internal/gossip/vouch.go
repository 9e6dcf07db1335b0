package gossip

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/identity"
)

// Who is a member, where members have certificates. A member's meta carries the
// fingerprint of its certificate and a signature by that certificate's key over its name,
// its address and the rest of the meta; the certificate itself does not fit there.
// A member whose certificate is not known is refused for now, asked for it over TLS, and
// taken in when it is heard of again: memberlist must never wait.

const (
	// memberPurpose is what a meta's signature is for.
	memberPurpose = "member"
	// maxKnown bounds the certificates that are kept, those of members and of who has
	// connected of late.
	maxKnown = 4 * maxMembers
	// learnAgain is how long who has not answered is not asked again for its certificate.
	learnAgain = 5 * time.Second
	// sweepInterval is how often the members' certificates are judged again.
	sweepInterval = 10 * time.Second
	// maxServesFile bounds the file of what regions serve, in bytes.
	maxServesFile = 2 * call.MaxHello
	// maxMetaSignature is what a signature adds to a meta, in bytes: its field, and the
	// longest in base64.
	maxMetaSignature = len(signatureField) + (identity.MaxSignature*4+2)/3 + len(`"`)
	// signatureField is how a signed meta ends: with the signature of all before it.
	signatureField = `,"sig":"`
)

// errUnknownCertificate is why a member is refused for now.
var errUnknownCertificate = errors.New("its certificate is not known yet, and asked for")

// vouching is what is known of the members' certificates; nil without TLS.
type vouching struct {
	g      *Gossip
	source *identity.Source
	mode   identity.Mode
	client *call.Client
	server *call.Server
	queues *messages

	mu      sync.Mutex
	closed  bool
	known   map[identity.Fingerprint]identity.Peer
	hellos  map[identity.Fingerprint]toldHello
	pending map[string]bool      // addresses that are being asked
	failed  map[string]time.Time // when they did not answer
	slots   chan struct{}
	wg      sync.WaitGroup

	// deniedFrom and deniedAt are of the deny list that was taken last, by its digest, and
	// of when one was not.
	deniedFrom string
	deniedAt   time.Time

	// serves are the buckets of regions: a seeder's configuration, or what one has
	// said; nil while none has.
	serves  atomic.Pointer[call.Serves]
	renewed chan struct{} // has a value when the files were read again
}

// checkIdentity holds the identity to what the meta says.
func (c *Config) checkIdentity() error {
	if c.Identity == nil {
		if c.TLS != "" && c.TLS != identity.Off {
			return fmt.Errorf("--tls %s needs a certificate: give --identity DIR (make one with `seeder ca issue`)", c.TLS)
		}
		return nil
	}
	id := c.Identity.ID()
	if string(id.Kind) != string(c.Role) || id.Name != c.ID || id.Region != c.Region {
		return fmt.Errorf("the certificate is of %s, and this is %s %q of region %q; give --name and --region as the certificate has them", id, c.Role, c.ID, c.Region)
	}
	return c.Serves.Check()
}

// newVouching begins to answer calls where there is an identity.
func newVouching(g *Gossip) *vouching {
	if g.cfg.Identity == nil || g.cfg.TLS == identity.Off {
		return nil
	}
	v := &vouching{
		g: g, source: g.cfg.Identity, mode: g.cfg.TLS,
		client:  call.NewClient(g.cfg.Identity),
		known:   make(map[identity.Fingerprint]identity.Peer),
		hellos:  make(map[identity.Fingerprint]toldHello),
		pending: make(map[string]bool),
		failed:  make(map[string]time.Time),
		slots:   make(chan struct{}, parallelMeetings),
		renewed: make(chan struct{}, 1),
	}
	v.queues = newMessages(g.ctx, v.client, func(addr string, err error) {
		g.warn("progress not sent", "addr", addr, "error", err)
	})
	switch {
	case g.cfg.Role == Seeder:
		v.serves.Store(&g.cfg.Serves)
	case g.cfg.ServesFile != "":
		if err := v.readServes(); err != nil {
			g.cfg.Logger.Warn("what regions serve is not known until a seeder says it", "error", err)
		}
	}
	v.source.OnChange(func() { wake(v.renewed) })
	handlers := call.Handlers{Hello: g.hello, Message: v.message, Fleet: v.fleetMessage, Renew: g.renewals(), Enrolment: g.cfg.Enrolment}
	if g.cfg.Role == Seeder {
		handlers.Denied = func() string { text, _ := v.source.Denied(); return text }
	}
	v.server = call.NewServer(v.source, handlers, g.cfg.Logger)
	return v
}

// close ends what runs in the background; the context of the Gossip has ended.
func (v *vouching) close() error {
	if v == nil {
		return nil
	}
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	err := v.server.Close()
	v.wg.Wait()
	v.queues.close()
	v.client.Close()
	return err
}

// run judges the members again now and then, and tells the own new certificate.
func (g *Gossip) vouch(ctx context.Context) {
	v := g.vouching
	if v == nil {
		<-ctx.Done()
		return
	}
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	told := v.own()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-v.renewed:
			v.client.Close()
		}
		v.sweep()
		if now := v.own(); now != told {
			told = now
			if err := g.list.UpdateNode(sendTimeout); err != nil {
				g.warn("new certificate, or deny list, not told to the members yet", "error", err)
			}
		}
	}
}

// watchIdentity reads the files of the identity again when they change.
func (g *Gossip) watchIdentity(ctx context.Context) {
	if g.vouching != nil {
		_ = g.vouching.source.Run(ctx, g.cfg.Logger) // nil
	}
}

// renew keeps the own certificate fresh.
func (g *Gossip) renew(ctx context.Context) {
	if g.vouching == nil || g.cfg.FixedIdentity {
		return
	}
	r := &call.Renewer{Source: g.vouching.source, Client: g.vouching.client, Authority: g.cfg.Authority, Seeders: g.seeders, Logger: g.cfg.Logger, Tried: g.renewed}
	_ = r.Run(ctx) // nil
}

// renewed counts the tries to renew the own certificate.
func (g *Gossip) renewed(err error) {
	if err != nil {
		g.renewalsFailed.Add(1)
		return
	}
	g.renewalsDone.Add(1)
}

// renewals makes certificates for members that ask; nil without the authority's key.
func (g *Gossip) renewals() func(identity.Peer, []byte) ([]byte, error) {
	if g.cfg.Authority == nil {
		return nil
	}
	return func(p identity.Peer, request []byte) ([]byte, error) {
		text, err := g.cfg.Authority.RenewFor(p, request)
		if err != nil {
			g.warn("certificate of a member not renewed", "id", p.ID.String(), "error", err)
			return nil, err
		}
		g.cfg.Logger.Info("certificate of a member renewed", "id", p.ID.String(), "fingerprint", p.Fingerprint.String())
		return text, nil
	}
}

// maxAsked bounds the addresses at which a seeder is looked for.
const maxAsked = 16

// seeders are where seeders are, or may be: members, those of --join, those remembered.
func (g *Gossip) seeders() []string {
	var all []string
	now := g.roster.now()
	for i, m := range now.members {
		if m.Role == Seeder && m.Name != g.name && m.Cert != "" {
			all = append(all, now.nodes[i].Address())
		}
	}
	for _, more := range [][]string{*g.named.Load(), g.remembered.addresses()} {
		for _, addr := range more {
			if !slices.Contains(all, addr) {
				all = append(all, addr)
			}
		}
	}
	return all[:min(len(all), maxAsked)]
}

// sweep leaves out who is not believed any more.
func (v *vouching) sweep() {
	changed := false
	for _, n := range v.g.roster.list() {
		if n.Name == v.g.name {
			continue
		}
		err := v.check(&n)
		if err == nil {
			v.askDenied(&n)
		}
		if v.g.roster.setUnfit(n.Name, err != nil) {
			changed = true
			if err != nil {
				v.source.Count(err)
				v.g.cfg.Logger.Warn("member not believed any more", "member", n.Name, "addr", n.Address(), "error", err)
			}
		}
	}
	if changed {
		v.g.changes()
	}
}

// admits says whether memberlist may take a node in. It does not block.
func (v *vouching) admits(n *memberlist.Node) error {
	if v == nil || n.Name == v.g.name || v.g.roster.same(n) {
		return nil
	}
	err := v.check(n)
	v.source.Count(err)
	return err
}

// check judges what a node says of itself by its certificate.
func (v *vouching) check(n *memberlist.Node) error {
	var m Meta
	if err := json.Unmarshal(n.Meta, &m); err != nil {
		return fmt.Errorf("its meta: %w", err)
	}
	if m.Cert == "" {
		switch {
		case v.mode == identity.Require:
			return identity.Refuse(identity.Missing, errors.New("it has no certificate, and --tls is require here"))
		case v.g.roster.certified(n.Name):
			return identity.Refuse(identity.Missing, errors.New("it had a certificate before, and shows none now"))
		}
		return nil
	}
	f, err := identity.ParseFingerprint(m.Cert)
	if err != nil {
		return identity.Refuse(identity.Invalid, err)
	}
	p, ok := v.peer(f)
	if !ok {
		v.learn(n.Address(), f, m.Hello)
		return errUnknownCertificate
	}
	if err := v.source.Recheck(p); err != nil {
		return err
	}
	if string(p.ID.Kind) != string(m.Role) || p.ID.Region != m.Region || p.ID.Name != m.ID {
		return identity.Refuse(identity.Misplaced, fmt.Errorf("its certificate is of %s, and it says it is %s %q of region %q", p.ID, m.Role, m.ID, m.Region))
	}
	if n.Name != m.ID+"-"+startOf(n.Name) {
		return identity.Refuse(identity.Misplaced, fmt.Errorf("its name is not %s and a start", m.ID))
	}
	message, signature, err := signedMeta(n.Name, n.Address(), n.Meta)
	if err != nil {
		return identity.Refuse(identity.Invalid, err)
	}
	if err := p.Check(memberPurpose, message, signature); err != nil {
		return identity.Refuse(identity.Invalid, err)
	}
	if serves := v.serves.Load(); m.Role == Agent && serves != nil && !serves.Has(m.Region, m.Bucket) {
		return identity.Refuse(identity.Misplaced, fmt.Errorf("region %s does not serve bucket %s, as the seeder's --serves has it", m.Region, m.Bucket))
	}
	return nil
}

// signedMeta takes apart what a member has signed, and the signature.
func signedMeta(name, addr string, meta []byte) (message, signature []byte, err error) {
	meta, ended := bytes.CutSuffix(meta, []byte(`"}`))
	i := bytes.LastIndex(meta, []byte(signatureField))
	if i < 0 || !ended {
		return nil, nil, errors.New("its meta is not signed")
	}
	signature, err = base64.RawURLEncoding.DecodeString(string(meta[i+len(signatureField):]))
	if err != nil {
		return nil, nil, errors.New("the signature of its meta is not base64")
	}
	return statementOf(name, addr, meta[:i]), signature, nil
}

// statementOf is what a member signs: its name with the start, its address, and its meta
// up to the signature. Names and addresses hold no NUL.
func statementOf(name, addr string, meta []byte) []byte {
	return append([]byte(name+"\x00"+addr+"\x00"), meta...)
}

// sign ends a meta, a JSON object, with its signature.
func (v *vouching) sign(name, addr string, meta []byte) ([]byte, error) {
	meta = bytes.TrimSuffix(meta, []byte("}"))
	signature, err := v.source.Sign(memberPurpose, statementOf(name, addr, meta))
	if err != nil {
		return nil, err
	}
	meta = append(meta, signatureField...)
	return append(base64.RawURLEncoding.AppendEncode(meta, signature), `"}`...), nil
}

func (v *vouching) peer(f identity.Fingerprint) (identity.Peer, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p, ok := v.known[f]
	return p, ok
}

// met keeps the certificate of who has connected, or was connected to.
func (v *vouching) met(p identity.Peer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.keep(p)
}

// keep makes room by forgetting some: who is needed again is asked again. The caller
// holds mu.
func (v *vouching) keep(p identity.Peer) {
	for f := range v.known {
		if len(v.known) < maxKnown {
			break
		}
		delete(v.known, f)
		delete(v.hellos, f)
	}
	v.known[p.Fingerprint] = p
}

// message takes a message that a member has sent over TLS: it may speak for itself and
// for the buckets that its region serves.
func (v *vouching) message(from identity.Peer, message []byte) error {
	if len(message) == 0 {
		return errors.New("empty message")
	}
	kind, body := message[0], message[1:]
	if from.ID.Kind == identity.Host || from.ID.Kind == identity.Seeder && kind != kindAsk {
		return fmt.Errorf("%s sends no progress", from.ID)
	}
	serves := v.serves.Load()
	switch kind {
	case kindAsk:
		// Who is asked for is answered by the membership, to the member of that name.
		if len(body) < ulid.EncodedSize {
			return errors.New("nothing is asked for")
		}
		if name := string(body[ulid.EncodedSize:]); name != from.ID.Name+"-"+startOf(name) {
			return fmt.Errorf("%s asks for %.80q", from.ID, name)
		}
	case kindProgress:
		p, err := decodeProgress(body)
		switch {
		case err != nil:
			return err
		case p.Node != from.ID.Name || p.Region != from.ID.Region:
			return fmt.Errorf("%s sends progress of %.80q in region %.80q", from.ID, p.Node, p.Region)
		case serves == nil || !serves.Has(p.Region, p.Bucket):
			return fmt.Errorf("region %s does not serve bucket %s, as the seeder's --serves has it", p.Region, p.Bucket)
		}
	case kindLinks:
		l, err := decodeLinks(body)
		switch {
		case err != nil:
			return err
		case l.Node != from.ID.Name:
			return fmt.Errorf("%s sends links of %.80q", from.ID, l.Node)
		}
	default:
		return errors.New("unknown kind of message")
	}
	v.g.inbox.putVouched(bytes.Clone(message))
	return nil
}

// counts reports whether progress that came in a packet counts: where TLS is required, and
// where somebody with a certificate serves the bucket, it does not.
func (v *vouching) counts(bucket, node string) error {
	if v == nil {
		return nil
	}
	if v.mode == identity.Require {
		return errors.New("progress in a packet, --tls is require here")
	}
	for _, m := range v.g.roster.now().members {
		if m.Cert != "" && (bucket != "" && m.Bucket == bucket || m.ID == node) {
			return fmt.Errorf("progress in a packet, and %s has a certificate", m.Name)
		}
	}
	return nil
}

// IdentityOf returns the identity by which a member was admitted, by its name with the
// start; false for one that has no certificate.
func (g *Gossip) IdentityOf(name string) (identity.ID, bool) {
	v := g.vouching
	if v == nil {
		return identity.ID{}, false
	}
	for _, m := range g.roster.now().members {
		if m.Name == name && m.Cert != "" {
			return identity.ID{Cluster: v.source.ID().Cluster, Kind: identity.Kind(m.Role), Region: m.Region, Name: m.ID}, true
		}
	}
	return identity.ID{}, false
}

// secured is what the transport does with certificates.

// handshake makes that of a connection, and keeps the certificate of a member.
func (v *vouching) handshake(ctx context.Context, conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		if errors.As(err, new(tls.RecordHeaderError)) {
			return identity.Refuse(identity.Missing, err) // it speaks something else
		}
		return err
	}
	cs := conn.ConnectionState()
	if cs.NegotiatedProtocol == identity.CallProto || cs.NegotiatedProtocol == identity.EnrolProto {
		return nil // which the calls' server looks at
	}
	p, err := v.source.PeerOf(cs)
	if err == nil {
		err = expectMember(p.ID)
	}
	if err == nil {
		v.met(p)
	}
	return err
}

// speaksTLS reports whether the member at an address is known to have a certificate, and
// whether one is known at all.
func (g *Gossip) speaksTLS(addr string) (certified, known bool) {
	for _, n := range g.roster.now().nodes {
		if n.Address() == addr {
			var m Meta
			if json.Unmarshal(n.Meta, &m) != nil {
				continue
			}
			return m.Cert != "", true
		}
	}
	return false, false
}
