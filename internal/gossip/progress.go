package gossip

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/announce"
)

// The first byte of a message says what it is. kindState is several documents, as
// package announce frames them.
const (
	kindDocument = 'D'
	kindRevision = 'R'
	kindAsk      = 'A'
	kindProgress = 'P'
	kindLinks    = 'L'
	kindBye      = 'B'
	kindState    = 'S'
	kindHello    = 'H'
)

const (
	// MaxProgress bounds a progress message in bytes: it must fit a packet.
	MaxProgress = 1 << 10
	// maxProgressError bounds an error's text in it, in bytes.
	maxProgressError = 200
	// maxAmount bounds the numbers in it: 200 times the largest object of S3, in
	// bytes, and 35,000 years, in milliseconds.
	maxAmount = 1 << 50
)

// Progress is what an agent tells the seeders of some of its builds.
type Progress struct {
	Node   string          `json:"n"`
	Region string          `json:"r"`
	Bucket string          `json:"b"`
	Builds []BuildProgress `json:"e"`
}

// BuildProgress is one build's at one agent; sizes in bytes, rates in bytes/s.
type BuildProgress struct {
	ExecutionID string `json:"i"`
	State       string `json:"s"`
	Verified    int64  `json:"v,omitempty"`
	Landed      int64  `json:"l,omitempty"`
	DownRate    int64  `json:"d,omitempty"`
	UpRate      int64  `json:"u,omitempty"`
	Peers       int    `json:"p,omitempty"`
	Error       string `json:"x,omitempty"`
	// RetryIn is the wait before what failed is tried again, in milliseconds.
	RetryIn int64 `json:"w,omitempty"`
	// Took is the time spent so far waiting for a turn, in the swarm, from the
	// whole download to the complete object, and until that was recorded, in
	// milliseconds.
	Took [4]int64 `json:"t"`
}

// Pack cuts a long list of builds into messages that each fit a packet.
func Pack(node, region, bucket string, builds []BuildProgress) []Progress {
	return pack(builds, func(some []BuildProgress) Progress { return Progress{node, region, bucket, some} })
}

// pack cuts a long list into messages that each fit a packet.
func pack[M message, T any](list []T, of func([]T) M) []M {
	var out []M
	for len(list) > 0 {
		n := len(list)
		for n > 1 && !fits(of(list[:n])) {
			n = (n + 1) / 2
		}
		out = append(out, of(list[:n]))
		list = list[n:]
	}
	return out
}

// message is what is sent to the seeders in a packet.
type message interface{ encode() ([]byte, error) }

func fits(m message) bool {
	_, err := m.encode()
	return err == nil
}

func (p Progress) encode() ([]byte, error) {
	for i, b := range p.Builds {
		p.Builds[i].Error = shortened(b.Error)
	}
	return encode(kindProgress, p)
}

func encode(kind byte, m any) ([]byte, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding progress: %w", err)
	}
	if len(body)+1 > MaxProgress {
		return nil, fmt.Errorf("progress of %d bytes, at most %d", len(body)+1, MaxProgress)
	}
	return append([]byte{kind}, body...), nil
}

// shortened takes the middle out of a long error: what was being done stands at
// its beginning, and why it failed at its end.
func shortened(text string) string {
	const (
		gap  = " … "
		head = 60
		tail = maxProgressError - head - len(gap)
	)
	if len(text) <= maxProgressError {
		return text
	}
	return strings.ToValidUTF8(text[:head], "") + gap + strings.ToValidUTF8(text[len(text)-tail:], "")
}

func decodeProgress(body []byte) (Progress, error) {
	var p Progress
	if len(body) >= MaxProgress {
		return p, fmt.Errorf("progress of %d bytes", len(body)+1)
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return p, fmt.Errorf("progress: %w", err)
	}
	if len(p.Node) > 2*maxName || len(p.Region) > maxName {
		return p, fmt.Errorf("progress: name too long")
	}
	if err := announce.CheckBucketName(p.Bucket); err != nil {
		return p, fmt.Errorf("progress: %w", err)
	}
	p.Builds = slices.DeleteFunc(p.Builds, func(b BuildProgress) bool { return !b.inRange() })
	return p, nil
}

// inRange reports whether a build's progress can be what an agent says. One that
// cannot is left out, for the others' sake.
func (b *BuildProgress) inRange() bool {
	_, err := ulid.ParseStrict(b.ExecutionID)
	return err == nil && len(b.State) <= 16 && amounts(b.Verified, b.Landed, b.DownRate, b.UpRate, int64(b.Peers), b.RetryIn) && amounts(b.Took[:]...)
}

// amounts reports whether these can be bytes, bytes/s or milliseconds.
func amounts(list ...int64) bool {
	return !slices.ContainsFunc(list, func(n int64) bool { return n < 0 || n > maxAmount })
}
