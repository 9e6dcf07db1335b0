package apitest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/landfall-dist/landfall/internal/api"
)

// complaints collects what a transport says.
type complaints struct {
	testing.TB
	said []string
}

func (c *complaints) Errorf(format string, args ...any) {
	c.said = append(c.said, fmt.Sprintf(format, args...))
}

// TestTransport: what is not as the file says is told, and nothing else.
func TestTransport(t *testing.T) {
	const errorBody = `{"error":"no"}`
	for name, c := range map[string]struct {
		role, method, path, body string
		code                     int
		media, answer            string
		want                     string // in the complaint; empty for none
	}{
		"right":              {"agent", "GET", "/healthz", "", 200, "application/json", `{"status":"ok"}`, ""},
		"right, refused":     {"seeder", "POST", "/deploy", `{"sourceBucket":1}`, 400, "application/json", errorBody, ""},
		"not known":          {"seeder", "GET", "/none", "", 404, "text/plain", "not found", ""},
		"new path":           {"seeder", "GET", "/new", "", 200, "application/json", `{}`, "no such path"},
		"new method":         {"seeder", "DELETE", "/executions/1", "", 200, "application/json", `{}`, "no such path"},
		"new status":         {"seeder", "GET", "/executions", "", 418, "application/json", errorBody, "no such status"},
		"new field":          {"agent", "GET", "/healthz", "", 200, "application/json", `{"status":"ok","x":1}`, "x"},
		"missing field":      {"agent", "GET", "/healthz", "", 200, "application/json", `{}`, "status"},
		"field of a listed":  {"seeder", "GET", "/changes", "", 200, "application/json", `{"version":"1","set":{"listed/1":{"id":"1"}}}`, "listed"},
		"unknown value":      {"seeder", "GET", "/changes", "", 200, "application/json", `{"version":"1","set":{"new/1":{}}}`, "new/1"},
		"error without one":  {"seeder", "GET", "/executions/1", "", 404, "application/json", `{}`, "error"},
		"error as text":      {"seeder", "GET", "/executions/1", "", 404, "text/plain", "no", "Content-Type"},
		"of the other role":  {"agent", "GET", "/executions", "", 200, "application/json", `{"executions":[]}`, "no tag agent"},
		"wrong body taken":   {"seeder", "POST", "/deploy", `{"sourceBucket":1}`, 202, "application/json", `{}`, "the request"},
		"wrong query taken":  {"seeder", "GET", "/executions?limit=5000", "", 200, "application/json", `{"executions":[]}`, "the request"},
		"key with a slash":   {"seeder", "PUT", "/uploads/a/b%2Fc", "x", 200, "application/json", `{"bucket":"b","key":"a/b/c","size":1,"etag":"e"}`, ""},
		"no challenge":       {"seeder", "POST", "/deploy", `{}`, 401, "application/json", errorBody, "WWW-Authenticate"},
		"time without hours": {"seeder", "GET", "/changes", "", 200, "application/json", `{"version":"1","set":{"badPeers":[{"name":"a","addr":"a","reason":"corrupt","since":"yesterday","times":1}]}}`, "since"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if b, err := io.ReadAll(r.Body); err != nil || string(b) != c.body {
				t.Errorf("%s: %q came of the body, %v", name, b, err)
			}
			w.Header().Set("Content-Type", c.media)
			w.WriteHeader(c.code)
			fmt.Fprint(w, c.answer)
		}))
		heard := &complaints{TB: t}
		to := http.Client{Transport: Load(t).Transport(heard, c.role, http.DefaultTransport)}
		req, err := http.NewRequest(c.method, server.URL+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if c.method == http.MethodPut {
			req.Header.Set("Content-Type", "application/zip")
		}
		res, err := to.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(res.Body); err != nil || string(b) != c.answer {
			t.Errorf("%s: %q came back, %v", name, b, err)
		}
		res.Body.Close()
		server.Close()
		said := strings.Join(heard.said, "\n")
		if (said == "") != (c.want == "") || !strings.Contains(said, c.want) {
			t.Errorf("%s: says %q, want %q", name, said, c.want)
		}
	}
}

// pattern is a route as net/http's ServeMux takes it.
var pattern = regexp.MustCompile(`^(GET|POST|PUT|PATCH|DELETE) (/.*)$`)

// TestEveryRouteIsInTheFile reads the routes from the sources that register them.
func TestEveryRouteIsInTheFile(t *testing.T) {
	contract, host := Load(t), LoadHost(t)
	found := 0
	for dir, contract := range map[string]*Contract{"seeder": contract, "agent": contract, "internal/web": contract, "internal/host": host} {
		files, err := filepath.Glob(filepath.Join(Root, dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			for _, text := range literals(t, file) {
				route := pattern.FindStringSubmatch(text)
				if route == nil || text == "GET /" { // of the page's own files
					continue
				}
				found++
				if path := strings.ReplaceAll(route[2], "{$}", ""); !contract.Has(route[1], path) {
					t.Errorf("%s lacks %s, which %s has", contract.name, text, file)
				}
			}
		}
	}
	if found < 16 {
		t.Errorf("%d routes found", found)
	}
}

// literals are the string literals of a file of Go.
func literals(t *testing.T, file string) (all []string) {
	t.Helper()
	if strings.HasSuffix(file, "_test.go") {
		return nil
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			all = append(all, strings.Trim(l.Value, "\"`"))
		}
		return true
	})
	return all
}

// types are those that a program finds in package api, by the name of their schema.
var types = []any{
	api.Execution{}, api.Destination{}, api.Took{}, api.SwarmView{}, api.Holder{}, api.Link{}, api.Traffic{}, api.Executions{}, api.Unserved{},
	api.DeployRequest{}, api.DeployAnswer{}, api.BuildRequest{}, api.BuildAnswer{}, api.UploadAnswer{}, api.Error{}, api.Changes{}, api.Change{},
	api.AgentStatus{}, api.TLS{}, api.Cache{}, api.CacheEntry{}, api.BadPeer{}, api.Member{}, api.Build{}, api.Peer{},
	api.Services{}, api.Service{}, api.ServiceBuild{}, api.ServiceRegion{}, api.ServiceZone{}, api.HostCounts{}, api.FailureGroup{}, api.Policy{}, api.Deployment{}, api.Deployments{},
	api.ServiceDeployRequest{}, api.ServiceDeployAnswer{}, api.WavePlan{}, api.ServiceCommandRequest{}, api.ServiceCommandAnswer{}, api.HostViews{}, api.HostView{}, api.HostsLogged{}, api.RegionLogged{}, api.BackPlan{},
	api.RecallRequest{}, api.Recalls{}, api.RecalledBuild{},
}

// hostTypes are those of what a host answers.
var hostTypes = []any{api.Error{}, api.HostStatus{}, api.HostService{}, api.HostBuild{}}

// TestTypesAgree: every field of the types is in its schema, as what it is, and none
// more.
func TestTypesAgree(t *testing.T) {
	agree(t, Load(t), types)
	agree(t, LoadHost(t), hostTypes)
	for _, name := range declared(t) {
		if name != "StatusError" && !slices.ContainsFunc(slices.Concat(types, hostTypes), func(v any) bool { return reflect.TypeOf(v).Name() == name }) {
			t.Errorf("api.%s is not looked at here", name)
		}
	}
}

func agree(t *testing.T, contract *Contract, types []any) {
	t.Helper()
	for _, v := range types {
		of := reflect.TypeOf(v)
		s := contract.Document.Components.Schemas[of.Name()]
		if s == nil {
			t.Errorf("%s has no schema %s", contract.name, of.Name())
			continue
		}
		properties, required := s.Value.Properties, s.Value.Required
		if len(s.Value.AllOf) == 2 { // an embedded type, and what it lacks
			if s.Value.AllOf[0].Ref != "#/components/schemas/"+of.Field(0).Type.Name() || !of.Field(0).Anonymous {
				t.Errorf("%s begins with %s", of.Name(), s.Value.AllOf[0].Ref)
			}
			properties, required = s.Value.AllOf[1].Value.Properties, s.Value.AllOf[1].Value.Required
		}
		if s.Value.Description == "" {
			t.Errorf("%s is not described", of.Name())
		}
		named := make(map[string]bool)
		for i := range of.NumField() {
			f := of.Field(i)
			if f.Anonymous {
				continue
			}
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			named[name] = true
			p := properties[name]
			if p == nil {
				t.Errorf("%s lacks %s", of.Name(), name)
				continue
			}
			if p.Value.Description == "" {
				t.Errorf("%s of %s is not described", name, of.Name())
			}
			if want := kindOf(f.Type); kind(p) != want {
				t.Errorf("%s of %s is %s, want %s", name, of.Name(), kind(p), want)
			}
			// null is absent, in what is asked.
			optional := options == "omitempty" || p.Value.Type.Includes("null")
			if slices.Contains(required, name) == optional {
				t.Errorf("%s of %s: required or not?", name, of.Name())
			}
		}
		for name := range properties {
			if !named[name] {
				t.Errorf("%s has %s, which the Go type has not", of.Name(), name)
			}
		}
	}
}

// kindOf is how a schema says a Go type: its type, or the name of another schema.
func kindOf(of reflect.Type) string {
	switch {
	case of == reflect.TypeFor[time.Time]():
		return "string/date-time"
	case of.Kind() == reflect.Pointer:
		return kindOf(of.Elem())
	case of.Kind() == reflect.Slice:
		return "[]" + kindOf(of.Elem())
	case of.Kind() == reflect.Struct:
		return of.Name()
	}
	return map[reflect.Kind]string{
		reflect.String: "string", reflect.Bool: "boolean", reflect.Int: "integer", reflect.Int64: "integer/int64",
		reflect.Float64: "number/double", reflect.Map: "object",
	}[of.Kind()]
}

func kind(p *openapi3.SchemaRef) string {
	name := strings.TrimPrefix(p.Ref, "#/components/schemas/")
	switch {
	case p.Value.Type.Includes("array"):
		return "[]" + kind(p.Value.Items)
	case name != "" && name != "Status" && name != "State": // texts with names
		return name
	case p.Value.Format != "":
		return p.Value.Type.Slice()[0] + "/" + p.Value.Format
	}
	return p.Value.Type.Slice()[0]
}

// declared are the exported structs of package api.
func declared(t *testing.T) (names []string) {
	t.Helper()
	for _, name := range []string{"api.go", "services.go", "host.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(Root, "internal", "api", name), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, s := range g.Specs {
				ts, ok := s.(*ast.TypeSpec)
				if !ok || !ts.Name.IsExported() {
					continue
				}
				if _, ok := ts.Type.(*ast.StructType); ok {
					names = append(names, ts.Name.Name)
				}
			}
		}
	}
	return names
}
