package bucket

import (
	"errors"
	"net/http"
	"strings"

	"github.com/aws/smithy-go"

	"github.com/landfall-dist/landfall/internal/awserr"
)

// refusal is an answer of S3 that stays the same until a person changes something.
type refusal struct {
	// permanent: the object, its key, its headers or the store are to be changed, so
	// that trying again is of no use. What is not, such as a missing permission, can
	// be mended behind an execution's back.
	permanent bool
	// next is what to do.
	next string
}

// refusals are the answers by S3's code (its "Error responses"); other stores have the
// same ones.
var refusals = map[string]refusal{
	"MetadataTooLarge":   {true, "store the source object with less user metadata: S3 holds 2 KB"},
	"KeyTooLongError":    {true, "store the source object under a shorter key"},
	"KeyTooLong":         {true, "store the source object under a shorter key"},
	"InvalidArgument":    {true, "store the source object with headers and a key that S3 takes"},
	"InvalidRequest":     {true, "an object encrypted with the customer's own keys (SSE-C) cannot be read: store it without them"},
	"InvalidObjectState": {true, "restore the object from its archive (aws s3api restore-object), or copy it to another storage class, and publish it again"},
	"EntityTooLarge":     {true, "the store takes no object of this size"},
	"EntityTooSmall":     {true, "the store wants larger parts than Landfall sends"},
	"NotImplemented":     {true, "the store lacks what Landfall needs: `seeder check --write` says what"},
	"MethodNotAllowed":   {true, "the store lacks what Landfall needs: `seeder check --write` says what"},

	"InvalidStorageClass":             {true, "store the source object in a storage class that the bucket's store knows"},
	"InvalidEncryptionAlgorithmError": {true, "the bucket's default encryption is not known to its store"},
	"InvalidURI":                      {true, "store the source object under a key that the store takes"},
	"XMinioInvalidObjectName":         {true, "store the source object under a key that the store takes"},

	"AccessDenied":      {false, "a bucket where the requester pays cannot be used"},
	"Forbidden":         {false, "an encrypted object needs kms:Decrypt on its key; a bucket where the requester pays cannot be used"},
	"AllAccessDisabled": {false, "the store has closed the bucket or the account"},
	"AccountProblem":    {false, "the store has closed the account"},
	"BadRequest":        {false, "an object encrypted with the customer's own keys (SSE-C) cannot be read"},
}

// Permanent reports whether an error is S3's word, or this package's, that cannot
// change by trying again.
func Permanent(err error) bool {
	if errors.Is(err, ErrHeaders) || errors.Is(err, ErrChecksum) {
		return true
	}
	r, ok := refusals[awserr.Code(err)]
	switch {
	case ok && r.permanent:
		return true
	case ok:
		var api smithy.APIError
		return errors.As(err, &api) && strings.Contains(strings.ToLower(api.ErrorMessage()), "requester pays")
	}
	// Other stores have other codes for what they cannot do.
	s := awserr.Status(err)
	return s == http.StatusNotImplemented || s == http.StatusMethodNotAllowed
}

// nextStep says what a person can do about an answer of S3; empty where nothing is
// known.
func nextStep(err error) string {
	if r, ok := refusals[awserr.Code(err)]; ok {
		return "; " + r.next
	}
	if s := awserr.Status(err); s == http.StatusNotImplemented || s == http.StatusMethodNotAllowed {
		return "; " + refusals["NotImplemented"].next
	}
	return ""
}
