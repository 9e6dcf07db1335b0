package clustertest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/api/apitest"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/seeder/client"
)

// failing is a way to the stores that can be cut.
type failing struct {
	http.RoundTripper
	cut atomic.Bool
}

var errCut = errors.New("the stores are cut off")

func (f *failing) RoundTrip(r *http.Request) (*http.Response, error) {
	if f.cut.Load() {
		return nil, errCut
	}
	return f.RoundTripper.RoundTrip(r)
}

// noID is an execution that nobody knows.
const noID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"

// TestContract asks for every operation of docs/openapi.yaml with every status that it
// names. That the answers are right is for the transports to say.
func TestContract(t *testing.T) {
	contract := apitest.Load(t)
	const token operator.Token = "the-token-of-this-test"
	builds := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/none":
			http.NotFound(w, r)
		case "/broken":
			http.Error(w, "broken", http.StatusInternalServerError)
		default:
			fmt.Fprint(w, "a build")
		}
	}))
	defer builds.Close()
	operators := filepath.Join(t.TempDir(), "operators")
	viewer, err := operator.Add(operators, "viewer", operator.View, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	stores := &failing{RoundTripper: cloud.AWS.HTTPClient.(*http.Client).Transport}
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: stores}
	c := Start(t, cloud, Options{
		Regions: 2, Unserved: 1, BuildSource: builds.URL, OperatorToken: token, Operators: operators, AWS: &cfg, Contract: contract,
		ArrivalTimeout: 2 * Timeout,
	})
	a := caller{t, c}

	// One that has ended, one that has not, and one that was superseded.
	c.Put("done.bin", content(1, 300_000), nil)
	done := c.Await(c.Deploy("done.bin", c.Bucket(0)).ExecutionID, "COMPLETED").ExecutionID
	c.Put("open.bin", content(2, 1000), nil)
	gone := c.Deploy("open.bin").ExecutionID
	c.Put("open.bin", content(3, 1000), nil)
	opened := c.Deploy("open.bin").ExecutionID
	c.Put("empty.bin", nil, nil)
	empty := c.Await(c.Deploy("empty.bin", c.Bucket(0)).ExecutionID, "COMPLETED").ExecutionID

	for path, codes := range map[string]int{
		"/": 200, "/healthz": 200, "/readyz": 200, "/metrics": 200,
		"/changes?open=execution/" + opened + "&open=swarm/" + done: 200,
		"/executions": 200, "/executions?limit=1&q=OPEN&key=open.bin&after=" + opened: 200, "/executions?limit=0": 400, "/executions?limit=x": 400,
	} {
		a.ask(c.Seeder, "GET", path, "", codes)
	}
	for _, path := range []string{"", "/swarm", "/torrent"} {
		for id, code := range map[string]int{done: 200, noID: 404, gone: 410} {
			a.ask(c.Seeder, "GET", "/executions/"+id+path, "", code)
		}
	}
	a.ask(c.Seeder, "GET", "/executions/"+empty+"/torrent", "", 404)
	// What its disk does not tell is no "there is none".
	segments := filepath.Join(c.Dir("seeder"), "cache", "pulls", done+".segments")
	if err := errors.Join(os.Remove(segments), os.Mkdir(segments, 0o700)); err != nil {
		t.Fatal(err)
	}
	a.ask(c.Seeder, "GET", "/executions/"+done+"/torrent", "", 500)
	for _, path := range []string{"/", "/healthz", "/readyz", "/metrics", "/changes", "/status"} {
		a.ask(c.Agents[0], "GET", path, "", 200)
	}
	a.eventsAndChanges(contract, opened)

	for _, what := range []string{"cancel", "retry"} {
		for id, code := range map[string]int{opened: 200, done: 409, noID: 404, gone: 410} {
			a.ask(c.Seeder, "POST", "/executions/"+id+"/"+what, "{}", code)
		}
	}
	tooLong := `{"commit":"` + strings.Repeat("a", 1<<20) + `"}`
	object := `{"sourceBucket":"` + c.Global + `","sourceKey":"done.bin"}`
	for body, code := range map[string]int{
		object: 202, `{`: 400, tooLong: 413, strings.ReplaceAll(object, "done", "none"): 404,
		strings.ReplaceAll(object, c.Global, "not-a-source"):                            403,
		strings.TrimSuffix(object, "}") + `,"destinationBuckets":["` + c.Global + `"]}`: 400,
		strings.TrimSuffix(object, "}") + `,"destinationBuckets":["nobodys-builds"]}`:   400,
	} {
		a.ask(c.Seeder, "POST", "/deploy", body, code)
	}
	for body, code := range map[string]int{
		`{"commit":"abc123"}`: 202, `{"commit":"../x"}`: 400, tooLong: 413, `{"commit":"none"}`: 404, `{"commit":"broken"}`: 502,
	} {
		a.ask(c.Seeder, "POST", "/builds", body, code)
	}
	for _, to := range []*client.Client{c.Seeder, c.Agents[0]} {
		a.ask(to, "GET", "/limits", "", 200)
		for body, code := range map[string]int{
			`{"uploadRate":"200MB","sourceRate":125000,"downloadRate":null}`: 200, `{"uploadRate":0,"sourceRate":"0"}`: 200, `{}`: 200,
			`{`: 400, `{"uploadRate":1}`: 400, `{"uploadRate":"2TB"}`: 400, `{"uploadRate":[]}`: 400, `{"rate":0}`: 400, tooLong: 413,
		} {
			a.ask(to, "POST", "/limits", body, code)
		}
		a.ask(to, "POST", "/limits", "{}", 401, "Authorization", "Bearer wrong")
	}
	a.ask(c.Seeder, "POST", "/limits", `{"landingRate":0}`, 400)
	a.ask(c.Agents[0], "POST", "/limits", `{"landingRate":0}`, 200)
	a.ask(c.Seeder, "PUT", "/uploads/dir/a%20b.zip", "bytes", 200)
	a.ask(c.Seeder, "PUT", "/uploads/", "bytes", 400)
	a.ask(c.Seeder, "PUT", "/uploads/dir/a%20b.zip", "bytes", 412, "If-None-Match", "*")
	a.ask(c.Seeder, "PUT", "/uploads/none.zip", "bytes", 404, "If-Match", `"0123"`)
	a.ask(c.Seeder, "PUT", "/uploads/a.zip", "bytes", 501, "X-Amz-Acl", "private")
	a.uploads()
	a.services()

	a.ask(c.Seeder, "GET", "/audit", "", 200)
	a.ask(c.Seeder, "GET", "/audit?limit=0", "", 400)

	// Who may not.
	closed := caller{t, Start(t, cloud, Options{Regions: 1, OperatorToken: token, CloseReading: true, Contract: contract})}
	if _, err := closed.c.Seeder.Executions(t.Context(), 0, ""); err != nil { // the client gives its token where that is asked for
		t.Error(err)
	}
	for _, o := range contract.Operations() {
		method, path, status := operation(o)
		path = strings.NewReplacer("{id}", opened, "{key}", "held.zip", "{name}", "web").Replace(path)
		switch status {
		case "401":
			to := closed.c.Seeder
			if path == "/status" {
				to = closed.c.Agents[0]
			}
			closed.ask(to, method, path, "{}", 401, "Authorization", "")
			closed.ask(to, method, path, "{}", 401, "Authorization", "Bearer wrong")
		case "403":
			a.ask(c.Seeder, method, path, "{}", 403, "Authorization", "Bearer "+string(viewer))
			if method != http.MethodGet {
				a.ask(c.Seeder, method, path, "{}", 403, "Sec-Fetch-Site", "cross-site")
			}
		case "421":
			to := c.Seeder
			if path == "/status" {
				to = c.Agents[0]
			}
			a.ask(to, method, path, "{}", 421, "Host", "rebound.example:7070")
		}
	}

	stores.cut.Store(true)
	a.ask(c.Seeder, "POST", "/deploy", object, 500)
	a.ask(c.Seeder, "POST", "/builds", `{"commit":"abc124"}`, 500)
	a.ask(c.Seeder, "PUT", "/uploads/a.zip", "bytes", 500)
	a.ask(c.Seeder, "POST", "/executions/"+opened+"/cancel", "{}", 500)
	a.ask(c.Seeder, "POST", "/executions/"+opened+"/retry", "{}", 500)
	stores.cut.Store(false)

	c.StopSeeder()
	c.Until("the agent says that it is alone", func() bool {
		var said *client.StatusError
		return errors.As(c.Agents[0].Ready(t.Context()), &said) && said.Code == 503
	})

	plain := Start(t, cloud, Options{Regions: 1, Contract: contract})
	post[api.Error](t, plain, "/builds", `{"commit":"abc"}`, 501)

	plain.write("other.bin", plain.Global, values{"executionId": str(noID), "status": str("IN_PROGRESS"), "owner": str("another"), "destinationBuckets": list(plain.Bucket(0))})
	plain.Put("other.bin", content(1, 10), nil)
	post[api.Error](t, plain, "/deploy", `{"sourceBucket":"`+plain.Global+`","sourceKey":"other.bin"}`, 409)

	scans := &refusingScans{}
	scans.refuse.Store(1 << 30)
	cfg.HTTPClient = &http.Client{Transport: scans}
	loading := caller{t, Start(t, cloud, Options{Regions: 1, Contract: contract, AWS: &cfg, Unready: true})}
	for path, code := range map[string]int{"/readyz": 503, "/executions": 200, "/executions/" + noID: 503, "/executions/" + noID + "/swarm": 503, "/executions/" + noID + "/torrent": 503} {
		loading.ask(loading.c.Seeder, "GET", path, "", code)
	}
	for _, what := range []string{"/cancel", "/retry"} {
		loading.ask(loading.c.Seeder, "POST", "/executions/"+noID+what, "{}", 503)
	}
	none := caller{t, Start(t, cloud, Options{Regions: 1, Contract: contract, NoServices: true})}
	none.ask(none.c.Seeder, "GET", "/services", "", 200)
	for _, o := range contract.Operations() {
		method, path, status := operation(o)
		at := map[string]caller{"501": none, "503": loading}[status]
		if at.c == nil || !strings.HasPrefix(path, "/services/") && path != "/recalls" {
			continue
		}
		body := map[string]string{"deployments": `{"key":"done.bin"}`, "skip": `{"region":"region-b"}`, "hold": `{"hosts":["h"]}`, "release": `{"hosts":["h"]}`, "recalls": `{"builds":["done.bin"]}`}[path[strings.LastIndex(path, "/")+1:]]
		code := 501
		if status == "503" {
			code = 503
		}
		at.ask(at.c.Seeder, method, strings.ReplaceAll(path, "{name}", "web"), body, code)
	}

	for _, o := range contract.Unseen() {
		t.Errorf("no answer of %s was seen", o)
	}
}

// operation is the method, the path and the status of one of Contract.Operations.
func operation(o string) (method, path, status string) {
	f := strings.Fields(o)
	return f[0], f[1], f[2]
}

// caller asks the members of a cluster.
type caller struct {
	*testing.T
	c *Cluster
}

// ask wants an answer with a code. The token goes along, unless a header says otherwise.
func (a caller) ask(to *client.Client, method, path, body string, code int, header ...string) {
	a.Helper()
	var from io.Reader
	if body != "" {
		from = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(a.Context(), method, to.URL+path, from)
	if err != nil {
		a.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+to.Token)
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Set(header[i], header[i+1])
	}
	res, err := to.HTTP.Do(r)
	if err != nil {
		a.Errorf("%s %s: %v", method, path, err)
		return
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != code {
		a.Errorf("%s %.100s %.100s: %d, want %d (%v): %.300s", method, path, body, res.StatusCode, code, err, b)
	}
}

// eventsAndChanges reads the first event, which must be a Patch, and takes all places
// that readers have.
func (a caller) eventsAndChanges(contract *apitest.Contract, id string) {
	a.Helper()
	ctx, hangUp := context.WithCancel(a.Context())
	defer hangUp()
	tooMany := strings.Repeat("open=a&", 9)
	for _, to := range []*client.Client{a.c.Seeder, a.c.Agents[0]} {
		a.ask(to, "GET", "/events?"+tooMany, "", 400)
		a.ask(to, "GET", "/changes?"+tooMany, "", 400)
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, to.URL+"/events?open=execution/"+id+"&open=swarm/"+id, nil)
		if err != nil {
			a.Fatal(err)
		}
		res, err := to.HTTP.Do(r)
		if err != nil {
			a.Fatal(err)
		}
		a.isPatch(contract, res.Body)
		res.Body.Close()
	}
}

// isPatch reads the first event of a stream.
func (a caller) isPatch(contract *apitest.Contract, stream io.Reader) {
	a.Helper()
	lines := bufio.NewReader(stream)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			a.Fatal(err)
		}
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		var patch any
		if err := json.Unmarshal([]byte(data), &patch); err != nil {
			a.Fatal(err)
		}
		if err := contract.Check("Patch", patch); err != nil {
			a.Errorf("%v: %.1000s", err, data)
		}
		return
	}
}

// uploads asks for what is being uploaded already, and for too much.
func (a caller) uploads() {
	a.Helper()
	body, feed := io.Pipe()
	first := make(chan error, 1)
	go func() {
		_, err := a.c.Seeder.Upload(a.Context(), "held.zip", body, -1, "application/zip")
		first <- err
	}()
	// The seeder reads, so it has reserved the key.
	if _, err := feed.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
		a.Fatal(err)
	}
	a.c.Until("a second upload is refused", func() bool {
		_, err := a.c.Seeder.Upload(a.Context(), "held.zip", strings.NewReader("x"), 1, "")
		var said *client.StatusError
		return errors.As(err, &said) && said.Code == http.StatusConflict
	})
	a.ask(a.c.Seeder, "POST", "/builds", `{"commit":"held"}`, 409)
	feed.Close()
	if err := <-first; err != nil {
		a.Error(err)
	}
	_, err := a.c.Seeder.Upload(a.Context(), "long.zip", forbidden{a.T}, bucket.MaxUpload+1, "")
	var said *client.StatusError
	if !errors.As(err, &said) || said.Code != http.StatusRequestEntityTooLarge {
		a.Errorf("too long: %v", err)
	}
}

// forbidden is a body that must not be read.
type forbidden struct{ *testing.T }

func (f forbidden) Read([]byte) (int, error) {
	f.Error("a body that is too long was asked for")
	return 0, io.EOF
}

// services asks for all about services but for those who may not, and for what is not
// loaded.
func (a caller) services() {
	a.Helper()
	seeder := a.c.Seeder
	deploy := func(code int, body string) {
		a.Helper()
		a.ask(seeder, "POST", "/services/web/deployments", body, code)
	}
	deploy(200, `{"key":"done.bin","dryRun":true}`)
	deploy(202, `{"key":"done.bin","bake":"0s","waves":["50%","100%"]}`) // which has no hosts
	a.c.Until("a deployment without hosts is done", func() bool {
		s, err := seeder.Service(a.Context(), "web")
		return err == nil && s.Deployment.State == api.DeploymentDone
	})
	a.c.fleet(1, 2)
	a.c.Until("the seeder knows who has hosts", func() bool {
		hosts, err := seeder.Hosts(a.Context(), "web", "", 0, "")
		return err == nil && hosts.All == 2
	})
	deploy(202, `{"key":"open.bin","gate":"all"}`) // which does not come to that region
	deploy(409, `{"key":"open.bin"}`)
	deploy(404, `{"key":"none.bin"}`)
	for _, body := range []string{`{`, `{}`, `{"key":"done.bin","waves":["half"]}`, `{"key":"done.bin","bake":"soon"}`, `{"key":"done.bin","gate":"some"}`, `{"key":"done.bin","wave":1}`} {
		deploy(400, body)
	}
	deploy(413, `{"key":"`+strings.Repeat("a", 1<<20)+`"}`)
	a.ask(seeder, "GET", "/services", "", 200)
	a.ask(seeder, "GET", "/changes?open=deployed/web&open=deployed/none", "", 200)
	for _, path := range []string{"", "/deployments", "/hosts", "/hosts?state=failed&limit=1", "/hosts?limit=1&after=region-a/h1"} {
		a.ask(seeder, "GET", "/services/web"+path, "", 200)
		a.ask(seeder, "GET", "/services/none"+path, "", 404)
	}
	for _, path := range []string{"/services/A%20B", "/services/A/deployments", "/services/web/hosts?state=asleep", "/services/web/hosts?limit=0", "/services/web/hosts?limit=1001", "/services/web/hosts?after=h1"} {
		a.ask(seeder, "GET", path, "", 400)
	}
	a.ask(seeder, "POST", "/services/web/hosts/log", "", 200)
	a.ask(seeder, "POST", "/services/web/hosts/log", `{"state":"failed"}`, 400)
	a.ask(seeder, "POST", "/services/none/hosts/log", "{}", 404)
	a.c.Until("of two that write hosts down at once, one is refused", func() bool {
		errs := make(chan error)
		for range 2 {
			go func() {
				_, err := seeder.LogHosts(a.Context(), "web")
				errs <- err
			}()
		}
		refused := false
		for range 2 {
			var answer *client.StatusError
			refused = errors.As(<-errs, &answer) && answer.Code == http.StatusConflict || refused
		}
		return refused
	})
	waits := func() {
		a.c.Until("the deployment waits for its region", func() bool {
			s, err := seeder.Service(a.Context(), "web")
			return err == nil && len(s.Deployment.WaitsFor) > 0 && s.Deployment.WaitsFor[0] == a.c.Regions[1]
		})
	}
	waits()
	region := `{"region":"` + a.c.Regions[1] + `"}`
	for _, of := range []struct {
		what, body string
		code       int
	}{
		{"hold", `{"hosts":["h1"]}`, 200}, {"hold", `{"hosts":["h1"]}`, 409}, {"hold", "{}", 400}, {"hold", `{"hosts":["A B"]}`, 400},
		{"release", `{"hosts":["h1"]}`, 200}, {"release", `{"hosts":["h1"]}`, 409}, {"release", "{}", 400}, {"pause", `{"hosts":["h1"]}`, 400},
		{"rollback", `{"dryRun":true}`, 200}, {"pause", `{"dryRun":true}`, 400},
		{"resume", "", 409}, {"skip", `{"region":"elsewhere"}`, 409}, {"pause", "", 200}, {"pause", "{}", 409}, {"resume", "{}", 200},
		{"pause", `{"region":"x"}`, 400}, {"resume", `{"now":true}`, 400}, {"abort", `{"now":true}`, 400}, {"rollback", region, 400}, {"skip", "{}", 400}, {"skip", `{"region":"A B"}`, 400},
		{"abort", "", 200}, {"abort", "", 409}, {"skip", region, 409},
		{"", "", 0}, // deployed again
		{"skip", region, 200}, {"rollback", `{"now":true}`, 200}, {"rollback", `{"now":true}`, 409},
	} {
		if of.what == "" {
			deploy(202, `{"key":"open.bin"}`)
			waits()
			continue
		}
		a.ask(seeder, "POST", "/services/web/"+of.what, of.body, of.code)
		if of.code != 400 {
			a.ask(seeder, "POST", "/services/none/"+of.what, of.body, 404)
		}
	}
	a.ask(seeder, "GET", "/recalls", "", 200)
	for body, code := range map[string]int{
		`{"builds":["done.bin"]}`: 409, `{"builds":["none.bin"]}`: 404, `{"builds":[]}`: 400, `{`: 400,
		`{"builds":["LCa0a2j/xo/5m0U8HTBBNBNCLXBkg7+g+YpeiGJm564=-1"]}`: 200,
	} {
		a.ask(seeder, "POST", "/recalls", body, code)
	}
}
