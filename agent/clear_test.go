package agent

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/landfall-dist/landfall/internal/ledger"
)

// What is left of an execution that is over is removed, and no upload of another one: not
// of one either that has begun it just before and is about to write that down.
func TestClearLeavesOthersUploads(t *testing.T) {
	type object = map[string]any
	text := func(s string) object { return object{"S": s} }
	landing := func(execution, upload string) object {
		return object{"M": object{testBucket: object{"M": object{"agent": text("a"), "uploadId": text(upload), "executionId": text(execution)}}}}
	}
	item := func(execution, status string, more object) object {
		i := object{
			"fileKey": text("k"), "sourceBucket": text(testSource), "executionId": text(execution), "status": text(status), "startTime": text("2026-01-01T00:00:00Z"),
			"destinationBuckets": object{"SS": []string{testBucket}}, "totalBuckets": object{"N": "1"}, "version": object{"N": "1"},
		}
		for name, value := range more {
			i[name] = value
		}
		return i
	}
	failed := func(execution string, more object) object {
		i := item(execution, "FAILED", more)
		i["failedBuckets"] = object{"SS": []string{testBucket}}
		return i
	}
	pending := func(execution string, landings object) object {
		return object{"M": object{"executionId": text(execution), "uploadId": text("u"), "size": object{"N": "1"}, "startTime": text("2026-01-01T00:00:00Z"),
			"destinationBuckets": object{"SS": []string{testBucket}}, "landings": landings}}
	}
	none := object{"M": object{}}
	for name, c := range map[string]struct {
		items     []object // what the table answers, one after the other, the last for ever; nil for no item
		discarded bool
		uploads   []string
		removed   []string
	}{
		"failed": {[]object{failed(worldID, nil)}, false, []string{"one", "two"}, []string{"one", "two"}},
		"failed, and an upload of a newer one goes on": {
			[]object{failed(worldID, object{"landings": landing(worldID, "own"), "pending": pending(newerID, landing(newerID, "new"))})},
			false, []string{"new", "own"}, []string{"own"},
		},
		"failed, and a newer one has just begun": {
			[]object{failed(worldID, nil), failed(worldID, object{"pending": pending(newerID, none)}), failed(worldID, object{"pending": pending(newerID, landing(newerID, "new"))})},
			false, []string{"new", "own"}, []string{"own"},
		},
		"failed, and sent again meanwhile": {
			[]object{failed(worldID, nil), item(worldID, "IN_PROGRESS", nil)}, false, []string{"own"}, nil,
		},
		"failed, superseded meanwhile": {
			[]object{failed(worldID, nil), failed(worldID, nil), item(newerID, "IN_PROGRESS", object{"landings": landing(newerID, "new")})},
			false, []string{"own", "new"}, nil, // the newer one removes what is left when it has arrived
		},
		"broken off, and there is no item": {[]object{nil}, false, []string{"own"}, []string{"own"}},
		"broken off, and the key's has just begun": {
			[]object{item(olderID, "IN_PROGRESS", nil), item(olderID, "IN_PROGRESS", nil), item(olderID, "IN_PROGRESS", object{"landings": landing(olderID, "old")})},
			false, []string{"own", "old"}, []string{"own"},
		},
		"broken off, and another one goes up": {
			[]object{item(olderID, "IN_PROGRESS", object{"landings": landing(olderID, "old"), "pending": pending(newerID, landing(newerID, "new"))})},
			false, []string{"own", "old", "new"}, []string{"own"},
		},
		"broken off, and discarded": {[]object{item(olderID, "IN_PROGRESS", nil)}, true, []string{"own"}, nil},
		"superseded":                {[]object{item(newerID, "IN_PROGRESS", nil)}, false, []string{"own"}, nil},
		"under way":                 {[]object{item(worldID, "IN_PROGRESS", nil)}, false, []string{"own"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var removed []string
			asked := 0
			cfg, b := openStores(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Header.Get("X-Amz-Target") != "":
					answer := object{}
					if i := c.items[min(asked, len(c.items)-1)]; i != nil {
						answer["Item"] = i
					}
					asked++
					json.NewEncoder(w).Encode(answer) //nolint:errcheck // the test sees it
				case r.URL.Query().Has("uploads"):
					fmt.Fprint(w, "<ListMultipartUploadsResult>")
					for _, id := range c.uploads {
						fmt.Fprintf(w, "<Upload><Key>k</Key><UploadId>%s</UploadId></Upload>", id)
					}
					fmt.Fprint(w, "</ListMultipartUploadsResult>")
				case r.Method == http.MethodDelete:
					removed = append(removed, r.URL.Query().Get("uploadId"))
					w.WriteHeader(http.StatusNoContent)
				}
			}))
			one := &build{
				agent: &Agent{cfg: Config{Bucket: b}, records: &records{items: ledger.New(dynamodb.NewFromConfig(cfg), "T")}},
				id:    worldID, key: ledger.Key{FileKey: "k", SourceBucket: testSource}, logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
			}
			if err := one.clear(t.Context(), c.discarded, time.Millisecond); err != nil {
				t.Fatal(err)
			}
			slices.Sort(removed)
			if !slices.Equal(removed, c.removed) {
				t.Errorf("removed %s, want %s", strings.Join(removed, ", "), strings.Join(c.removed, ", "))
			}
		})
	}
}
