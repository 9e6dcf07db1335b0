// Package awserr says in one line what an error of the AWS SDK means: which thing, why,
// and what to do. The SDK's own text, with request ids, host ids and the story of each
// attempt, is for the log at debug (Log); it stays in the chain, so errors.Is and
// errors.As find what they found before.
package awserr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/landfall-dist/landfall/internal/answers"
)

const (
	// maxSaid bounds what is read of a server's own words, maxReason what is shown of them,
	// in bytes.
	maxSaid, maxReason = 16 << 10, 300
	// maxSkew is how far a host's clock may be off before AWS refuses its signatures.
	maxSkew = 5 * time.Minute
)

// explained is an SDK's error with the line that is shown for it.
type explained struct {
	text string
	err  error
}

func (e *explained) Error() string { return e.text }

func (e *explained) Unwrap() error { return e.err }

// As returns an error that reads as kind alone and is both kind and err to errors.Is
// and errors.As.
func As(kind, err error) error { return &marked{kind, err} }

type marked struct{ kind, err error }

func (e *marked) Error() string { return e.kind.Error() }

func (e *marked) Unwrap() []error { return []error{e.kind, e.err} }

// Explain returns err with a text of one line. What comes from no call of the SDK is
// returned as it is; nil stays nil. On names what was called upon where an answer was
// refused, such as "bucket builds" or "table FileCopyTracking".
func Explain(err error, on string) error {
	if err == nil {
		return nil
	}
	var call *smithy.OperationError
	var known *explained
	if errors.As(err, &known) || !errors.As(err, &call) {
		return err
	}
	return &explained{reason(err, call, on), err}
}

func reason(err error, call *smithy.OperationError, on string) string {
	if errors.Is(err, context.Canceled) {
		return "cancelled"
	}
	if text := credentialsReason(err); text != "" {
		return text
	}
	if s := err.Error(); strings.Contains(s, "Missing Region") || strings.Contains(s, "A region must be set") {
		return "no AWS region is set: set AWS_REGION, or give --table-region for the table, --source-region or --bucket-region for a bucket"
	}
	service := cmp.Or(call.ServiceID, "AWS")
	for _, bound := range []error{answers.ErrStalled, answers.ErrTooLong} {
		if errors.Is(err, bound) {
			_, how, _ := strings.Cut(err.Error(), bound.Error())
			return service + ": " + oneLine(bound.Error()+how)
		}
	}
	status := Status(err)
	switch {
	case status >= http.StatusMultipleChoices:
		return answerReason(err, call, service, on, status)
	case status != 0:
		return fmt.Sprintf("the answer of %s cannot be read: %s", service, oneLine(innermost(call.Err)))
	}
	return transportReason(err, call, service)
}

// Unreached reports whether a call of the SDK had no answer, or one that only says that the
// service cannot answer now: what it was asked for may well be there.
func Unreached(err error) bool {
	var call *smithy.OperationError
	if !errors.As(err, &call) || errors.Is(err, context.Canceled) || credentialsReason(err) != "" {
		return false
	}
	var failed *url.Error
	status := Status(err)
	return errors.As(err, &failed) || errors.Is(err, context.DeadlineExceeded) ||
		status >= http.StatusInternalServerError || status == http.StatusTooManyRequests || throttled[Code(err)]
}

// answerReason explains what a server said.
func answerReason(err error, call *smithy.OperationError, service, on string, status int) string {
	code, message := Code(err), message(err)
	switch {
	case skewed(err, code, message):
		return fmt.Sprintf("%s refuses the request's time%s: set this host's clock (NTP)", service, inBrackets(code))
	case expired[code]:
		return service + " says that the AWS credentials have expired" + inBrackets(code) + ": renew them (a new AWS_SESSION_TOKEN, `aws sso login`, or the host's role)"
	case unknownKey[code]:
		return fmt.Sprintf("%s does not know these AWS credentials (%s): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and the endpoint", service, code)
	case denied[code] || status == http.StatusForbidden && code == "": // 403 is of what is archived and of quotas as well
		return fmt.Sprintf("access denied by %s: the credentials need %s on %s (README.md lists the permissions)%s",
			service, action(call), on, said(code, message))
	case elsewhere[code] || status == http.StatusMovedPermanently || status == http.StatusTemporaryRedirect:
		if region := header(err, "X-Amz-Bucket-Region"); region != "" {
			return fmt.Sprintf("%s is in AWS region %s, not in the one that was asked: give it with --source-region or --bucket-region", on, region)
		}
		return fmt.Sprintf("%s is in another AWS region than the one that was asked: set AWS_REGION, or give --source-region, --bucket-region or --table-region%s", on, said(code, message))
	case throttled[code] || status == http.StatusTooManyRequests:
		return fmt.Sprintf("%s is throttling requests to %s (%s): they are tried again more slowly", service, on, cmp.Or(code, fmt.Sprint(status)))
	case status >= http.StatusInternalServerError:
		return fmt.Sprintf("%s answers %d%s", service, status, said(code, message))
	}
	return fmt.Sprintf("%s refuses it: %s", service, cmp.Or(strings.TrimPrefix(said(code, message), ": "), fmt.Sprintf("%d %s", status, http.StatusText(status))))
}

// transportReason explains why there was no answer.
func transportReason(err error, call *smithy.OperationError, service string) string {
	at := service
	var failed *url.Error
	if errors.As(err, &failed) {
		if u, parseErr := url.Parse(failed.URL); parseErr == nil && u.Host != "" {
			at = fmt.Sprintf("%s at %s://%s", service, u.Scheme, u.Host)
		}
	}
	hint := ""
	for _, name := range endpointVariables(call.ServiceID) {
		if os.Getenv(name) != "" {
			hint = " (the endpoint is from " + name + ")"
			break
		}
	}
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return fmt.Sprintf("%s cannot be reached: no address for %s%s; check the name, the region and the network", at, dns.Name, hint)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing answers at %s: connection refused%s; is it running?", strings.TrimPrefix(at, service+" at "), hint)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("no answer in time from %s%s", at, hint)
	case errors.As(err, &failed):
		return fmt.Sprintf("%s cannot be reached: %s%s", at, oneLine(innermost(failed.Err)), hint)
	}
	return fmt.Sprintf("%s: %s", service, oneLine(innermost(call.Err)))
}

// credentialsReason explains why there are no credentials to sign with; empty when
// that is not the matter.
func credentialsReason(err error) string {
	text := err.Error()
	if !strings.Contains(text, "get credentials") && !strings.Contains(text, "get identity") {
		return ""
	}
	return Credentials(err)
}

// Credentials says why a provider has no credentials.
func Credentials(err error) string {
	text := err.Error()
	if strings.Contains(text, "no EC2 IMDS role found") || strings.Contains(text, "static credentials are empty") || strings.Contains(text, "ec2imds") {
		return "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give this host a role"
	}
	if strings.Contains(strings.ToLower(text), "expired") {
		return "the AWS credentials have expired: renew them (`aws sso login`, a new AWS_SESSION_TOKEN, or the host's role)"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "AWS credentials cannot be had in time; check AWS_PROFILE, the role and the network"
	}
	return "AWS credentials cannot be had: " + oneLine(innermost(err)) + "; check AWS_PROFILE, the role and the network"
}

// endpointVariables are the variables that give a service's endpoint, the first first.
func endpointVariables(service string) []string {
	return []string{"AWS_ENDPOINT_URL_" + strings.ToUpper(strings.ReplaceAll(service, " ", "_")), "AWS_ENDPOINT_URL"}
}

func set(codes ...string) map[string]bool {
	out := make(map[string]bool, len(codes))
	for _, c := range codes {
		out[c] = true
	}
	return out
}

// The codes of S3, DynamoDB and SNS by what they mean.
var (
	expired    = set("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
	unknownKey = set("InvalidAccessKeyId", "UnrecognizedClientException", "InvalidClientTokenId", "SignatureDoesNotMatch",
		"InvalidSignatureException", "AuthFailure", "InvalidToken", "MissingAuthenticationToken", "MissingAuthenticationTokenException",
		"IncompleteSignature", "IncompleteSignatureException", "InvalidSecurity", "NotSignedUp")
	denied    = set("AccessDenied", "AccessDeniedException", "AllAccessDisabled", "AccountProblem", "Forbidden", "AuthorizationError", "UnauthorizedOperation")
	elsewhere = set("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "InvalidLocationConstraint")
	throttled = set("SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "Throttled", "ProvisionedThroughputExceededException",
		"RequestLimitExceeded", "TooManyRequests", "TooManyRequestsException", "BandwidthLimitExceeded", "RequestThrottled", "RequestThrottledException", "KMSThrottling")
)

// actions are IAM's names where they are not the operation's.
var actions = map[string]string{
	"HeadBucket": "ListBucket", "ListObjectsV2": "ListBucket", "HeadObject": "GetObject", "GetObjectAttributes": "GetObject",
	"CreateMultipartUpload": "PutObject", "UploadPart": "PutObject", "CompleteMultipartUpload": "PutObject",
	"ListParts": "ListMultipartUploadParts", "ListMultipartUploads": "ListBucketMultipartUploads",
}

// action is what a policy has to allow for a call, such as s3:GetObject.
func action(call *smithy.OperationError) string {
	service := strings.ToLower(strings.ReplaceAll(call.ServiceID, " ", ""))
	if a, ok := actions[call.OperationName]; ok && service == "s3" {
		return "s3:" + a
	}
	return service + ":" + call.OperationName
}

// Skewed reports whether a server refuses the time of a request: this host's clock, or the
// server's, is off.
func Skewed(err error) bool { return err != nil && skewed(err, Code(err), message(err)) }

// skewed reports whether it is the clock: by code, by words, or, where a HEAD's answer
// has neither, by the server's own clock.
func skewed(err error, code, message string) bool {
	if code == "RequestTimeTooSkewed" || code == "RequestInTheFuture" || strings.HasPrefix(message, "Signature expired") || strings.HasPrefix(message, "Signature not yet current") {
		return true
	}
	if s := Status(err); s != http.StatusForbidden && s != http.StatusBadRequest {
		return false
	}
	at, parseErr := http.ParseTime(header(err, "Date"))
	return parseErr == nil && message == "" && time.Since(at).Abs() > maxSkew
}

// Code is the error code that the server answered with; empty without one.
func Code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// Status is the HTTP status of the server's answer; 0 without one.
func Status(err error) int {
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) && response.Response != nil {
		return response.HTTPStatusCode()
	}
	return 0
}

func message(err error) string {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return ""
	}
	if m := api.ErrorMessage(); m != http.StatusText(Status(err)) && m != "UnknownError" {
		return m
	}
	return ""
}

func header(err error, name string) string {
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) && response.Response != nil {
		return response.Response.Header.Get(name)
	}
	return ""
}

func inBrackets(code string) string {
	if code == "" {
		return ""
	}
	return " (" + code + ")"
}

// said are a server's code and words, to be put after a sentence.
func said(code, message string) string {
	if code == "UnknownError" {
		code = ""
	}
	text := oneLine(strings.Trim(code+": "+message, ": "))
	if text == "" {
		return ""
	}
	return ": " + text
}

// ids are what servers put into their words for their own support.
var ids = regexp.MustCompile(`(?i)[,;]?\s*\(?(service: \w+; )?(request|host|extended request)[ -]?id[:=]?\s*[^\s,;)]*\)?`)

// oneLine makes a server's or a library's words fit a line.
func oneLine(s string) string {
	s = s[:min(len(s), maxSaid)] // what is longer is read no further
	s = ids.ReplaceAllString(strings.Join(strings.Fields(s), " "), "")
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "…"
	}
	return strings.TrimRight(s, " .:;,")
}

// innermost is the text of the error at the bottom of a chain.
func innermost(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil || next.Error() == "" {
			return err.Error()
		}
		err = next
	}
}
