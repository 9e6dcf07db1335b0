package cmd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/processtest"
)

// TestPolicies runs the roles with the rights that the README's policies give them and no
// others: what is not allowed is refused on its way to S3 and DynamoDB. All that the README
// says of them must work, nothing may be asked for that a policy lacks, and what another
// region's agent could do harm with is refused.
func TestPolicies(t *testing.T) {
	t.Parallel()
	if !inside(t) {
		return
	}
	policies := policiesOf(t, filepath.Join(root, "README.md"))
	agree(t, policies, policiesOf(t, filepath.Join(root, "docs", "security.md")))
	dir, _ := workplace(t)
	gates := make(map[string]*gate)
	script := []string{"bin/landfall-dev cloud --dir cloud &", "healthy bin/landfall-dev health"}
	for _, g := range []struct{ name, policy, region string }{
		{"init", "`seeder init`:", ""}, {"seeder", "Seeder:", ""}, {"a", "Agent:", "region-a"}, {"b", "Agent:", "region-b"},
	} {
		text, ok := policies[g.policy]
		if !ok {
			t.Fatalf("the README has no policy under %q", g.policy)
		}
		if g.region != "" {
			text = strings.ReplaceAll(text, "region-a", g.region)
		}
		gates[g.name] = newGate(t, g.name, text)
		script = append(script, fmt.Sprintf("%s=%s", g.name, gates[g.name].url))
	}
	as := func(who, line string) string { return "AWS_ENDPOINT_URL=$" + who + " " + line }
	script = append(script,
		as("init", "bin/seeder init --bucket global-builds --destinations region-a-builds,region-b-builds"),
		as("init", "bin/seeder check --bucket global-builds --destinations region-a-builds,region-b-builds --write"),
		"bin/seeder keygen seeder.key",
		as("seeder", "bin/seeder run --bucket global-builds --destinations region-a-builds,region-b-builds --signing-key seeder.key --data-dir s --poll 200ms &"),
		"seeder_pid=$!",
		"healthy bin/seeder health",
		as("a", "bin/agent run --region region-a --bucket region-a-builds --join 127.0.0.1:7946 --trust seeder.key.pub --data-dir a --listen 127.0.0.1:7081 --fleet-listen 127.0.0.1:7090 &"),
		as("b", "bin/agent run --region region-b --bucket region-b-builds --join 127.0.0.1:7946 --trust seeder.key.pub --data-dir b --listen 127.0.0.1:7082 &"),
		"healthy bin/agent health --agent http://127.0.0.1:7081", "healthy bin/agent health --agent http://127.0.0.1:7082",
		// Of one part, of several, from the bucket, again, and with other headers.
		"bin/seeder publish testdata/builds/hello-1.0.0.zip",
		"head -c 20000000 /dev/urandom > big.zip",
		"bin/seeder publish big.zip",
		"bin/seeder publish big.zip --key again.zip",
		"bin/seeder publish s3://global-builds/again.zip",
		"bin/seeder publish big.zip --key stopped.zip --no-wait; bin/seeder cancel stopped.zip || true",
		// A seeder that starts again goes on.
		"kill $seeder_pid; wait $seeder_pid",
		as("seeder", "bin/seeder run --bucket global-builds --destinations region-a-builds,region-b-builds --signing-key seeder.key --data-dir s --poll 200ms &"),
		"healthy bin/seeder health",
		"bin/seeder publish testdata/builds/hello-1.0.0.zip --key last.zip",
		// A host switches: its agent takes the lease of who counts the region's hosts that do, and
		// reads the goals.
		"bin/agent host --name host-1 --service web --dir host --agents http://127.0.0.1:7090 --trust seeder.key.pub --listen 127.0.0.1:7099 &",
		`healthy sh -c "bin/agent status --agent http://127.0.0.1:7081 -o json | grep -q '\"connected\": 1'"`,
		"bin/seeder deploy web last.zip --wave 100% --bake 1s",
		"readlink host/web/current",
		"bin/seeder service web",
	)
	out := shell(t, dir, script)
	for name, g := range gates {
		g.mu.Lock()
		for what := range g.refused {
			t.Errorf("%s: its policy lacks %s", name, what)
		}
		var idle []string
		for _, s := range g.statements {
			for _, a := range s.Action {
				if !g.used[a] && name != "init" {
					idle = append(idle, a)
				}
			}
		}
		t.Logf("%s: %d actions used; allowed and not used here: %v", name, len(g.used), idle)
		g.mu.Unlock()
	}
	if t.Failed() {
		t.Log(out)
	}

	// What an agent that was taken over would try. The cloud has ended; nothing gets there.
	foreign := processtest.AWS(gates["a"].url)
	store := s3.NewFromConfig(foreign, func(o *s3.Options) { o.UsePathStyle, o.RetryMaxAttempts = true, 1 })
	table := dynamodb.NewFromConfig(foreign, func(o *dynamodb.Options) { o.RetryMaxAttempts = 1 })
	key := map[string]types.AttributeValue{"fileKey": &types.AttributeValueMemberS{Value: "k"}, "sourceBucket": &types.AttributeValueMemberS{Value: "global-builds"}}
	for what, try := range map[string]func() error{
		"writing into another region's bucket": func() error {
			_, err := store.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("region-b-builds"), Key: aws.String("k"), Body: strings.NewReader("x")})
			return err
		},
		"writing into the global bucket": func() error {
			_, err := store.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("global-builds"), Key: aws.String("k"), Body: strings.NewReader("x")})
			return err
		},
		"removing an object of its own bucket": func() error {
			_, err := store.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String("region-a-builds"), Key: aws.String("k")})
			return err
		},
		"removing an item": func() error {
			_, err := table.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: aws.String("FileCopyTracking"), Key: key})
			return err
		},
		"marking another region landed, in the item": func() error {
			_, err := table.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: aws.String("FileCopyTracking"), Item: key})
			return err
		},
		"marking another region landed, in its row": func() error {
			_, err := table.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: aws.String("LandfallArrivals"), Item: map[string]types.AttributeValue{
				"destinationBucket": &types.AttributeValueMemberS{Value: "region-b-builds"}, "id": &types.AttributeValueMemberS{Value: "x"},
			}})
			return err
		},
		"counting another region's hosts that switch": func() error {
			_, err := table.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: aws.String("LandfallArrivals"), Item: map[string]types.AttributeValue{
				"destinationBucket": &types.AttributeValueMemberS{Value: "region:region-b"}, "id": &types.AttributeValueMemberS{Value: "hosts"},
			}})
			return err
		},
		"writing a goal": func() error {
			_, err := table.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: aws.String("LandfallServices"), Item: map[string]types.AttributeValue{"service": &types.AttributeValueMemberS{Value: "web"}}})
			return err
		},
		"removing the table": func() error {
			_, err := table.DeleteTable(t.Context(), &dynamodb.DeleteTableInput{TableName: aws.String("FileCopyTracking")})
			return err
		},
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), "AccessDenied") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// policiesOf returns the JSON blocks of a page, each by the last line of text before it.
func policiesOf(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	policies := make(map[string]string)
	before, block, in := "", "", false
	for line := range strings.Lines(string(text)) {
		switch trimmed := strings.TrimSpace(line); {
		case in && trimmed == "```":
			in, policies[before] = false, block
		case in:
			block += line
		case trimmed == "```json":
			in, block = true, ""
		case trimmed != "":
			before = trimmed
		}
	}
	return policies
}

// agree wants what another page says of the tables' rights in the README's policies, too,
// which are those that are tried.
func agree(t *testing.T, tried, said map[string]string) {
	t.Helper()
	for here, there := range map[string]string{"The seeder:": "Seeder:", "An agent of region-a:": "Agent:"} {
		var want, got struct{ Statement []statement }
		if err := errors.Join(json.Unmarshal([]byte(tried[there]), &want), json.Unmarshal([]byte(said[here]), &got)); err != nil {
			t.Fatalf("the policies %q and %q: %v", there, here, err)
		}
		for _, s := range got.Statement {
			if !slices.ContainsFunc(want.Statement, func(w statement) bool { return reflect.DeepEqual(w, s) }) {
				t.Errorf("docs/security.md allows under %q what the README does not under %q: %+v", here, there, s)
			}
		}
	}
}

// statement is one of a policy, as far as the README's use them.
type statement struct {
	Effect    string
	Action    []string
	Resource  any // a string or a list of them
	Condition map[string]map[string][]string
}

func (s statement) resources() (out []string) {
	switch r := s.Resource.(type) {
	case string:
		return []string{r}
	case []any:
		for _, one := range r {
			out = append(out, fmt.Sprint(one))
		}
	}
	return out
}

// call is one request as IAM sees it.
type call struct {
	action, resource string
	// leading are the values of the partition keys that it touches.
	leading []string
}

// allows reports whether a statement allows a call.
func (s statement) allows(c call) bool {
	matches := func(pattern string) bool { // within a name, where no slash is
		ok, err := path.Match(strings.ReplaceAll(pattern, "/", "|"), strings.ReplaceAll(c.resource, "/", "|"))
		return err == nil && ok
	}
	if s.Effect != "Allow" || !slices.Contains(s.Action, c.action) || !slices.ContainsFunc(s.resources(), matches) {
		return false
	}
	for operator, conditions := range s.Condition {
		for name, values := range conditions {
			if operator != "ForAllValues:StringEquals" || name != "dynamodb:LeadingKeys" {
				return false // unknown here, so not held to
			}
			if len(c.leading) == 0 || slices.ContainsFunc(c.leading, func(k string) bool { return !slices.Contains(values, k) }) {
				return false
			}
		}
	}
	return true
}

// gate stands before the cloud and lets through what a policy allows.
type gate struct {
	url        string
	statements []statement

	mu      sync.Mutex
	used    map[string]bool
	refused map[string]bool
}

func newGate(t *testing.T, name, policy string) *gate {
	t.Helper()
	var doc struct{ Statement []statement }
	if err := json.Unmarshal([]byte(policy), &doc); err != nil || len(doc.Statement) == 0 {
		t.Fatalf("the policy of %s: %v", name, err)
	}
	g := &gate{statements: doc.Statement, used: make(map[string]bool), refused: make(map[string]bool)}
	cloud, err := url.Parse("http://127.0.0.1:4566")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { // the Host header is signed
			r.SetURL(cloud)
			r.Out.Host = r.In.Host
		},
		FlushInterval: -1,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls, err := callsOf(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		allowed := err == nil
		var c call
		for _, c = range calls {
			ok := slices.ContainsFunc(g.statements, func(s statement) bool { return s.allows(c) })
			g.mu.Lock()
			g.used[c.action] = true
			if !ok {
				g.refused[c.action+" on "+c.resource] = true
				allowed = false
			}
			g.mu.Unlock()
		}
		if allowed {
			proxy.ServeHTTP(w, r)
			return
		}
		if strings.HasPrefix(c.action, "dynamodb:") {
			w.Header().Set("Content-Type", "application/x-amz-json-1.0")
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"not authorized to perform %s"}`, c.action)
			return
		}
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, "<Error><Code>AccessDenied</Code><Message>not authorized to perform %s</Message></Error>", c.action)
	}))
	t.Cleanup(server.Close)
	g.url = server.URL
	return g
}

// callsOf says which actions of IAM a request is, and on what, by the Service Authorization
// Reference of AWS: a transaction is each of its writes.
func callsOf(r *http.Request) ([]call, error) {
	if !strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".TransactWriteItems") {
		c, err := callOf(r)
		return []call{c}, err
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var in struct {
		TransactItems []map[string]struct{ TableName string }
	}
	if err := json.Unmarshal(body, &in); err != nil || len(in.TransactItems) == 0 {
		return nil, fmt.Errorf("a transaction of %d writes: %w", len(in.TransactItems), err)
	}
	var calls []call
	for _, item := range in.TransactItems {
		for write, of := range item {
			action, ok := map[string]string{"Put": "PutItem", "Update": "UpdateItem", "Delete": "DeleteItem", "ConditionCheck": "ConditionCheckItem"}[write]
			if !ok {
				return nil, fmt.Errorf("a transaction with a %s: which action of IAM is that?", write)
			}
			calls = append(calls, call{action: "dynamodb:" + action, resource: "arn:aws:dynamodb:us-east-1:000000000000:table/" + of.TableName})
		}
	}
	return calls, nil
}

// callOf is callsOf for what is one.
func callOf(r *http.Request) (call, error) {
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return call{}, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		_, operation, _ := strings.Cut(target, ".")
		var in struct {
			TableName    string
			Key, Item    map[string]map[string]any
			RequestItems map[string]any // of one table, here
		}
		if err := json.Unmarshal(body, &in); err != nil {
			return call{}, fmt.Errorf("%s: %w", operation, err)
		}
		for table := range in.RequestItems {
			in.TableName = table
		}
		c := call{action: "dynamodb:" + operation, resource: "arn:aws:dynamodb:us-east-1:000000000000:table/" + in.TableName}
		for _, item := range []map[string]map[string]any{in.Key, in.Item} {
			for _, partition := range []string{"destinationBucket", "fileKey"} {
				if v, ok := item[partition]; ok {
					c.leading = append(c.leading, fmt.Sprint(v["S"]))
					break
				}
			}
		}
		return c, nil
	}
	bucket, key, object := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	object = object && key != ""
	q := r.URL.Query()
	has := func(name string) bool { _, ok := q[name]; return ok }
	action := ""
	switch {
	case !object && has("uploads"):
		action = "s3:ListBucketMultipartUploads"
	case !object && has("lifecycle"):
		action = map[string]string{http.MethodGet: "s3:GetLifecycleConfiguration", http.MethodPut: "s3:PutLifecycleConfiguration"}[r.Method]
	case !object && r.Method == http.MethodPut:
		action = "s3:CreateBucket"
	case !object && (r.Method == http.MethodHead || r.Method == http.MethodGet):
		action = "s3:ListBucket"
	case object && r.Method == http.MethodGet && has("uploadId"):
		action = "s3:ListMultipartUploadParts"
	case object && r.Method == http.MethodDelete && has("uploadId"):
		action = "s3:AbortMultipartUpload"
	case object && r.Method == http.MethodDelete:
		action = "s3:DeleteObject"
	case object && r.Method == http.MethodGet && has("attributes"): // beside s3:GetObject
		action = "s3:GetObjectAttributes"
	case object && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		action = "s3:GetObject"
	case object && (r.Method == http.MethodPut || r.Method == http.MethodPost):
		action = "s3:PutObject"
	}
	if action == "" {
		return call{}, fmt.Errorf("%s %s: which action of IAM is that?", r.Method, r.URL)
	}
	c := call{action: action, resource: "arn:aws:s3:::" + bucket}
	if object {
		c.resource += "/" + key
	}
	return c, nil
}
