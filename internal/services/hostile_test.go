package services

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/ledger"
)

const hostileTable = "hostile"

// answering is what DynamoDB answers to an operation, around one item as JSON; more is put
// beside it.
func answering(op, item, more string) string {
	switch op {
	case "BatchGetItem":
		return fmt.Sprintf(`{"Responses":{%q:[%s]}%s}`, hostileTable, item, more)
	case "Scan", "Query":
		return fmt.Sprintf(`{"Items":[%s],"Count":1,"ScannedCount":1%s}`, item, more)
	case "GetItem":
		return fmt.Sprintf(`{"Item":%s%s}`, item, more)
	}
	return fmt.Sprintf(`{"Attributes":%s%s}`, item, more)
}

// around is the same of an item with these attributes beside its key.
func around(op, attributes string) string {
	return answering(op, `{"fileKey":{"S":"k"},"sourceBucket":{"S":"b"},"service":{"S":"web"},"deploymentId":{"S":"d"},"id":{"S":"i"},"destinationBucket":{"S":"aaa"},`+attributes+`}`, "")
}

// hostileAnswers are what no table should say, as the body of any answer to an operation. Answers
// that never end, or come a byte at a time, are package answers' to test.
var hostileAnswers = map[string]func(op string) string{
	"deep": func(op string) string {
		return answering(op, `{"landings":`+strings.Repeat(`{"M":{"a":`, 20_000), "")
	},
	"deep and closed": func(op string) string {
		const levels = 3000
		return around(op, `"landings":`+strings.Repeat(`{"M":{"a":`, levels)+`{"S":"x"}`+strings.Repeat(`}}`, levels)+`,"copyResults":`+strings.Repeat(`{"L":[`, levels)+strings.Repeat(`]}`, levels))
	},
	"numbers of another kind": func(op string) string {
		return around(op, `"version":{"N":"many"},"size":{"N":"0x10"},"successfulCopies":{"N":""},"failedCopies":{"N":"NaN"},"retries":{"N":"-1"}`)
	},
	"numbers out of range": func(op string) string {
		return around(op, `"version":{"N":"99999999999999999999999"},"size":{"N":"-1"},"successfulCopies":{"N":"1e999999"},"retries":{"N":"9007199254740993"}`)
	},
	"numbers that are none": func(op string) string { return around(op, `"version":{"N":7},"size":{"N":true}`) },
	"attributes of other types": func(op string) string {
		return around(op, `"executionId":{"M":{}},"status":{"L":[]},"destinationBuckets":{"BOOL":true},"copyResults":{"SS":["x"]},"landings":{"N":"1"},"version":{"S":"1"},"goal":{"S":"x"},"document":{"B":"eA=="},"beat":{"M":{}},"result":{"S":"x"}`)
	},
	"types that there are not": func(op string) string {
		return around(op, `"status":{"X":"y"},"version":{},"landings":{"M":null},"copyResults":{"M":[]}`)
	},
	"two types at once": func(op string) string {
		return around(op, `"status":{"S":"IN_PROGRESS","N":"1","M":{}},"version":{"N":"1","N":"2"}`)
	},
	"not base64": func(op string) string {
		return around(op, `"goal":{"B":"%%%"},"beat":{"B":"="},"signature":{"BS":["*"]}`)
	},
	"too many": func(op string) string {
		var b strings.Builder
		for i := range 5_000 {
			fmt.Fprintf(&b, `"a%d":{"S":"x"},"landings":{"M":{"e%d":{"M":{"agent":{"S":"x"}}}}},`, i, i)
		}
		return around(op, b.String()+`"z":{"S":"x"}`)
	},
	"many items": func(op string) string {
		return answering(op, strings.TrimSuffix(strings.Repeat(`{"service":{"S":"web"},"version":{"N":"1"}},`, 5_000), ","), "")
	},
	"long texts": func(op string) string {
		long := strings.Repeat("k", 512<<10)
		return around(op, `"executionId":{"S":"`+long+`"},"status":{"S":"`+long+`"},"completed":{"S":"`+long+`"},"document":{"S":"`+long+`"},"destinationBuckets":{"SS":["`+long+`"]}`)
	},
	"texts that are none": func(op string) string {
		return around(op, "\"status\":{\"S\":\"\xff\xfe\"},\"executionId\":{\"S\":\"\\ud800\"},\"completed\":{\"S\":\"{\\\"a\\\":\"}")
	},
	"nulls": func(op string) string {
		return `{"Item":null,"Items":[null],"Attributes":null,"Responses":{"` + hostileTable + `":[null]},"UnprocessedKeys":null,"LastEvaluatedKey":null,"Count":null}`
	},
	"no last page": func(op string) string {
		return answering(op, `{"service":{"S":"head"}}`, `,"Count":-2147483648,"LastEvaluatedKey":{"service":{"S":"x"}},"UnprocessedKeys":{"`+hostileTable+`":{"Keys":[{"id":{"S":"i"},"destinationBucket":{"S":"aaa"}}]}}`)
	},
	"a conflict": func(op string) string {
		return `{"__type":"com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException","message":"no","Item":{"executionId":{"M":{}},"version":{"N":"x"}}}`
	},
	"a long error": func(string) string {
		long := strings.Repeat("e", 512<<10)
		return `{"__type":"` + long + `","message":"` + long + `"}`
	},
	"a list":    func(string) string { return "[]" },
	"no JSON":   func(string) string { return "<html>log in</html>\x00\xff" },
	"nothing":   func(string) string { return "" },
	"cut short": func(op string) string { return around(op, `"status":{"S":"IN_PRO`)[:100] },
}

// TestHostileAnswers: whatever DynamoDB answers to a call, the call ends, with an error or with
// what is in its bounds, and the process goes on.
func TestHostileAnswers(t *testing.T) {
	key := ledger.Key{FileKey: "k", SourceBucket: "b"}
	execution := ulid.Make().String()
	type tables struct {
		items    *ledger.Ledger
		rows     *arrivals.Table
		services *Tables
	}
	running := func() *ledger.Record {
		return &ledger.Record{Key: key, ExecutionID: execution, Status: ledger.InProgress, Destinations: []string{"aaa", "bbb"}, Results: map[string]ledger.Result{}, Landings: map[string]ledger.Landing{}, Size: 7, Version: 1}
	}
	result := ledger.Result{Success: true, Timestamp: time.Now(), Bytes: 7, Agent: "a", Region: "r"}
	calls := []struct {
		name, op string // the one that is answered so; others find nothing
		call     func(context.Context, tables) error
	}{
		{"an item", "GetItem", func(ctx context.Context, of tables) error {
			r, err := of.items.Get(ctx, key)
			if err == nil && (r.Size < 0 || r.Version < 0) {
				t.Errorf("size %d, version %d", r.Size, r.Version)
			}
			return err
		}},
		{"all items", "Scan", func(ctx context.Context, of tables) error {
			return of.items.Scan(ctx, ledger.Scan{Record: func(*ledger.Record) {}})
		}},
		{"a new item", "PutItem", func(ctx context.Context, of tables) error {
			_, err := of.items.Begin(ctx, ledger.Start{Key: key, SourceETag: "e", Size: 7, Destinations: []string{"aaa", "bbb"}, Now: time.Now()})
			return err
		}},
		{"an item that is there", "GetItem", func(ctx context.Context, of tables) error {
			_, err := of.items.Begin(ctx, ledger.Start{Key: key, SourceETag: "e", Size: 7, Destinations: []string{"aaa", "bbb"}, Now: time.Now()})
			return err
		}},
		{"an arrival", "UpdateItem", func(ctx context.Context, of tables) error {
			_, err := of.items.Arrive(ctx, running(), "aaa", result)
			return err
		}},
		{"a landing", "UpdateItem", func(ctx context.Context, of tables) error {
			_, err := of.items.SetLanding(ctx, key, execution, "aaa", ledger.Landing{Agent: "a", UploadID: "u", ExecutionID: execution})
			return err
		}},
		{"rows", "BatchGetItem", func(ctx context.Context, of tables) error {
			_, err := of.rows.Rows(ctx, []arrivals.Place{{Key: key, Bucket: "aaa"}})
			return err
		}},
		{"a row", "GetItem", func(ctx context.Context, of tables) error {
			_, err := arrivals.NewRecords(of.items, of.rows, "aaa", "a", "process", nil, nil).Arrive(ctx, running(), "aaa", result)
			return err
		}},
		{"a row that is written", "PutItem", func(ctx context.Context, of tables) error {
			_, err := arrivals.NewRecords(of.items, of.rows, "aaa", "a", "process", nil, nil).Arrive(ctx, running(), "aaa", result)
			return err
		}},
		{"all services", "Scan", func(ctx context.Context, of tables) error {
			_, err := of.services.All(ctx)
			return err
		}},
		{"a service", "GetItem", func(ctx context.Context, of tables) error {
			_, err := of.services.Service(ctx, "web")
			return err
		}},
		{"deployments", "Query", func(ctx context.Context, of tables) error {
			list, err := of.services.Deployments(ctx, "web", 10)
			if len(list) > MaxListed {
				t.Errorf("%d deployments", len(list))
			}
			return err
		}},
		{"a beat", "GetItem", func(ctx context.Context, of tables) error {
			_, _, err := of.services.Head(ctx)
			return err
		}},
		{"recalls", "GetItem", func(ctx context.Context, of tables) error {
			r, err := of.services.Recalls(ctx)
			if err == nil && len(r.Builds) > goal.MaxRecalled {
				t.Errorf("%d recalls", len(r.Builds))
			}
			return err
		}},
		{"failures that are counted", "Query", func(ctx context.Context, of tables) error {
			hosts, rest, err := of.services.Logged(ctx, "region-a", "01K")
			if hosts < 0 || hosts > maxCounted || len(rest) > maxRest {
				t.Errorf("%d hosts, %d reasons", hosts, len(rest))
			}
			return err
		}},
		{"hosts that are written", "UpdateItem", func(ctx context.Context, of tables) error {
			return of.services.LogHosts(ctx, "region-a", "01K", []Host{{Name: "a", State: goal.Ready}, {Name: "b", State: goal.Failed}})
		}},
		{"a beat that is written", "PutItem", func(ctx context.Context, of tables) error {
			return of.services.WriteHead(ctx, []byte("beat"), []byte("its"))
		}},
	}
	for name, answer := range hostileAnswers {
		for _, status := range []int{http.StatusOK, http.StatusBadRequest, http.StatusInternalServerError, http.StatusFound} {
			t.Run(fmt.Sprint(name, " ", status), func(t *testing.T) {
				t.Parallel()
				// The path names the operation that is answered so.
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Type", "application/x-amz-json-1.0")
					_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
					if strings.Trim(r.URL.Path, "/") != op {
						_, _ = io.WriteString(w, "{}")
						return
					}
					w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
					w.WriteHeader(status)
					_, _ = io.WriteString(w, answer(op)) // the client may not want it
				}))
				t.Cleanup(server.Close)
				var all sync.WaitGroup
				for _, c := range calls {
					client := dynamodb.NewFromConfig(cloud.AWS, func(o *dynamodb.Options) {
						o.BaseEndpoint, o.HTTPClient = aws.String(server.URL+"/"+c.op), server.Client()
						o.Retryer = aws.NopRetryer{} // what is tried again is awserr's to test
					})
					of := tables{ledger.New(client, hostileTable), arrivals.New(client, hostileTable), New(client, Names{hostileTable, hostileTable, hostileTable}, 0)}
					all.Go(func() {
						// None waits for anything but the table's own answers, some of which are tried again.
						ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
						defer cancel()
						err := c.call(ctx, of)
						if ctx.Err() != nil {
							t.Errorf("%s does not end: %v", c.name, err)
						}
						if err != nil && len(err.Error()) > 8<<10 {
							t.Errorf("%s: an error of %d bytes", c.name, len(err.Error()))
						}
					})
				}
				all.Wait()
			})
		}
	}
}
