package devcloud

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
)

const (
	internalError = "InternalServerError"
	tooLarge      = "RequestEntityTooLargeException"
)

// apiErrorf makes an error of the DynamoDB API with a code, which becomes the
// __type of the answer.
func apiErrorf(code, format string, args ...any) error {
	return &smithy.GenericAPIError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// apiError is the body of an answer that is an error.
type apiError struct {
	Type    string `json:"__type"`
	Message string `json:"message"`
	// Item is that of a ConditionalCheckFailedException, where the request
	// asked for it.
	Item                item                 `json:",omitempty"`
	CancellationReasons []cancellationReason `json:",omitempty"`
}

type cancellationReason struct {
	Code    *string
	Message *string `json:",omitempty"`
	Item    item    `json:",omitempty"`
}

// errorAnswer returns the HTTP status and the body for an error.
func errorAnswer(err error) (int, apiError) {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return http.StatusInternalServerError, apiError{Type: internalError, Message: err.Error()}
	}
	a := apiError{Type: api.ErrorCode(), Message: api.ErrorMessage()}
	switch e := api.(type) {
	case *ddbtypes.ConditionalCheckFailedException:
		a.Item = itemOfSDK(e.Item)
	case *ddbtypes.TransactionCanceledException:
		for _, r := range e.CancellationReasons {
			a.CancellationReasons = append(a.CancellationReasons, cancellationReason{r.Code, r.Message, itemOfSDK(r.Item)})
		}
	}
	var shown *conflict
	if errors.As(err, &shown) {
		a.Item = shown.item
	}
	switch a.Type {
	case internalError:
		return http.StatusInternalServerError, a
	case tooLarge:
		return http.StatusRequestEntityTooLarge, a
	}
	return http.StatusBadRequest, a
}

// itemOfSDK converts the form that items have inside minidyn's errors.
func itemOfSDK(values map[string]ddbtypes.AttributeValue) item {
	m := make(item, len(values))
	for name, v := range values {
		m[name] = attributeOfSDK(v)
	}
	return m
}

func attributeOfSDK(v ddbtypes.AttributeValue) *attribute {
	switch v := v.(type) {
	case *ddbtypes.AttributeValueMemberB:
		return &attribute{B: v.Value}
	case *ddbtypes.AttributeValueMemberBOOL:
		return &attribute{BOOL: &v.Value}
	case *ddbtypes.AttributeValueMemberBS:
		return &attribute{BS: v.Value}
	case *ddbtypes.AttributeValueMemberL:
		list := make([]*attribute, len(v.Value))
		for i, e := range v.Value {
			list[i] = attributeOfSDK(e)
		}
		return &attribute{L: list}
	case *ddbtypes.AttributeValueMemberM:
		return &attribute{M: itemOfSDK(v.Value)}
	case *ddbtypes.AttributeValueMemberN:
		return &attribute{N: &v.Value}
	case *ddbtypes.AttributeValueMemberNS:
		return &attribute{NS: aws.StringSlice(v.Value)}
	case *ddbtypes.AttributeValueMemberS:
		return &attribute{S: &v.Value}
	case *ddbtypes.AttributeValueMemberSS:
		return &attribute{SS: aws.StringSlice(v.Value)}
	}
	return &attribute{NULL: aws.Bool(true)}
}
