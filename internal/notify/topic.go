package notify

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sns/types"

	"github.com/landfall-dist/landfall/internal/awserr"
)

// topicARN is what CreateTopic gives: its region becomes part of a host's name.
var topicARN = regexp.MustCompile(`^arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,256}$`)

// ParseTopic reads the ARN of a standard topic.
func ParseTopic(s string) (*arn.ARN, error) {
	if name, ok := strings.CutSuffix(s, ".fifo"); ok && topicARN.MatchString(name) {
		return nil, fmt.Errorf("%s is a FIFO topic, expected a standard one", s)
	}
	if !topicARN.MatchString(s) {
		return nil, fmt.Errorf("%q is no ARN of an SNS topic, such as arn:aws:sns:us-east-1:123456789012:builds", s)
	}
	topic, err := arn.Parse(s)
	return &topic, err
}

// topic takes notices as messages of SNS.
type topic struct {
	arn    string
	client *sns.Client
}

func newTopic(cfg aws.Config, t *arn.ARN) *topic {
	return &topic{t.String(), sns.NewFromConfig(cfg, func(o *sns.Options) {
		o.Region = t.Region
		o.Retryer = aws.NopRetryer{} // the tries are deliver's
	})}
}

func (t *topic) name() string { return t.arn }

// close does nothing: the connections are those of the AWS configuration.
func (t *topic) close() {}

func (t *topic) send(ctx context.Context, m *message) error {
	_, err := t.client.Publish(ctx, &sns.PublishInput{
		TopicArn: &t.arn,
		Subject:  aws.String(m.subject()),
		Message:  aws.String(string(m.body)),
	})
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		return refused{awserr.Explain(err, "topic "+t.arn), response.HTTPStatusCode(), throttled(err)}
	}
	return awserr.Explain(err, "topic "+t.arn)
}

// throttled reports whether SNS asks for patience, which it may do with 400.
func throttled(err error) bool {
	var kms *types.KMSThrottlingException
	return errors.As(err, &kms) || retry.IsErrorThrottles(retry.DefaultThrottles).IsErrorThrottle(err) == aws.TrueTernary
}
