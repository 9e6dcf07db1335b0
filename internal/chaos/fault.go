//go:build linux

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/time/rate"
)

// Fault is what happens to a call in place of its simply being made.
type Fault func(x *exchange)

// The stores' own ways to say no. What S3 calls SlowDown and DynamoDB a throughput
// exceeded is retried by the SDK; so is a 500; the rest is not.
var (
	InternalError  = Refuse(http.StatusInternalServerError, "InternalError", "InternalServerError")
	SlowDown       = Refuse(http.StatusServiceUnavailable, "SlowDown", "ThrottlingException")
	ExpiredToken   = Refuse(http.StatusForbidden, "ExpiredToken", "ExpiredTokenException")
	AccessDenied   = Refuse(http.StatusForbidden, "AccessDenied", "AccessDeniedException")
	TooManyWrites  = Refuse(http.StatusBadRequest, "SlowDown", "ProvisionedThroughputExceededException")
	ConditionFails = Refuse(http.StatusBadRequest, "PreconditionFailed", "ConditionalCheckFailedException")
)

// Refuse answers with a status and a code in the form of the service called; the
// call is not made.
func Refuse(status int, s3Code, dynamoCode string) Fault {
	return func(x *exchange) {
		x.drain()
		if x.S3() {
			x.answer(status, "application/xml", s3Error(s3Code, x.Key))
			return
		}
		x.answer(status, "application/x-amz-json-1.0", dynamoError(dynamoCode))
	}
}

// s3Error is an error as S3 writes it.
func s3Error(code, key string) []byte {
	body, err := xml.Marshal(struct {
		XMLName                       xml.Name `xml:"Error"`
		Code, Message, Key, RequestId string
	}{Code: code, Message: "made by the gate", Key: key, RequestId: "chaos"})
	if err != nil {
		panic(err) // strings can be marshalled
	}
	return append([]byte(xml.Header), body...)
}

// dynamoError is an error as DynamoDB writes it.
func dynamoError(code string) []byte {
	body, err := json.Marshal(map[string]string{
		"__type": "com.amazonaws.dynamodb.v20120810#" + code, "message": "made by the gate",
	})
	if err != nil {
		panic(err) // strings can be marshalled
	}
	return body
}

func (x *exchange) answer(status int, contentType string, body []byte) {
	h := x.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if !x.S3() {
		h.Set("X-Amz-Crc32", fmt.Sprint(crc32.ChecksumIEEE(body)))
	}
	x.w.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		_, _ = x.w.Write(body) // the member may be gone
	}
}

// drain reads the request's body, as a store does before it answers.
func (x *exchange) drain() { _, _ = io.Copy(io.Discard, io.LimitReader(x.r.Body, maxHeld)) }

// reset ends the connection, with what is still under way on it thrown away.
func (x *exchange) reset() {
	_ = x.conn.SetLinger(0)
	panic(http.ErrAbortHandler)
}

// Reset ends the connection before the call is made.
func Reset(x *exchange) { x.reset() }

// ResetInRequest ends the connection in the middle of the request's body.
func ResetInRequest(x *exchange) {
	half := x.r.ContentLength / 2
	_, _ = io.CopyN(io.Discard, x.r.Body, half)
	x.reset()
}

// ResetInStore lets half of the request's body through to the store.
func ResetInStore(x *exchange) {
	_ = x.conn.SetLinger(0)
	x.r.Body = &cutBody{x.r.Body, x.r.ContentLength / 2}
	x.forward()
}

// ResetInAnswer makes the call and ends the connection in the middle of the
// answer's body.
func ResetInAnswer(x *exchange) {
	x.inAnswer = func(res *http.Response) error {
		_ = x.conn.SetLinger(0)
		res.Body = &cutBody{res.Body, res.ContentLength / 2}
		return nil
	}
	x.forward()
}

// LoseAnswer makes the call and ends the connection before anything of the answer
// is seen: the nastiest, since the caller cannot know.
func LoseAnswer(x *exchange) {
	x.inAnswer = func(res *http.Response) error {
		_ = x.conn.SetLinger(0)
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return err
		}
		return errCut
	}
	x.forward()
}

// cutBody ends with an error after so many bytes.
type cutBody struct {
	io.ReadCloser
	left int64
}

func (b *cutBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errCut
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// Hang lets the call wait for so long, or until the fault is healed, and then be
// made. A caller that gives up first has not made it.
func Hang(d time.Duration) Fault {
	return func(x *exchange) {
		x.hold()
		select {
		case <-time.After(d):
		case <-x.healed:
		case <-x.r.Context().Done():
			panic(http.ErrAbortHandler)
		}
		x.forward()
	}
}

// HangAfter makes the call, and lets the answer wait for so long or until the
// fault is healed.
func HangAfter(d time.Duration) Fault {
	return func(x *exchange) {
		x.inAnswer = func(*http.Response) error {
			select {
			case <-time.After(d):
			case <-x.healed:
			case <-x.r.Context().Done():
				return errCut
			}
			return nil
		}
		x.hold()
		x.forward()
	}
}

// hold reads the request's body: the server notices that a caller has gone only
// after that.
func (x *exchange) hold() {
	body, err := io.ReadAll(io.LimitReader(x.r.Body, maxHeld))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	x.r.Body = io.NopCloser(bytes.NewReader(body))
}

// Hold keeps calls back until they are let go or the fault is healed, and tells of
// each. A caller that is gone by then has not made its call.
func Hold(held chan<- Call, letGo <-chan struct{}) Fault {
	return func(x *exchange) {
		x.hold()
		select {
		case held <- x.Call:
		default: // somebody was told already
		}
		select {
		case <-letGo:
		case <-x.healed:
		case <-x.r.Context().Done():
			panic(http.ErrAbortHandler)
		}
		x.forward()
	}
}

// Late is a Hold whose calls are made in any case: they are on their way already,
// and their callers cannot take them back.
func Late(held chan<- Call, letGo <-chan struct{}) Fault {
	return func(x *exchange) {
		x.hold()
		select {
		case held <- x.Call:
		default:
		}
		select {
		case <-letGo:
		case <-x.healed:
		}
		x.r = x.r.WithContext(context.WithoutCancel(x.r.Context()))
		x.forward()
	}
}

// HoldAnswer makes the calls and keeps their answers back in the same way.
func HoldAnswer(held chan<- Call, letGo <-chan struct{}) Fault {
	return func(x *exchange) {
		x.inAnswer = func(*http.Response) error {
			select {
			case held <- x.Call:
			default:
			}
			select {
			case <-letGo:
			case <-x.healed:
			case <-x.r.Context().Done():
				return errCut
			}
			return nil
		}
		x.hold()
		x.forward()
	}
}

// Slow moves bodies at so many bytes/s, all calls that meet it together.
func Slow(bytesPerSecond int) Fault {
	limit := rate.NewLimiter(rate.Limit(bytesPerSecond), slowStep)
	return func(x *exchange) {
		x.r.Body = &slowBody{x.r.Body, x, limit}
		x.inAnswer = func(res *http.Response) error {
			res.Body = &slowBody{res.Body, x, limit}
			return nil
		}
		x.forward()
	}
}

// slowStep is how many bytes a slow body gives at a time.
const slowStep = 16 << 10

type slowBody struct {
	io.ReadCloser
	x     *exchange
	limit *rate.Limiter
}

func (b *slowBody) Read(p []byte) (int, error) {
	select {
	case <-b.x.healed:
		return b.ReadCloser.Read(p)
	default:
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), slowStep)])
	if n > 0 {
		if wait := b.limit.WaitN(b.x.r.Context(), n); wait != nil {
			return 0, wait
		}
	}
	return n, err
}
