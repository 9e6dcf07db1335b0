package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// beerware is a short one that is not allowed.
const beerware = `"THE BEER-WARE LICENSE" (Revision 42):
<somebody@example.com> wrote this file. As long as you retain this notice you
can do whatever you want with this stuff. If we meet some day, and you think
this stuff is worth it, you can buy me a beer in return.
`

func TestLicensed(t *testing.T) {
	ours, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  string // in the error; empty for none
	}{
		"apache":           {map[string]string{"LICENSE": string(ours), "NOTICE": "somebody"}, ""},
		"none":             {map[string]string{"README": string(ours)}, "no licence"},
		"nothing known":    {map[string]string{"LICENSE": "all rights reserved"}, "no licence"},
		"one that may not": {map[string]string{"LICENSE.txt": beerware}, "Beerware"},
	} {
		dir := t.TempDir()
		for file, text := range c.files {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		licences, files, err := licensed(dir)
		if c.want == "" && (err != nil || len(licences) != 1 || licences[0] != "Apache-2.0" || len(files) != 2) {
			t.Errorf("%s: %v, %d files, %v", name, licences, len(files), err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRun(t *testing.T) {
	var out bytes.Buffer
	if err := run("", false, &out, []string{"."}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "github.com/google/licensecheck v") || !strings.Contains(out.String(), "BSD-3-Clause") {
		t.Errorf("%s", out.String())
	}
	file := filepath.Join(t.TempDir(), "NOTICE")
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(file, false, &out, []string{"."}); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(file, out.Bytes()[1:], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(file, false, &out, []string{"."}); err == nil {
		t.Error("what is not true passes")
	}
	out.Reset()
	if err := run("", true, &out, []string{"."}); err != nil || !strings.Contains(out.String(), "Redistribution and use") {
		t.Errorf("texts: %v", err)
	}
}
