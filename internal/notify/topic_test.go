package notify

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/landfall-dist/landfall/internal/goal"
)

// topics speaks as much of SNS as Publish needs. The regions of configuration
// and topic differ.
type topics struct {
	arn *arn.ARN
	aws aws.Config
	got chan url.Values
}

// newTopics answers with the next of errors, each a status and a code of SNS, and
// takes every message after the last.
func newTopics(t *testing.T, errors ...string) *topics {
	t.Helper()
	topic, err := ParseTopic("arn:aws:sns:eu-west-1:123456789012:builds")
	if err != nil {
		t.Fatal(err)
	}
	s := &topics{arn: topic, got: make(chan url.Values, 100)}
	answers := make(chan string, len(errors))
	for _, e := range errors {
		answers <- e
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil || !strings.Contains(r.Header.Get("Authorization"), "/eu-west-1/sns/aws4_request") {
			t.Errorf("%v, %v", r.Header, err)
		}
		s.got <- r.PostForm
		w.Header().Set("Content-Type", "text/xml")
		select {
		case answer := <-answers:
			var status int
			var code string
			fmt.Sscan(answer, &status, &code)
			w.WriteHeader(status)
			fmt.Fprintf(w, `<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error><Type>Sender</Type><Code>%s</Code>`+
				`<Message>no</Message></Error><RequestId>r-1</RequestId></ErrorResponse>`, code)
		default:
			fmt.Fprint(w, `<PublishResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><PublishResult><MessageId>m-1</MessageId>`+
				`</PublishResult><ResponseMetadata><RequestId>r-1</RequestId></ResponseMetadata></PublishResponse>`)
		}
	}))
	t.Cleanup(server.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	s.aws = aws.Config{
		Region:           "us-east-1",
		Credentials:      credentials.NewStaticCredentialsProvider("test", token, ""),
		BaseEndpoint:     aws.String(server.URL),
		HTTPClient:       &http.Client{Transport: transport},
		RetryMaxAttempts: 5, // as AWS_MAX_ATTEMPTS sets it
	}
	return s
}

// notifier is a running one of a topic.
func (s *topics) notifier(t *testing.T) *runner {
	t.Helper()
	r := prepare(t, Config{Topic: s.arn, AWS: s.aws})
	r.run()
	return r
}

func TestTopicGetsTheNotice(t *testing.T) {
	s := newTopics(t)
	r := s.notifier(t)
	r.Send(notice(1))
	r.until(1, 0, 0)
	form := <-s.got
	for name, want := range map[string]string{
		"Action": "Publish", "TopicArn": "arn:aws:sns:eu-west-1:123456789012:builds",
		"Subject": "Landfall: build-1.zip failed in b-builds", "Message": string(notice(1).encode()),
	} {
		if got := form.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	var got Notice
	if err := json.Unmarshal([]byte(form.Get("Message")), &got); err != nil || got.Bucket != "b-builds" {
		t.Errorf("message %+v, %v", got, err)
	}
}

func TestTopicIsTriedAgain(t *testing.T) {
	for _, errors := range [][]string{
		{"500 InternalError", "503 ServiceUnavailable"},
		{"400 Throttling", "429 Throttled"},
		{"400 KMSThrottling", "408 RequestTimeout"},
	} {
		s := newTopics(t, errors...)
		r := s.notifier(t)
		r.Send(notice(1))
		r.until(1, 0, 0)
		if len(s.got) != 3 {
			t.Errorf("%v: %d tries", errors, len(s.got))
		}
	}
}

func TestTopicIsGivenUp(t *testing.T) {
	for errors, tries := range map[string]int{
		"500 InternalError,500 InternalError,500 InternalError,500 InternalError": 3,
		"403 AuthorizationError,403 AuthorizationError":                           1,
		"404 NotFound,404 NotFound":                                               1,
		"400 InvalidParameter,400 InvalidParameter":                               1,
	} {
		s := newTopics(t, strings.Split(errors, ",")...)
		r := s.notifier(t)
		r.Send(notice(1))
		r.until(0, 1, 0)
		if len(s.got) != tries {
			t.Errorf("%s: %d tries", errors, len(s.got))
		}
		_, code, _ := strings.Cut(strings.Split(errors, ",")[0], " ")
		r.logged("level=ERROR", "notice not sent", fmt.Sprintf("tries=%d", tries), code, "receiver=arn:aws:sns:eu-west-1:123456789012:builds", "key=build-1.zip")
	}
}

func TestSubjects(t *testing.T) {
	long := strings.Repeat("k", 1024)
	for _, c := range []struct{ key, bucket, want string }{
		{"build.zip", "b-builds", "Landfall: build.zip failed in b-builds"},
		{"a\r\nb/ü+\x7f💥.zip", "b-builds", "Landfall: a??b/?+??.zip failed in b-builds"},
		{long + "-12.zip", "b-builds", "Landfall: ..." + strings.Repeat("k", 60) + "-12.zip failed in b-builds"},
		{long + "-12.zip", strings.Repeat("b", 63), "Landfall: ...kkkkk-12.zip failed in " + strings.Repeat("b", 63)},
		{long, strings.Repeat("b", 200), "Landfall: ... failed in " + strings.Repeat("b", 75)},
	} {
		if got := (Notice{Key: c.key, Bucket: c.bucket}).subject(); got != c.want || len(got) > maxSubject {
			t.Errorf("%d characters, %q, want %q", len(got), got, c.want)
		}
	}
}

// TestDeployments has what is said of a deployment that is not done.
func TestDeployments(t *testing.T) {
	build := goal.Build{Key: "web-2.zip", SourceBucket: "global-builds", ExecutionID: "01ARZ3NDEKTSV4RRFFQ69G5FAV"}
	n := OfDeployment(DeploymentStopped, "web", "01K0Z4V5QW8TQ0H6Q9M3N7R2XD", build, "3 hosts of 9 have failed", time.Date(2026, 1, 2, 4, 4, 5, 0, time.FixedZone("", 3600)))
	const want = `{"event":"deployment_stopped","executionId":"01ARZ3NDEKTSV4RRFFQ69G5FAV","key":"web-2.zip","sourceBucket":"global-builds",` +
		`"service":"web","deploymentId":"01K0Z4V5QW8TQ0H6Q9M3N7R2XD","bucket":"","error":"3 hosts of 9 have failed","time":"2026-01-02T03:04:05Z",` +
		`"landed":[],"pending":[],"failed":[]}`
	if got := string(n.encode()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := n.subject(); got != "Landfall: web-2.zip stopped in service web" {
		t.Error(got)
	}
	n.Event, n.Key = DeploymentWentBack, strings.Repeat("k", 1024)
	if got := n.subject(); len(got) > maxSubject || !strings.HasSuffix(got, "k went back in service web") {
		t.Error(got)
	}
}

func TestTopicARNs(t *testing.T) {
	for s, region := range map[string]string{
		"arn:aws:sns:us-east-1:123456789012:builds":            "us-east-1",
		"arn:aws-cn:sns:cn-north-1:123456789012:a_B-9":         "cn-north-1",
		"arn:aws-us-gov:sns:us-gov-west-1:000000000000:builds": "us-gov-west-1",
	} {
		if topic, err := ParseTopic(s); err != nil || topic.String() != s || topic.Region != region {
			t.Errorf("%s: %v, %v", s, topic, err)
		}
	}
	for _, s := range []string{
		"", "builds", "arn:aws:sns:us-east-1:123456789012", "arn:aws:sns::123456789012:builds", "arn:aws:sqs:us-east-1:123456789012:builds",
		"arn:aws:sns:us-east-1:12345:builds", "arn:aws:sns:evil.example/:123456789012:builds", "arn:aws:sns:us-east-1:123456789012:builds:sub-1",
		"arn:aws:sns:us-east-1:123456789012:builds.fifo", "arn:aws:sns:us-east-1:123456789012:builds\n",
	} {
		if topic, err := ParseTopic(s); err == nil {
			t.Errorf("%q: %v", s, topic)
		}
	}
}
