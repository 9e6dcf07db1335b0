// Package apitest holds what tests ask of seeders and agents, and what they get, to
// docs/openapi.yaml, and the same of hosts to docs/openapi-host.yaml.
package apitest

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
)

// uploads is the path whose parameter has slashes, for which OpenAPI has no word.
const uploads = "/uploads/{key}"

// Root is the top of the source tree.
var Root = func() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..")
}()

// Contract is docs/openapi.yaml, or docs/openapi-host.yaml.
type Contract struct {
	name string // such as docs/openapi.yaml
	// Document is the file. Unlike programs, which ignore fields that they do not
	// know, tests fail at one that it does not name.
	Document *openapi3.T

	mu   sync.Mutex
	seen map[string]bool
}

// Each file is read once: a document is only read.
var (
	members = sync.OnceValues(func() (*openapi3.T, error) { return load(membersFile) })
	hosts   = sync.OnceValues(func() (*openapi3.T, error) { return load(hostsFile) })
)

const membersFile, hostsFile = "docs/openapi.yaml", "docs/openapi-host.yaml"

func load(name string) (*openapi3.T, error) {
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromFile(filepath.Join(Root, name))
	if err != nil {
		return nil, err
	}
	if err := doc.Validate(loader.Context); err != nil {
		return nil, err
	}
	extended := make(map[*openapi3.Schema]bool) // others add something to them
	for _, s := range doc.Components.Schemas {
		for _, part := range s.Value.AllOf {
			extended[part.Value] = true
		}
	}
	for _, s := range doc.Components.Schemas {
		if !extended[s.Value] {
			closeObject(s.Value)
		}
	}
	return doc, nil
}

// closeObject leaves an object no other properties than those that are named, unless it says
// what they are.
func closeObject(s *openapi3.Schema) {
	if !s.Type.Is("object") || s.AdditionalProperties.Schema != nil {
		return
	}
	no := false
	s.AdditionalProperties = openapi3.BoolSchema{Has: &no}
	for _, p := range s.Properties {
		if p.Ref == "" {
			closeObject(p.Value)
		}
	}
}

// Load reads and checks the file of seeders and agents.
func Load(t testing.TB) *Contract {
	t.Helper()
	return contract(t, membersFile, members)
}

// LoadHost reads and checks the file of hosts.
func LoadHost(t testing.TB) *Contract {
	t.Helper()
	return contract(t, hostsFile, hosts)
}

func contract(t testing.TB, name string, document func() (*openapi3.T, error)) *Contract {
	t.Helper()
	doc, err := document()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return &Contract{name: name, Document: doc, seen: make(map[string]bool)}
}

// Operations are all of the file, each as "GET /healthz 200" with one of its statuses.
func (c *Contract) Operations() []string {
	var all []string
	for path, item := range c.Document.Paths.Map() {
		for method, o := range item.Operations() {
			for code := range o.Responses.Map() {
				all = append(all, method+" "+path+" "+code)
			}
		}
	}
	slices.Sort(all)
	return all
}

// Unseen are the Operations that no transport of c has come by.
func (c *Contract) Unseen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(c.Operations(), func(o string) bool { return c.seen[o] })
}

// Has reports whether the file has a path, such as "/executions/{id}", with a method.
func (c *Contract) Has(method, path string) bool {
	item := c.Document.Paths.Value(path)
	return item != nil && item.Operations()[method] != nil
}

// Check holds a decoded JSON value to a schema of the file.
func (c *Contract) Check(schema string, value any) error {
	s := c.Document.Components.Schemas[schema]
	if s == nil {
		return fmt.Errorf("%s has no schema %s", c.name, schema)
	}
	return s.Value.VisitJSON(value, openapi3.EnableJSONSchema2020())
}

// Transport returns base with an eye on what passes: the answer must be as the file
// says and, where that is a success, the request as well, and the role one that the
// operation is tagged with. A request that the file does not know must be refused.
func (c *Contract) Transport(t testing.TB, role string, base http.RoundTripper) http.RoundTripper {
	return &transport{c, t, role, base}
}

type transport struct {
	*Contract
	t    testing.TB
	role string
	base http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (x *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	asked := r.Clone(r.Context())
	isJSON := r.Header.Get("Content-Type") == "application/json"
	if r.Body != nil && isJSON {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body, asked.Body = io.NopCloser(bytes.NewReader(b)), io.NopCloser(bytes.NewReader(b))
	} else {
		asked.Body = http.NoBody
	}
	res, err := x.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if err := x.check(asked, isJSON, res); err != nil {
		x.t.Errorf("%s %.200s: %d is not as %s says: %v", r.Method, r.URL.RequestURI(), res.StatusCode, x.name, err)
	}
	return res, nil
}

func (x *transport) check(r *http.Request, isJSON bool, res *http.Response) error {
	route, params := x.route(r)
	if route == nil {
		if res.StatusCode < 400 {
			return fmt.Errorf("it has no such path")
		}
		return nil
	}
	success := res.StatusCode < 400
	if success && !slices.Contains(route.Operation.Tags, x.role) {
		return fmt.Errorf("the operation has no tag %s", x.role)
	}
	documented := route.Operation.Responses.Status(res.StatusCode)
	if documented == nil {
		return fmt.Errorf("it has no such status")
	}
	in := &openapi3filter.RequestValidationInput{
		Request: r, PathParams: params, Route: route,
		Options: &openapi3filter.Options{
			AuthenticationFunc:  openapi3filter.NoopAuthenticationFunc,
			ExcludeRequestBody:  !isJSON,
			SkipSettingDefaults: true,
		},
	}
	if success {
		if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil {
			return fmt.Errorf("the request: %w", err)
		}
	}
	if err := checkAnswer(in, res, documented.Value); err != nil {
		return err
	}
	x.mu.Lock()
	x.seen[r.Method+" "+route.Path+" "+strconv.Itoa(res.StatusCode)] = true
	x.mu.Unlock()
	return nil
}

// checkAnswer reads JSON, and puts it back; other bodies, which may never end, are let
// through.
func checkAnswer(in *openapi3filter.RequestValidationInput, res *http.Response, documented *openapi3.Response) error {
	media, _, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil || documented.Content.Get(media) == nil {
		return fmt.Errorf("it has no Content-Type %q for this", res.Header.Get("Content-Type"))
	}
	answer := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: res.StatusCode, Header: res.Header,
		Options: &openapi3filter.Options{ExcludeResponseBody: media != "application/json"},
	}
	if media == "application/json" {
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		res.Body = io.NopCloser(bytes.NewReader(b))
		if err != nil {
			res.Body = io.NopCloser(io.MultiReader(bytes.NewReader(b), broken{err}))
			return nil // that the connection broke is the test's own business
		}
		answer.SetBodyBytes(b)
	}
	return openapi3filter.ValidateResponse(in.Request.Context(), answer)
}

// broken is a body that ends with an error.
type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// route finds the operation that a request is for.
func (c *Contract) route(r *http.Request) (*routers.Route, map[string]string) {
	asked := r.URL.EscapedPath()
	if key, ok := strings.CutPrefix(asked, strings.TrimSuffix(uploads, "{key}")); ok {
		return c.routeTo(uploads, r.Method), map[string]string{"key": unescaped(key)}
	}
	for path := range c.Document.Paths.Map() {
		if params, ok := match(path, asked); ok && path != uploads {
			return c.routeTo(path, r.Method), params
		}
	}
	return nil, nil
}

func (c *Contract) routeTo(path, method string) *routers.Route {
	item := c.Document.Paths.Value(path)
	o := item.Operations()[method]
	if o == nil {
		return nil
	}
	return &routers.Route{Spec: c.Document, Path: path, PathItem: item, Method: method, Operation: o}
}

// match reports whether a path is as a template says, and what its parameters are.
func match(template, path string) (map[string]string, bool) {
	want, got := strings.Split(template, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return nil, false
	}
	params := make(map[string]string)
	for i, w := range want {
		if name, ok := strings.CutPrefix(w, "{"); ok {
			params[strings.TrimSuffix(name, "}")] = unescaped(got[i])
		} else if w != got[i] {
			return nil, false
		}
	}
	return params, true
}

func unescaped(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		return u
	}
	return s
}
