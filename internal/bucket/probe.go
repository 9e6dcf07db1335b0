package bucket

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/landfall-dist/landfall/internal/awserr"
)

const (
	// OwnPrefix begins the keys that are Landfall's own: never distributed.
	OwnPrefix = ".landfall/"
	// probeKey is the key of Probe's upload, which is never an object; checkKey that of
	// the one small object that CheckWrites leaves.
	probeKey = OwnPrefix + "probe"
	checkKey = OwnPrefix + "check"
	// probeTries bounds how often a probe begins anew when another one, which has just
	// ended, has removed its upload.
	probeTries = 5
	// maxReadTries is how many objects ProbeRead tries until one can be read.
	maxReadTries = 5
	// noETag is the ETag of no object.
	noETag = `"00000000000000000000000000000000"`
)

// Weakness is something that a store does not do as S3 does, in words that follow the
// store's name.
type Weakness string

// What a store can lack.
const (
	WrongDigest   Weakness = "stores a part whose bytes are not those of its SHA-256"
	NoConditions  Weakness = "cannot complete an upload under a condition (If-Match, If-None-Match)"
	NoIfMatch     Weakness = "completes an upload although the object is not the one of If-Match"
	NoIfNoneMatch Weakness = "completes an upload over an object despite If-None-Match"
	NoReadIfMatch Weakness = "gives out an object that has not the ETag of If-Match"
	NoHeaders     Weakness = "does not keep content headers and user metadata"
	NoComposite   Weakness = "does not say an object's composite SHA-256"
	NoPartSums    Weakness = "does not say the SHA-256 of an upload's parts"
	NoMD5         Weakness = "has ETags that are no MD5"
	NoWholeSum    Weakness = "does not say the SHA-256 of an object that was stored with it"
)

// grave are the weaknesses without which readers could be given what is no build, or
// the wrong one. The others cost time.
var grave = []Weakness{WrongDigest, NoConditions, NoIfMatch, NoIfNoneMatch, NoReadIfMatch, NoHeaders}

// Grave reports whether a guarantee of Landfall falls with it.
func (w Weakness) Grave() bool { return slices.Contains(grave, w) }

// Refuse is the error of a daemon that is not to work with a store that has one of the
// weaknesses; nil when none is grave, or all are allowed.
func (b *Bucket) Refuse(found []Weakness, allowed bool) error {
	for _, w := range found {
		if w.Grave() && !allowed {
			return fmt.Errorf("the store of bucket %s %s, so that readers could see what is no build; `seeder check --write` says all, --allow-weak-store works with it all the same", b.name, w)
		}
	}
	return nil
}

// findings are weaknesses, each once.
type findings []Weakness

func (f *findings) add(w Weakness) {
	if !slices.Contains(*f, w) {
		*f = append(*f, w)
	}
}

// Probe asks a bucket that builds land in for what it has to refuse, and leaves
// nothing behind: neither an object, nor a delete marker, nor an event, nor an upload,
// its own or one that a process has left that was killed while it probed.
// An error says that nothing is known: the store was not reached, or the permissions
// for a landing lack.
func (b *Bucket) Probe(ctx context.Context) (found []Weakness, err error) {
	for range probeTries {
		if found, err = b.probe(ctx); !errors.Is(err, ErrNoUpload) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	// Where uploads cannot be listed, they are the lifecycle rule's.
	left, _ := b.Uploads(ctx, probeKey)
	for _, id := range left {
		if err := b.AbortUpload(ctx, probeKey, id); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (b *Bucket) probe(ctx context.Context) (_ []Weakness, err error) {
	var found findings
	id, err := b.CreateUpload(ctx, probeKey, Headers{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.AbortAlways(ctx, probeKey, id)) }()
	body := []byte("landfall")
	right, wrong := sha256.Sum256(body), sha256.Sum256(nil)
	switch _, err := b.UploadPart(ctx, probeKey, id, 0, bytes.NewReader(body), int64(len(body)), wrong[:]); {
	case err == nil:
		found.add(WrongDigest)
	case !errors.Is(err, ErrDigest) && awserr.Status(err) != http.StatusBadRequest:
		return nil, err
	}
	etag, err := b.UploadPart(ctx, probeKey, id, 0, bytes.NewReader(body), int64(len(body)), right[:])
	if err != nil {
		return nil, err
	}
	parts, err := b.ListParts(ctx, probeKey, id)
	if err != nil && !Permanent(err) {
		return nil, err
	}
	if len(parts) != 1 || !bytes.Equal(parts[0].SHA256, right[:]) {
		found.add(NoPartSums)
	}
	out, err := b.complete(ctx, probeKey, id, []Part{{ETag: etag, SHA256: right[:]}}, Condition{IfMatch: noETag})
	switch {
	case err == nil:
		found.add(NoIfMatch)
		// Where it may not be deleted it stays: nobody distributes it.
		_, _ = b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: aws.String(probeKey), VersionId: out.VersionId})
	case Permanent(err):
		found.add(NoConditions)
	case !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrExists):
		return nil, err
	}
	return found, nil
}

// ProbeRead asks a bucket that builds are read from for what it has to refuse. It writes
// nothing, and finds nothing where no object can be read.
func (b *Bucket) ProbeRead(ctx context.Context) ([]Weakness, error) {
	var found findings
	tries := 0
	enough := errors.New("enough")
	err := b.List(ctx, "", func(o Object) error {
		if o.Size == 0 {
			return nil
		}
		body, err := b.GetRange(ctx, o.Key, noETag, 0, 1)
		switch {
		case err == nil:
			body.Close()
			found.add(NoReadIfMatch)
		case errors.Is(err, ErrChanged):
		case awserr.Status(err) >= 400 && awserr.Status(err) < 500:
			if tries++; tries < maxReadTries {
				return nil
			}
		default:
			return err
		}
		return enough
	})
	if errors.Is(err, enough) {
		err = nil
	}
	return found, err
}

// CheckWrites does what Probe and ProbeRead do, and a whole landing: it leaves one small
// object under OwnPrefix.
func (b *Bucket) CheckWrites(ctx context.Context) ([]Weakness, error) {
	probed, err := b.Probe(ctx)
	if err != nil {
		return nil, err
	}
	found := findings(probed)
	object, err := b.Head(ctx, checkKey)
	condition := Condition{IfNoneMatch: true}
	if err == nil {
		condition = Condition{IfMatch: object.ETag}
	} else if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if err = b.land(ctx, condition); Permanent(err) {
		found.add(NoConditions)
		err = b.land(ctx, Condition{})
	}
	if err != nil {
		return nil, err
	}
	for c, w := range map[Condition]Weakness{{IfNoneMatch: true}: NoIfNoneMatch, {IfMatch: noETag}: NoIfMatch} {
		switch err := b.land(ctx, c); {
		case err == nil:
			found.add(w)
		case Permanent(err):
			found.add(NoConditions)
		case !errors.Is(err, ErrExists) && !errors.Is(err, ErrNotFound):
			return nil, err
		}
	}
	head, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: aws.String(checkKey), ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		return nil, b.wrap("looking for", checkKey, err, nil)
	}
	part := sha256.Sum256(checkBody)
	whole := sha256.Sum256(part[:])
	if aws.ToString(head.ChecksumSHA256) != *encodeSum(whole[:])+"-1" {
		found.add(NoComposite)
	}
	if len(checkHeaders.Differ(headersOf(head))) > 0 {
		found.add(NoHeaders)
	}
	body, err := b.GetRange(ctx, checkKey, noETag, 0, 1)
	if err == nil {
		body.Close()
		found.add(NoReadIfMatch)
	} else if !errors.Is(err, ErrChanged) {
		return nil, err
	}
	etag, err := b.put(ctx, checkKey, checkBody, checkHeaders, Condition{})
	if err != nil {
		return nil, err
	}
	if sum := md5.Sum(checkBody); etag != `"`+hex.EncodeToString(sum[:])+`"` {
		found.add(NoMD5)
	}
	object, err = b.Head(ctx, checkKey)
	if err != nil {
		return nil, err
	}
	if object.Checksum.Algorithm != SHA256 {
		found.add(NoWholeSum)
	}
	return found, nil
}

var (
	checkBody    = []byte("Written by `seeder check --write`, or `seeder init`, to see what this store does. It can be deleted.\n")
	checkHeaders = Headers{
		ContentType: "text/plain", CacheControl: "no-store", ContentEncoding: "gzip", ContentDisposition: "inline",
		ContentLanguage: "en", Expires: "Tue, 01 Jan 2030 00:00:00 GMT", Metadata: map[string]string{"check": "a b"},
	}
)

// land brings the object of CheckWrites into the bucket as a landing does.
func (b *Bucket) land(ctx context.Context, c Condition) (err error) {
	id, err := b.CreateUpload(ctx, checkKey, checkHeaders)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.AbortAlways(ctx, checkKey, id))
		}
	}()
	sum := sha256.Sum256(checkBody)
	etag, err := b.UploadPart(ctx, checkKey, id, 0, bytes.NewReader(checkBody), int64(len(checkBody)), sum[:])
	if err != nil {
		return err
	}
	_, err = b.CompleteUpload(ctx, checkKey, id, []Part{{ETag: etag, SHA256: sum[:]}}, c)
	return err
}

// AbortAlways ends an upload, also when ctx is over.
func (b *Bucket) AbortAlways(ctx context.Context, key, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	return b.AbortUpload(ctx, key, id)
}
