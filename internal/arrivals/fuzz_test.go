package arrivals

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// attributeOf takes DynamoDB's JSON apart; nil for what is none.
func attributeOf(raw json.RawMessage) types.AttributeValue {
	var v struct {
		S, N *string
		B    []byte
		BOOL *bool
		NULL bool
		SS   []string
		L    []json.RawMessage
		M    map[string]json.RawMessage
	}
	if json.Unmarshal(raw, &v) != nil {
		return nil
	}
	switch {
	case v.S != nil:
		return text(*v.S)
	case v.N != nil:
		return &types.AttributeValueMemberN{Value: *v.N}
	case v.B != nil:
		return &types.AttributeValueMemberB{Value: v.B}
	case v.BOOL != nil:
		return &types.AttributeValueMemberBOOL{Value: *v.BOOL}
	case v.SS != nil:
		return &types.AttributeValueMemberSS{Value: v.SS}
	case v.L != nil:
		l := &types.AttributeValueMemberL{}
		for _, e := range v.L {
			if a := attributeOf(e); a != nil {
				l.Value = append(l.Value, a)
			}
		}
		return l
	case v.M != nil:
		return &types.AttributeValueMemberM{Value: attributesOf(v.M)}
	}
	return &types.AttributeValueMemberNULL{Value: true}
}

func attributesOf(m map[string]json.RawMessage) item {
	i := item{}
	for name, e := range m {
		if a := attributeOf(e); a != nil {
			i[name] = a
		}
	}
	return i
}

// plain is the reverse, of what rows are made of.
func plain(a types.AttributeValue) any {
	switch a := a.(type) {
	case *types.AttributeValueMemberS:
		return map[string]any{"S": a.Value}
	case *types.AttributeValueMemberN:
		return map[string]any{"N": a.Value}
	case *types.AttributeValueMemberB:
		return map[string]any{"B": a.Value}
	case *types.AttributeValueMemberBOOL:
		return map[string]any{"BOOL": a.Value}
	case *types.AttributeValueMemberM:
		m := map[string]any{}
		for name, v := range a.Value {
			m[name] = plain(v)
		}
		return map[string]any{"M": m}
	}
	return map[string]any{"NULL": true}
}

// FuzzRow: whatever a region's agents have written into a row, it is read within bounds, and
// what is written over it is read as the same.
func FuzzRow(f *testing.F) {
	p := Place{Key: ledger.Key{FileKey: "build.zip", SourceBucket: "global-builds"}, Bucket: "aaa"}
	id := executionid.New(noon, "")
	row := &Row{Place: p, version: 7, landings: map[string]ledger.Landing{id: {Agent: "a1", Holder: "a1-1", UploadID: "u", ExecutionID: id}},
		Arrival: &Arrival{ExecutionID: id, Retries: 1, Signature: []byte("s"), Result: ledger.Result{Success: true, Timestamp: noon, Bytes: 7, ETag: `"e"`, SHA256: "x", Region: "r", Agent: "a1"}}}
	for _, i := range []item{row.encode(), {"sourceBucket": text("global-builds"), "fileKey": text("build.zip"), "landings": text("none"), "result": number(1)}} {
		m := plain(&types.AttributeValueMemberM{Value: i}).(map[string]any)["M"]
		b, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m map[string]json.RawMessage
		if json.Unmarshal(b, &m) != nil {
			return
		}
		now := noon.Add(time.Hour)
		r := decode(p, attributesOf(m), now)
		if len(r.landings) > maxLandings || r.version < 0 || r.version > maxNumber {
			t.Errorf("%d landings, version %d", len(r.landings), r.version)
		}
		if a := r.Arrival; a != nil {
			if len(a.Signature) > maxSignature || executionid.Check(a.ExecutionID, now) != nil || a.Bytes < 0 {
				t.Errorf("%+v", a)
			}
			_ = a.message(p)
		}
		if r.Odd != "" {
			return
		}
		again := decode(p, r.encode(), now)
		if again.version != r.version || len(again.landings) != len(r.landings) || (again.Arrival == nil) != (r.Arrival == nil) {
			t.Errorf("read as %+v, written and read again as %+v", r, again)
		} else if a := r.Arrival; a != nil && !bytes.Equal(a.message(p), again.Arrival.message(p)) {
			t.Errorf("what is signed was %s, and is %s", a.message(p), again.Arrival.message(p))
		}
	})
}
