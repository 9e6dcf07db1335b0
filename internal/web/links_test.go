package web

import (
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What a page leads to and is made of is open to everybody: a link brings no token, so with
// closed reading it would lead to a refusal. What asks for a token is fetched (token.js).
func TestLinksNeedNoToken(t *testing.T) {
	files, err := fs.ReadDir(embedded, "page")
	if err != nil {
		t.Fatal(err)
	}
	open := []string{"data:,"}
	for _, f := range files {
		open = append(open, f.Name(), "./"+f.Name())
	}
	leads := regexp.MustCompile("\\b(?:href|src|action|formaction)\\b[\"']?\\s*[:=]\\s*[\"'`]([^\"'`]*)[\"'`]|location\\.(?:assign|replace)\\(|window\\.open\\(")
	found := 0
	for _, f := range files {
		text, err := fs.ReadFile(embedded, "page/"+f.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range leads.FindAllStringSubmatch(string(text), -1) {
			found++
			if to := m[1]; !strings.HasPrefix(to, "#") && !slices.Contains(open, to) {
				t.Errorf("%s: %s", f.Name(), m[0])
			}
		}
	}
	if found < 5 {
		t.Errorf("%d links were looked at", found)
	}
}
