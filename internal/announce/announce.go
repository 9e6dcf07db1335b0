// Package announce holds the signed documents that make agents start and stop:
// the announcement of an execution and the notice of its end. It signs, checks
// and remembers them; package gossip carries them.
//
// A document travels as a signing.Envelope of the kind "landfall-announcement-v2" or
// "landfall-end-v1".
//
// An announcement grows by revisions while its build is read from the source: each names
// all segments so far, and the last one, the seal, the whole's SHA-256.
package announce

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/signing"
)

// Version is that of the documents here. Members name it in what they say of themselves,
// for those of another version do not understand each other; the first did not say.
const Version = 2

const (
	// MaxLength bounds a document on the wire in bytes.
	MaxLength = 24 << 10
	// MaxKeyLength is S3's limit on an object's key in bytes.
	MaxKeyLength = 1024
	// MaxDestinations bounds the destination buckets of one execution.
	MaxDestinations = 64
	// Lifetime is how long an announcement holds: clocks differ and regions
	// sleep, so never less than a week.
	Lifetime = 7 * 24 * time.Hour
	// maxLifetime bounds what a member has to remember of a foreign clock.
	maxLifetime = 31 * 24 * time.Hour
	// maxBucketName is S3's limit on the length of a bucket's name.
	maxBucketName = 63

	// maxHeaders bounds the names and values of the source object's headers in bytes:
	// S3's 2 KiB of user metadata, and 1 KiB of content headers.
	maxHeaders = 4 << 10
	// maxETag bounds an ETag in bytes.
	maxETag = 256

	announcementKind = "landfall-announcement-v2"
	endKind          = "landfall-end-v1"
)

var envelope = signing.Envelope{Kinds: []string{announcementKind, endKind}, MaxLength: MaxLength}

var (
	// ErrInvalid is wrapped by errors about a document that is malformed or
	// breaks a bound.
	ErrInvalid = signing.ErrInvalid
	// ErrUntrusted is wrapped when the signature is not one of a trusted key, or the key is
	// not trusted with this build; together with ErrInvalid when a trusted key is named and
	// the signature is wrong.
	ErrUntrusted = signing.ErrUntrusted
	// ErrContradiction is wrapped when a document says of an execution what contradicts
	// an earlier one.
	ErrContradiction = errors.New("contradicts what was announced before")
	// ErrOldTerm is wrapped when a later seeder has taken the place of a document's.
	ErrOldTerm = errors.New("document of an older term")
	// ErrExpired is wrapped when a document's time is over.
	ErrExpired = errors.New("expired document")
)

// Announcement makes the agents of its destinations fetch and land a build.
type Announcement struct {
	ExecutionID string `json:"executionId"` // ULID
	// Term is the seeder's; 0 where there is one seeder.
	Term         int64    `json:"term,omitempty"`
	Key          string   `json:"key"`
	SourceBucket string   `json:"sourceBucket"`
	Destinations []string `json:"destinationBuckets"`
	Size         int64    `json:"size"` // bytes
	// ETag is the source object's; empty while it has none.
	ETag string `json:"etag,omitempty"`
	// Scheme cuts the build into segments, of pieces and parts of these lengths in bytes.
	Scheme      manifest.Scheme `json:"scheme"`
	PieceLength int64           `json:"pieceLength"`
	PartLength  int64           `json:"partLength"`
	// Headers are the source object's, as bucket.Headers.Map has them.
	Headers map[string]string `json:"headers,omitempty"`
	// High goes before what is not.
	High bool `json:"high,omitempty"`
	// InfoHashes are those of the segments so far, one after the other.
	InfoHashes InfoHashes `json:"infohashes,omitempty"`
	// SHA256 is the whole's in hexadecimal; empty before the seal.
	SHA256 string `json:"sha256,omitempty"`
	// TraceParent is the seeder's span of the execution; empty where it has none.
	TraceParent TraceParent `json:"traceparent,omitempty"`
	Issued      time.Time   `json:"issued"`
	Expires     time.Time   `json:"expires"`

	layout *manifest.Layout
}

// InfoHashes are infohashes one after the other, in JSON as one base64 string.
type InfoHashes []byte

// Len is how many they are.
func (h InfoHashes) Len() int { return len(h) / len(manifest.InfoHash{}) }

// At returns one.
func (h InfoHashes) At(i int) manifest.InfoHash {
	const length = len(manifest.InfoHash{})
	return manifest.InfoHash(h[i*length : (i+1)*length])
}

func (h InfoHashes) contain(infohash manifest.InfoHash) bool {
	for i := range h.Len() {
		if h.At(i) == infohash {
			return true
		}
	}
	return false
}

// Append returns them with one more.
func (h InfoHashes) Append(next manifest.InfoHash) InfoHashes {
	return append(slices.Clip(h), next[:]...)
}

// Sealed reports whether the build is known to its end.
func (a *Announcement) Sealed() bool { return a.SHA256 != "" }

// Layout is how the build is cut.
func (a *Announcement) Layout() *manifest.Layout { return a.layout }

// extends reports whether a later revision says what an earlier one says, and perhaps
// more; a shorter one may say less. Else the error wraps ErrContradiction, or ErrOldTerm.
func (a *Announcement) extends(before *Announcement) error {
	short := min(len(a.InfoHashes), len(before.InfoHashes))
	switch {
	case a.Term < before.Term:
		return fmt.Errorf("%w: %d, which %d has followed", ErrOldTerm, a.Term, before.Term)
	case a.Key != before.Key || a.SourceBucket != before.SourceBucket || a.Size != before.Size:
		return fmt.Errorf("%w: it is another object", ErrContradiction)
	case a.Scheme != before.Scheme || a.PieceLength != before.PieceLength || a.PartLength != before.PartLength:
		return fmt.Errorf("%w: it is cut otherwise", ErrContradiction)
	case a.ETag != before.ETag && a.ETag != "" && before.ETag != "":
		return fmt.Errorf("%w: its ETag was %s and is %s", ErrContradiction, before.ETag, a.ETag)
	case !bytes.Equal(a.InfoHashes[:short], before.InfoHashes[:short]):
		return fmt.Errorf("%w: one of its first %d segments is another", ErrContradiction, short/len(manifest.InfoHash{}))
	case a.Sealed() && before.Sealed() && a.SHA256 != before.SHA256:
		return fmt.Errorf("%w: its SHA-256 was %s and is %s", ErrContradiction, before.SHA256, a.SHA256)
	}
	return nil
}

// more reports whether a revision says more of the build than an earlier one.
func (a *Announcement) more(before *Announcement) bool { return before.less(a) }

// less reports whether a revision says less of the build than an earlier one.
func (a *Announcement) less(before *Announcement) bool {
	return len(a.InfoHashes) < len(before.InfoHashes) || before.Sealed() && !a.Sealed() || before.ETag != "" && a.ETag == ""
}

// Reasons of an End.
const (
	Completed  = "completed"
	Failed     = "failed"
	Superseded = "superseded"
	// Untrusted is said by Book.Recheck alone, and in no document.
	Untrusted = "untrusted"
)

// End retires the announcement of one execution.
type End struct {
	ExecutionID  string `json:"executionId"`
	Key          string `json:"key"`
	SourceBucket string `json:"sourceBucket"`
	// Reason is Completed, Failed or Superseded.
	Reason string    `json:"reason"`
	Issued time.Time `json:"issued"`
	// Expires is when the execution's id need not be remembered any more.
	Expires time.Time `json:"expires"`
}

// Sign encodes and signs an *Announcement or an *End.
func Sign(ctx context.Context, signer signing.Signer, doc any) ([]byte, error) {
	var kind string
	switch doc.(type) {
	case *Announcement:
		kind = announcementKind
	case *End:
		kind = endKind
	default:
		return nil, fmt.Errorf("%w: cannot sign a %T", ErrInvalid, doc)
	}
	if err := doc.(document).check(); err != nil {
		return nil, err
	}
	return envelope.Sign(ctx, signer, kind, doc)
}

// Open checks a document from the network against what is trusted and returns an
// *Announcement or an *End. Errors wrap ErrInvalid, ErrUntrusted or ErrExpired.
func Open(wire []byte, trust *signing.Trust, now time.Time) (any, error) {
	doc, _, err := open(wire, trust, now)
	return doc, err
}

// open is Open, and the key that has signed.
func open(wire []byte, trust *signing.Trust, now time.Time) (any, signing.PublicKey, error) {
	opened, err := envelope.Open(wire, trust)
	if err != nil {
		return nil, opened.Key, err
	}
	var doc document = new(Announcement)
	if opened.Kind == endKind {
		doc = new(End)
	}
	if err := decode(opened, doc, now); err != nil {
		return nil, opened.Key, err
	}
	return doc, opened.Key, trust.Check(opened.Key, doc.bucket(), doc.object())
}

type document interface {
	check() error
	bucket() string
	object() string
	expires() time.Time
	times() (executionID string, issued time.Time)
}

func decode(opened signing.Opened, doc document, now time.Time) error {
	if err := opened.Decode(doc); err != nil {
		return err
	}
	if err := doc.check(); err != nil {
		return err
	}
	// A signature says who wrote it, not that its clock is right.
	id, issued := doc.times()
	if err := executionid.Check(id, now); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := executionid.CheckTime(issued, now); err != nil {
		return fmt.Errorf("%w: issued %w", ErrInvalid, err)
	}
	switch expires := doc.expires(); {
	case expires.Before(now):
		return fmt.Errorf("%w: at %s", ErrExpired, expires.Format(time.RFC3339))
	case expires.After(now.Add(maxLifetime)):
		return fmt.Errorf("%w: expires %s, more than %s from now", ErrInvalid, expires.Format(time.RFC3339), maxLifetime)
	}
	return nil
}

func (a *Announcement) bucket() string { return a.SourceBucket }

func (a *Announcement) object() string { return a.Key }

func (a *Announcement) expires() time.Time { return a.Expires }

func (a *Announcement) times() (string, time.Time) { return a.ExecutionID, a.Issued }

func (a *Announcement) check() error {
	if err := checkNames(a.ExecutionID, a.Key, a.SourceBucket); err != nil {
		return err
	}
	if len(a.Destinations) == 0 || len(a.Destinations) > MaxDestinations {
		return fmt.Errorf("%w: %d destination buckets", ErrInvalid, len(a.Destinations))
	}
	for _, b := range a.Destinations {
		if err := CheckBucketName(b); err != nil {
			return err
		}
	}
	layout, err := manifest.NewLayout(a.Scheme, a.Size)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	headers := 0
	for name, value := range a.Headers {
		headers += len(name) + len(value)
	}
	segments := a.InfoHashes.Len()
	switch {
	case a.PieceLength != layout.PieceLength || a.PartLength != layout.PartLength:
		return fmt.Errorf("%w: pieces of %d and parts of %d bytes in a build of %d", ErrInvalid, a.PieceLength, a.PartLength, a.Size)
	case len(a.InfoHashes)%len(manifest.InfoHash{}) != 0 || segments > layout.NumSegments():
		return fmt.Errorf("%w: %d bytes of infohashes for %d segments", ErrInvalid, len(a.InfoHashes), layout.NumSegments())
	case a.InfoHashes.contain(manifest.InfoHash{}):
		return fmt.Errorf("%w: an infohash of zeros", ErrInvalid)
	case a.Sealed() && (segments < layout.NumSegments() || !isSHA256(a.SHA256)):
		return fmt.Errorf("%w: sealed with %d of %d segments and SHA-256 %q", ErrInvalid, segments, layout.NumSegments(), a.SHA256)
	case !a.Sealed() && segments == 0:
		return fmt.Errorf("%w: nothing is announced", ErrInvalid)
	case a.Size == 0 && a.SHA256 != emptySHA256:
		return fmt.Errorf("%w: SHA-256 %s of a build of 0 bytes", ErrInvalid, a.SHA256)
	case headers > maxHeaders:
		return fmt.Errorf("%w: %d bytes of headers", ErrInvalid, headers)
	case len(a.ETag) > maxETag:
		return fmt.Errorf("%w: ETag of %d bytes", ErrInvalid, len(a.ETag))
	case a.Term < 0:
		return fmt.Errorf("%w: term %d", ErrInvalid, a.Term)
	}
	a.layout = layout
	return nil
}

const emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func isSHA256(text string) bool {
	return len(text) == 2*sha256.Size && strings.Trim(text, "0123456789abcdef") == ""
}

func (e *End) bucket() string { return e.SourceBucket }

func (e *End) object() string { return e.Key }

func (e *End) expires() time.Time { return e.Expires }

func (e *End) times() (string, time.Time) { return e.ExecutionID, e.Issued }

func (e *End) check() error {
	if len(e.Reason) > 64 {
		return fmt.Errorf("%w: reason of %d bytes", ErrInvalid, len(e.Reason))
	}
	return checkNames(e.ExecutionID, e.Key, e.SourceBucket)
}

func checkNames(executionID, key, bucket string) error {
	if _, err := ulid.ParseStrict(executionID); err != nil {
		return fmt.Errorf("%w: executionId %q: %w", ErrInvalid, executionID, err)
	}
	if err := CheckKey(key); err != nil {
		return err
	}
	return CheckBucketName(bucket)
}

// CheckKey reports whether S3 and DynamoDB both carry key as it is.
func CheckKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: empty key", ErrInvalid)
	case len(key) > MaxKeyLength:
		return fmt.Errorf("%w: key of %d bytes, S3 allows %d", ErrInvalid, len(key), MaxKeyLength)
	case !utf8.ValidString(key):
		return fmt.Errorf("%w: key %q is not UTF-8", ErrInvalid, key)
	}
	return nil
}

// CheckBucketName bounds a bucket's name; S3 itself knows the finer rules.
func CheckBucketName(name string) error {
	if len(name) < 3 || len(name) > maxBucketName {
		return fmt.Errorf("%w: bucket name %q of %d characters, S3 allows 3 to %d", ErrInvalid, name, len(name), maxBucketName)
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return fmt.Errorf("%w: bucket name %q: %q is not allowed", ErrInvalid, name, c)
		}
	}
	return nil
}
