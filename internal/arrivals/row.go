package arrivals

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/ledger"
)

const (
	// maxLandings bounds the executions whose landings one row names: the key's, one whose
	// build is going up, and those that were superseded since the last arrival.
	maxLandings = 4
	// maxSignature bounds a signature with what is needed to check it, in bytes.
	maxSignature = 8 << 10
	// maxNumber is where a number still is exact for those who read it as a float.
	maxNumber = 1 << 53
	// purpose is what an arrival's signature is made for.
	purpose = "landfall-arrival-v1"
)

// item is a row as DynamoDB has it.
type item = map[string]types.AttributeValue

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func number(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

// Row is what a destination's agents say of a build there.
type Row struct {
	Place
	// Arrival is how it ended last; nil before.
	Arrival *Arrival
	// Odd is the first thing in the row that could not be read and was left out; empty for
	// nothing.
	Odd string

	version  int64
	landings map[string]ledger.Landing // by executionId
	item     item                      // as the table has it; nil where it has none
}

// Arrival is how an execution ended at a destination: it is there, or cannot land.
type Arrival struct {
	ExecutionID string
	ledger.Result
	// Retries are those of the execution when it failed: a later retry makes nothing of it.
	Retries int64
	// Signature is the agent's, by its certificate's key; empty without TLS.
	Signature []byte
}

// Signer signs what an agent records, by its certificate's key.
type Signer interface {
	Sign(purpose string, message []byte) ([]byte, error)
}

// Checker checks signatures of agents.
type Checker interface {
	// Check says why a signature is not that of an agent that serves the bucket.
	Check(bucket, agent, purpose string, message, signature []byte) error
}

// message is what is signed of an arrival: all that the row says of it, in one order.
func (a *Arrival) message(p Place) []byte {
	b, err := json.Marshal(struct {
		Bucket, SourceBucket, FileKey, ExecutionID string
		Success, Final                             bool
		Bytes, Retries                             int64
		Timestamp, ETag, SHA256                    string
		Region, Agent, Error                       string
	}{
		p.Bucket, p.SourceBucket, p.FileKey, a.ExecutionID, a.Success, a.Final, a.Bytes, a.Retries,
		a.Timestamp.UTC().Format(time.RFC3339Nano), a.ETag, a.SHA256, a.Region, a.Agent, a.Error,
	})
	if err != nil {
		panic(err) // texts and numbers can be marshalled
	}
	return b
}

// Verify checks the arrival's signature.
func (r *Row) Verify(by Checker) error {
	a := r.Arrival
	if len(a.Signature) == 0 {
		return fmt.Errorf("the arrival of %s in %s is not signed", r.FileKey, r.Bucket)
	}
	return by.Check(r.Bucket, a.Agent, purpose, a.message(r.Place), a.Signature)
}

// decode reads a row as far as it can be read; i is nil where there is none. What names
// another build says nothing.
func decode(p Place, i item, now time.Time) *Row {
	r := &Row{Place: p, landings: make(map[string]ledger.Landing)}
	if len(i) == 0 {
		return r
	}
	of := ledger.Read(i, now)
	r.item, r.version = i, of.Number("version", maxNumber)
	if of.Whole("sourceBucket") != p.SourceBucket || of.Whole("fileKey") != p.FileKey {
		r.Odd = "it names another build"
		return r
	}
	of.Each("landings", maxLandings, func(id string, l *ledger.Attributes) {
		if executionid.Check(id, now) == nil {
			r.landings[id] = ledger.Landing{Agent: l.Text("agent"), UploadID: l.Text("uploadId"), Holder: l.Text("process"), ExecutionID: id}
		}
	})
	if result, ok := of.Result("result"); ok {
		a := &Arrival{ExecutionID: of.Text("executionId"), Result: result, Retries: of.Number("retries", maxNumber)}
		if s, ok := i["signature"].(*types.AttributeValueMemberB); ok && len(s.Value) <= maxSignature {
			a.Signature = s.Value
		}
		if executionid.Check(a.ExecutionID, now) == nil {
			r.Arrival = a
		}
	}
	r.Odd = of.Odd()
	return r
}

// encode writes the row over what was read, so that attributes of others stay.
func (r *Row) encode() item {
	i := maps.Clone(r.item)
	if i == nil {
		i = item{}
	}
	maps.Copy(i, r.key())
	i["sourceBucket"], i["fileKey"], i["version"] = text(r.SourceBucket), text(r.FileKey), number(r.version)
	landings := make(item, len(r.landings))
	for id, l := range r.landings {
		landings[id] = &types.AttributeValueMemberM{Value: item{"agent": text(l.Agent), "process": text(l.Holder), "uploadId": text(l.UploadID)}}
	}
	i["landings"] = &types.AttributeValueMemberM{Value: landings}
	for _, name := range []string{"executionId", "result", "retries", "signature"} {
		delete(i, name)
	}
	if a := r.Arrival; a != nil {
		i["executionId"], i["result"], i["retries"] = text(a.ExecutionID), a.Attribute(), number(a.Retries)
		if len(a.Signature) > 0 {
			i["signature"] = &types.AttributeValueMemberB{Value: a.Signature}
		}
	}
	return i
}

// clone shares nothing that is changed in place.
func (r *Row) clone() *Row {
	c := *r
	c.landings = maps.Clone(r.landings)
	return &c
}

// of is the arrival of an execution, if the row has that.
func (r *Row) of(executionID string) (*Arrival, bool) {
	return r.Arrival, r.Arrival != nil && r.Arrival.ExecutionID == executionID
}

// land notes the landing of an execution, in place of the oldest when there are too many.
func (r *Row) land(l ledger.Landing) {
	r.landings[l.ExecutionID] = l
	for len(r.landings) > maxLandings {
		for _, id := range slices.Sorted(maps.Keys(r.landings)) {
			if id != l.ExecutionID {
				delete(r.landings, id)
				break
			}
		}
	}
}

// end notes how an execution ended; what was landing of it, and of older ones, is over.
func (r *Row) end(a *Arrival) {
	r.Arrival = a
	maps.DeleteFunc(r.landings, func(id string, _ ledger.Landing) bool { return id <= a.ExecutionID })
}

// Over returns the execution's record as it is with what the row says: its landing, and its
// result where that counts.
func (r *Row) Over(last *ledger.Record) *ledger.Record {
	for _, l := range r.landings {
		last = last.WithLanding(r.Bucket, l)
	}
	if a, ok := r.of(last.ExecutionID); ok && last.ExecutionID != "" && (a.Success || a.Retries == last.Retries) {
		last = last.With(r.Bucket, a.Result)
	}
	return last
}
