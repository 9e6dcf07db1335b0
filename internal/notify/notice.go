package notify

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// Events of notices.
const (
	DestinationFailed = "destination_failed"
	// DeploymentStopped and DeploymentWentBack: one of a service has ended otherwise than done.
	DeploymentStopped  = "deployment_stopped"
	DeploymentWentBack = "deployment_went_back"
)

// Notice says that a destination has failed, or a deployment has not been done. Its JSON is
// what receivers rely on: fields may be added, not renamed.
type Notice struct {
	Event        string `json:"event"`
	ExecutionID  string `json:"executionId"`
	Key          string `json:"key"`
	SourceBucket string `json:"sourceBucket"`
	// Service and Deployment are of a deployment alone.
	Service    string `json:"service,omitempty"`
	Deployment string `json:"deploymentId,omitempty"`
	// Bucket is the destination that has failed, empty of a deployment; Error is why.
	Bucket string `json:"bucket"`
	Error  string `json:"error"`
	// Time is when it failed, in UTC.
	Time time.Time `json:"time"`
	// Landed, Pending and Failed are all destinations of the execution as they
	// were then, in order; this one is in Failed. None of them is nil.
	Landed  []string `json:"landed"`
	Pending []string `json:"pending"`
	Failed  []string `json:"failed"`
}

// Of is the notice of a destination that the record calls failed.
func Of(r *ledger.Record, bucket string) Notice {
	result := r.Results[bucket]
	return Notice{
		Event:        DestinationFailed,
		ExecutionID:  r.ExecutionID,
		Key:          r.FileKey,
		SourceBucket: r.SourceBucket,
		Bucket:       bucket,
		Error:        result.Error,
		Time:         result.Timestamp.UTC(),
		Landed:       all(r.Successful),
		Pending:      all(r.Pending()),
		Failed:       all(r.Failed),
	}
}

// OfDeployment is the notice of a service's deployment that has ended in an event of these,
// and the build that it was to bring.
func OfDeployment(event, service, id string, build goal.Build, reason string, at time.Time) Notice {
	return Notice{
		Event: event, ExecutionID: build.ExecutionID, Key: build.Key, SourceBucket: build.SourceBucket,
		Service: service, Deployment: id, Error: reason, Time: at.UTC(),
		Landed: []string{}, Pending: []string{}, Failed: []string{},
	}
}

// all copies a set; an empty one is [] in JSON, not null.
func all(buckets []string) []string { return append([]string{}, buckets...) }

// encode returns the notice as JSON, in one line.
func (n Notice) encode() []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.Encode(n) //nolint:errcheck // strings and a time of this age always encode
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

const (
	// maxSubject is less than the 100 characters of an SNS subject.
	maxSubject = 99
	// cutMark stands for the beginning of a key that is too long.
	cutMark = "..."
)

// subject says the notice in a line of printable ASCII. A key that is too long
// keeps its end, which tells builds apart.
func (n Notice) subject() string {
	const before = "Landfall: "
	between, where := " failed in ", n.Bucket
	switch n.Event {
	case DeploymentStopped:
		between, where = " stopped in service ", n.Service
	case DeploymentWentBack:
		between, where = " went back in service ", n.Service
	}
	room := max(len(cutMark), maxSubject-len(before)-len(between)-len(where))
	key := printable(n.Key)
	if len(key) > room {
		key = cutMark + key[len(key)-room+len(cutMark):]
	}
	s := before + key + between + printable(where)
	return s[:min(len(s), maxSubject)]
}

// printable replaces what is not printable ASCII, one ? for each character.
func printable(s string) string {
	out := []rune(s)
	for i, c := range out {
		if c < ' ' || c > '~' {
			out[i] = '?'
		}
	}
	return string(out)
}
