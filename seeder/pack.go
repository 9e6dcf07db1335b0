package seeder

import (
	"encoding/binary"
	"encoding/hex"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/ledger"
)

// packed is the record of an execution that has ended, in some 200 bytes: the
// executionId, a byte that says its status, and the rest as pack writes it. What the
// table alone needs is left out: uploads under way, attributes of others.
//
// As an entry of the index's order a packed that is no longer than an id is the id of
// an execution that is kept whole.
type packed string

// idLength is a ULID's in characters.
const idLength = 26

func (p packed) id() string { return string(p[:min(len(p), idLength)]) }

func (p packed) isPacked() bool { return len(p) > idLength }

// The status byte, and what is set in it beside the status.
const (
	statusBits  = 0x0f
	foreignFlag = 0x10
	highFlag    = 0x20
)

func (p packed) status() ledger.Status { return packedStatuses[p[idLength]&statusBits] }

func (p packed) foreign() bool { return p[idLength]&foreignFlag != 0 }

// key is the fileKey, without unpacking the rest.
func (p packed) key() string {
	rest := string(p[idLength+1:])
	length, n := uvarint(rest)
	return rest[n : n+int(length)]
}

// names stand for texts that many records share: buckets, regions, agents. They are
// kept once. They are the index's, under its lock.
type names struct {
	all    []string
	number map[string]uint64
}

func newNames() *names { return &names{number: make(map[string]uint64)} }

func (n *names) of(s string) uint64 {
	i, ok := n.number[s]
	if !ok {
		i = uint64(len(n.all))
		s = strings.Clone(s) // not the whole item with it
		n.all, n.number[s] = append(n.all, s), i
	}
	return i
}

// packer writes a record.
type packer struct {
	b     []byte
	names *names
}

func (p *packer) number(n uint64) { p.b = binary.AppendUvarint(p.b, n) }
func (p *packer) signed(n int64)  { p.b = binary.AppendVarint(p.b, n) }
func (p *packer) name(s string)   { p.number(p.names.of(s)) }

func (p *packer) text(s string) {
	p.number(uint64(len(s)))
	p.b = append(p.b, s...)
}

// hex writes a text that is mostly hexadecimal: a digest, or an ETag in its quotes,
// with the number of its parts.
func (p *packer) hex(s string) {
	form := byte(0)
	digits, parts := s, ""
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		form, digits = 1, s[1:len(s)-1]
	}
	if d, after, ok := strings.Cut(digits, "-"); ok && form == 1 {
		form, digits, parts = 2, d, after
	}
	raw, err := hex.DecodeString(digits)
	count, countErr := strconv.ParseUint(parts, 10, 32)
	if err != nil || hex.EncodeToString(raw) != digits || form == 2 && (countErr != nil || strconv.FormatUint(count, 10) != parts) {
		p.b = append(p.b, 3)
		p.text(s)
		return
	}
	p.b = append(p.b, form)
	p.text(string(raw))
	if form == 2 {
		p.number(count)
	}
}

// hexLike is hex with a byte for what is the same as another text.
func (p *packer) hexLike(s, other string) {
	if s == other {
		p.b = append(p.b, 4)
		return
	}
	p.hex(s)
}

// instant writes a time as what it is after another one.
func (p *packer) instant(t, after time.Time) {
	if t.IsZero() {
		p.b = append(p.b, 0)
		return
	}
	p.b = append(p.b, 1)
	p.signed(t.UnixNano() - after.UnixNano())
}

var epoch = time.Unix(0, 0)

// packedStatuses are in the order of their byte.
var packedStatuses = []ledger.Status{ledger.InProgress, ledger.Completed, ledger.Failed, ledger.Cancelled}

// pack returns a record in short; ok is false for one that cannot be written so.
func pack(r *ledger.Record, n *names) (_ packed, ok bool) {
	status := slices.Index(packedStatuses, r.Status)
	if status < 0 || len(r.ExecutionID) != idLength {
		return "", false
	}
	if r.Foreign {
		status |= foreignFlag
	}
	if r.High {
		status |= highFlag
	}
	p := &packer{b: make([]byte, 0, 512), names: n}
	p.b = append(append(p.b, r.ExecutionID...), byte(status))
	p.text(r.FileKey)
	p.name(r.SourceBucket)
	p.name(r.Owner)
	p.name(packHeaders(r.Headers))
	p.name(r.Scheme)
	p.signed(r.Term)
	p.signed(r.Version)
	p.signed(r.Retries)
	p.signed(r.Size)
	p.instant(r.StartTime, epoch)
	p.instant(r.CompletedAt, r.StartTime)
	p.instant(r.SourceModified, epoch)
	p.hex(r.SourceETag)
	p.hex(r.InfoHash)
	p.hex(r.SHA256)
	p.number(uint64(len(r.Destinations)))
	etag := r.SourceETag // most often all regions have the same
	for _, b := range r.Destinations {
		p.name(b)
		var of byte
		if slices.Contains(r.Successful, b) {
			of |= 1
		}
		if slices.Contains(r.Failed, b) {
			of |= 2
		}
		result, known := r.Results[b]
		if known {
			of |= 4
		}
		if result.Success {
			of |= 8
		}
		if result.Final {
			of |= 16
		}
		p.b = append(p.b, of)
		if !known {
			continue
		}
		p.instant(result.Timestamp, r.StartTime)
		p.hexLike(result.ETag, etag)
		etag = result.ETag
		p.signed(result.Bytes)
		p.number(uint64(math.Round(result.Seconds * 1000))) // as exact as the table
		p.name(result.Region)
		p.name(result.Agent)
		p.hexLike(result.SHA256, r.SHA256)
		p.text(result.Error)
	}
	return packed(p.b), true
}

func packHeaders(h map[string]string) string {
	if h == nil {
		return ""
	}
	p := &packer{b: []byte{1}}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		p.text(name)
		p.text(h[name])
	}
	return string(p.b)
}

// unpacker reads what packer wrote.
type unpacker struct {
	b     string
	names *names
}

// uvarint is binary.Uvarint of a text.
func uvarint(s string) (v uint64, n int) {
	for shift := 0; ; shift += 7 {
		c := s[n]
		n++
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v, n
		}
	}
}

func (u *unpacker) number() uint64 {
	v, n := uvarint(u.b)
	u.b = u.b[n:]
	return v
}

func (u *unpacker) signed() int64 {
	v := u.number()
	return int64(v>>1) ^ -int64(v&1)
}

func (u *unpacker) name() string { return u.names.all[u.number()] }

func (u *unpacker) byte() byte {
	c := u.b[0]
	u.b = u.b[1:]
	return c
}

func (u *unpacker) text() string {
	n := u.number()
	s := u.b[:n]
	u.b = u.b[n:]
	return s
}

func (u *unpacker) hex(same string) string {
	switch form := u.byte(); form {
	case 0:
		return hex.EncodeToString([]byte(u.text()))
	case 1:
		return `"` + hex.EncodeToString([]byte(u.text())) + `"`
	case 2:
		digits := hex.EncodeToString([]byte(u.text()))
		return `"` + digits + "-" + strconv.FormatUint(u.number(), 10) + `"`
	case 3:
		return u.text()
	}
	return same
}

func (u *unpacker) instant(after time.Time) time.Time {
	if u.byte() == 0 {
		return time.Time{}
	}
	return time.Unix(0, u.signed()+after.UnixNano()).UTC()
}

// unpack is the inverse of pack, with the names that it was packed with.
func (p packed) unpack(n *names) *ledger.Record {
	u := &unpacker{b: string(p[idLength+1:]), names: n}
	r := &ledger.Record{ExecutionID: p.id(), Status: p.status(), Foreign: p.foreign(), High: p[idLength]&highFlag != 0}
	r.FileKey, r.SourceBucket, r.Owner = u.text(), u.name(), u.name()
	if h := u.name(); h != "" {
		in := &unpacker{b: h[1:]}
		r.Headers = make(map[string]string)
		for in.b != "" {
			name := in.text()
			r.Headers[name] = in.text()
		}
	}
	r.Scheme, r.Term = u.name(), u.signed()
	r.Version, r.Retries, r.Size = u.signed(), u.signed(), u.signed()
	r.StartTime = u.instant(epoch)
	r.CompletedAt = u.instant(r.StartTime)
	r.SourceModified = u.instant(epoch)
	r.SourceETag, r.InfoHash, r.SHA256 = u.hex(""), u.hex(""), u.hex("")
	count := u.number()
	r.Results, r.Landings = make(map[string]ledger.Result, count), make(map[string]ledger.Landing)
	etag := r.SourceETag
	for range count {
		b, of := u.name(), u.byte()
		r.Destinations = append(r.Destinations, b)
		if of&1 != 0 {
			r.Successful = append(r.Successful, b)
		}
		if of&2 != 0 {
			r.Failed = append(r.Failed, b)
		}
		if of&4 == 0 {
			continue
		}
		result := ledger.Result{Success: of&8 != 0, Final: of&16 != 0, Timestamp: u.instant(r.StartTime), ETag: u.hex(etag), Bytes: u.signed()}
		etag = result.ETag
		result.Seconds = float64(u.number()) / 1000
		result.Region, result.Agent, result.SHA256, result.Error = u.name(), u.name(), u.hex(r.SHA256), u.text()
		r.Results[b] = result
	}
	return r
}
