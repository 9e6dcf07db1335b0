package bucket

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const (
	// MaxMetadata is S3's limit on an object's user metadata in bytes: names, without
	// their prefix, and values.
	MaxMetadata = 2 << 10
	// MaxContentHeaders bounds the names and values of the content headers in bytes,
	// so that an announcement has room for them. S3's own limit is 8 KB for all
	// headers of a request.
	MaxContentHeaders = 1 << 10

	metadataPrefix = "x-amz-meta-"
	// ownPrefix begins the user metadata that Landfall itself adds.
	ownPrefix = "landfall-"
)

// ErrHeaders says that an object's headers go beyond MaxMetadata or
// MaxContentHeaders.
var ErrHeaders = errors.New("too many bytes of headers")

// Headers are what S3 keeps with an object beside its bytes, and gives out with
// them. An empty one is absent.
type Headers struct {
	ContentType, CacheControl, ContentEncoding, ContentDisposition, ContentLanguage string
	// Expires is as it was given: S3 takes, and keeps, what is no date.
	Expires string
	// Metadata is the user metadata; its keys are lower-case and without the
	// x-amz-meta- prefix.
	Metadata map[string]string
}

// content names the headers that are not user metadata.
func (h *Headers) content() map[string]*string {
	return map[string]*string{
		"content-type":        &h.ContentType,
		"cache-control":       &h.CacheControl,
		"content-encoding":    &h.ContentEncoding,
		"content-disposition": &h.ContentDisposition,
		"content-language":    &h.ContentLanguage,
		"expires":             &h.Expires,
	}
}

// Map returns the headers by their lower-case names, for a table or a document;
// it is not nil.
func (h Headers) Map() map[string]string {
	m := make(map[string]string)
	for name, value := range h.content() {
		if *value != "" {
			m[name] = *value
		}
	}
	for name, value := range h.Metadata {
		m[metadataPrefix+name] = value
	}
	return m
}

// ParseHeaders is the inverse of Map. It passes over names that it does not know.
func ParseHeaders(m map[string]string) Headers {
	var h Headers
	content := h.content()
	for name, value := range m {
		if own, ok := strings.CutPrefix(name, metadataPrefix); ok {
			if h.Metadata == nil {
				h.Metadata = make(map[string]string)
			}
			h.Metadata[own] = value
		} else if field, ok := content[name]; ok {
			*field = value
		}
	}
	return h
}

// With returns the headers with further user metadata, which wins.
func (h Headers) With(metadata map[string]string) Headers {
	h.Metadata = lowerKeys(h.Metadata)
	maps.Copy(h.Metadata, metadata)
	return h
}

// Check reports, with ErrHeaders, whether the headers fit what S3 and an
// announcement hold when extra more bytes of user metadata are added.
func (h Headers) Check(extra int) error {
	content, metadata := 0, 0
	for name, value := range h.content() {
		if *value != "" {
			content += len(name) + len(*value)
		}
	}
	for name, value := range h.Metadata {
		if !strings.HasPrefix(name, ownPrefix) { // replaced, and part of extra
			metadata += len(name) + len(value)
		}
	}
	switch {
	case metadata+extra > MaxMetadata:
		return fmt.Errorf("%w: %d bytes of user metadata and %d that Landfall adds are more than the %d that S3 holds; store the object with at most %d",
			ErrHeaders, metadata, extra, MaxMetadata, MaxMetadata-extra)
	case content > MaxContentHeaders:
		return fmt.Errorf("%w: %d bytes of content headers (Content-Type, Cache-Control and the like), at most %d are carried; store the object with shorter ones",
			ErrHeaders, content, MaxContentHeaders)
	}
	return nil
}

// Differ names what an object with the headers got has otherwise than one that was
// stored with want: empty where they are the same. User metadata that Landfall adds
// does not count, nor the content type that a store makes up where none was given.
func (want Headers) Differ(got Headers) []string {
	var names []string
	a, b := want.comparable(), got.comparable()
	if want.ContentType == "" {
		delete(b, "content-type")
	}
	for name, value := range a {
		if other, ok := b[name]; !ok || other != value {
			names = append(names, name)
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	return names
}

// comparable is Map without Landfall's own, with the white space gone that HTTP does
// not keep.
func (h Headers) comparable() map[string]string {
	m := make(map[string]string)
	for name, value := range h.Map() {
		if own, ok := strings.CutPrefix(name, metadataPrefix); !ok || !strings.HasPrefix(strings.ToLower(own), ownPrefix) {
			m[strings.ToLower(name)] = strings.TrimSpace(value)
		}
	}
	return m
}

// headersOf reads the answer to a HEAD.
func headersOf(out *s3.HeadObjectOutput) Headers {
	return Headers{
		ContentType:        aws.ToString(out.ContentType),
		CacheControl:       aws.ToString(out.CacheControl),
		ContentEncoding:    withoutChunks(aws.ToString(out.ContentEncoding)),
		ContentDisposition: aws.ToString(out.ContentDisposition),
		ContentLanguage:    aws.ToString(out.ContentLanguage),
		Expires:            aws.ToString(out.ExpiresString),
		Metadata:           lowerKeys(out.Metadata),
	}
}

// withoutChunks takes out what an SDK says of its own request (aws-chunked), which
// some servers store.
func withoutChunks(encoding string) string {
	if !strings.Contains(strings.ToLower(encoding), "aws-chunked") {
		return encoding
	}
	var kept []string
	for one := range strings.SplitSeq(encoding, ",") {
		if one = strings.TrimSpace(one); one != "" && !strings.EqualFold(one, "aws-chunked") {
			kept = append(kept, one)
		}
	}
	return strings.Join(kept, ", ")
}

// withExpires sends the header as it is. The SDK's own field holds only dates.
func withExpires(value string) func(*s3.Options) {
	if value == "" {
		return func(*s3.Options) {}
	}
	return s3.WithAPIOptions(smithyhttp.SetHeaderValue("Expires", value))
}

func lowerKeys(metadata map[string]string) map[string]string {
	lower := make(map[string]string, len(metadata))
	for k, v := range metadata {
		lower[strings.ToLower(k)] = v
	}
	return lower
}
