package bucket

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/landfall-dist/landfall/internal/awserr"
)

// ErrChecksum says that what was read of an object is not what its store says was stored.
var ErrChecksum = errors.New("what was read is not what was stored")

const (
	// maxETagProbe is the longest object, in bytes, that CheckSums reads to see whether
	// the store's ETags are MD5s; maxSampled is how many objects it asks for, and
	// maxListed how many it passes over until it has found so many.
	maxETagProbe = 1 << 20
	maxSampled   = 5
	maxListed    = 1000
)

// crc64NVME is the polynomial of CRC-64/NVME, reflected as hash/crc64 wants it.
const crc64NVME = 0x9a6c_9329_ac4b_c9b5

// Algorithm is how a Checksum is computed.
type Algorithm string

// The algorithms that a whole object can be compared by.
const (
	SHA256    Algorithm = "SHA-256"
	CRC64NVME Algorithm = "CRC64NVME"
	CRC32C    Algorithm = "CRC32C"
	CRC32     Algorithm = "CRC32"
	SHA1      Algorithm = "SHA-1"
	// ETagMD5 is an ETag that may be an MD5: see Bucket.HasMD5ETags.
	ETagMD5 Algorithm = "ETag (MD5)"
)

// New begins to compute.
func (a Algorithm) New() hash.Hash {
	switch a {
	case SHA256:
		return sha256.New()
	case CRC64NVME:
		return crc64.New(crc64.MakeTable(crc64NVME))
	case CRC32C:
		return crc32.New(crc32.MakeTable(crc32.Castagnoli))
	case CRC32:
		return crc32.NewIEEE()
	case SHA1:
		return sha1.New()
	case ETagMD5:
		return md5.New()
	}
	panic("no algorithm " + string(a))
}

// Format writes a sum of the algorithm as S3 does.
func (a Algorithm) Format(sum []byte) string {
	if a == ETagMD5 {
		return hex.EncodeToString(sum)
	}
	return base64.StdEncoding.EncodeToString(sum)
}

// Checksum is what a store says of all bytes of an object, in order. The zero Checksum
// says nothing: the object has none, or only one of its parts' (COMPOSITE).
type Checksum struct {
	Algorithm Algorithm
	// Sum is as S3 writes it: base64, that of an ETag hexadecimal.
	Sum string
}

// checksumOf reads the answer to a HEAD that asked for checksums. Of several the first
// counts: SHA-256 is computed of every build anyway.
func checksumOf(out *s3.HeadObjectOutput) Checksum {
	for _, c := range []struct {
		algorithm Algorithm
		sum       *string
	}{
		{SHA256, out.ChecksumSHA256},
		{CRC64NVME, out.ChecksumCRC64NVME},
		{CRC32C, out.ChecksumCRC32C},
		{CRC32, out.ChecksumCRC32},
		{SHA1, out.ChecksumSHA1},
	} {
		// That of parts ends with their number. Not every store says the type.
		sum, err := base64.StdEncoding.DecodeString(aws.ToString(c.sum))
		if err == nil && len(sum) == c.algorithm.New().Size() && out.ChecksumType != types.ChecksumTypeComposite {
			return Checksum{c.algorithm, *c.sum}
		}
	}
	return md5Of(out)
}

// md5Of is the ETag where it can be the MD5 of the bytes. What is encrypted with keys
// that S3 does not hold itself has another, and so has what came in parts: with their
// number.
func md5Of(out *s3.HeadObjectOutput) Checksum {
	etag := strings.ToLower(strings.Trim(aws.ToString(out.ETag), `"`))
	sum, err := hex.DecodeString(etag)
	if err != nil || len(sum) != md5.Size || out.ServerSideEncryption != "" && out.ServerSideEncryption != types.ServerSideEncryptionAes256 {
		return Checksum{}
	}
	return Checksum{ETagMD5, etag}
}

// etags is what is known of a store's ETags: whether one could be compared with its
// object, and whether one was its MD5.
type etags struct{ compared, areMD5 atomic.Bool }

// SawMD5ETag notes that an object's ETag was the MD5 of its bytes.
func (b *Bucket) SawMD5ETag() { b.etags.areMD5.Store(true) }

// HasMD5ETags reports whether the store's ETags have been seen to be the MD5 of the
// bytes, where they can be. Until that is known it reads a few small objects, but not
// the key's.
func (b *Bucket) HasMD5ETags(ctx context.Context, not string) (bool, error) {
	if !b.etags.areMD5.Load() && !b.etags.compared.Load() {
		if _, err := b.CheckSums(ctx, not); err != nil {
			return false, err
		}
	}
	return b.etags.areMD5.Load(), nil
}

// Sums are what a bucket's objects can be compared by when they are pulled.
type Sums struct {
	// Algorithms are those of the objects that were looked at, each once.
	Algorithms []Algorithm
	// Without is how many of them have neither a checksum of the whole nor an ETag that
	// is an MD5; Objects is how many there were.
	Without, Objects int
}

// String is a sentence about the bucket.
func (s Sums) String() string {
	if s.Objects == 0 {
		return "it has no objects yet that say which checksum its store keeps of them"
	}
	names := make([]string, len(s.Algorithms))
	for i, a := range s.Algorithms {
		names[i] = string(a)
	}
	said := "what is pulled from it is compared with " + strings.Join(names, ", ")
	switch s.Without {
	case 0:
		return said
	case s.Objects:
		return "what is pulled from it cannot be compared: its store keeps no checksum of a whole object"
	}
	return fmt.Sprintf("%s; %d of %d objects have no checksum of the whole and are not compared", said, s.Without, s.Objects)
}

// CheckSums looks at a few objects of the bucket, but not at the key's, for the checksums
// that the store keeps of them. It writes nothing.
func (b *Bucket) CheckSums(ctx context.Context, not string) (Sums, error) {
	var sampled []*Object
	listed, enough := 0, errors.New("enough")
	err := b.List(ctx, "", func(o Object) error {
		if listed++; listed > maxListed || len(sampled) == maxSampled {
			return enough
		}
		if o.Size == 0 || o.Key == not {
			return nil
		}
		head, err := b.Head(ctx, o.Key)
		if err == nil {
			err = b.compareETag(ctx, head)
		}
		if status := awserr.Status(err); status >= 400 && status < 500 {
			return nil // gone by now, or not to be read
		} else if err != nil {
			return err
		}
		if !strings.HasPrefix(o.Key, OwnPrefix) {
			sampled = append(sampled, head)
		}
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		return Sums{}, err
	}
	s := Sums{Objects: len(sampled)}
	for _, o := range sampled {
		switch a := o.Checksum.Algorithm; {
		case a == "", a == ETagMD5 && !b.etags.areMD5.Load():
			s.Without++
		case !slices.Contains(s.Algorithms, a):
			s.Algorithms = append(s.Algorithms, a)
		}
	}
	return s, nil
}

// compareETag reads a small object to see whether its ETag is an MD5; a large one says
// nothing.
func (b *Bucket) compareETag(ctx context.Context, o *Object) error {
	if o.md5 == (Checksum{}) || o.Size > maxETagProbe || b.etags.areMD5.Load() {
		return nil
	}
	body, err := b.GetRange(ctx, o.Key, o.ETag, 0, o.Size)
	if err != nil {
		return err
	}
	defer body.Close()
	h := md5.New()
	if _, err := io.Copy(h, body); err != nil {
		return fmt.Errorf("reading %s in %s: %w", o.Key, b.name, err)
	}
	b.etags.compared.Store(true)
	if ETagMD5.Format(h.Sum(nil)) == o.md5.Sum {
		b.SawMD5ETag()
	}
	return nil
}
