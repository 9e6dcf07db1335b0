// Command notice says what the programs are made of: every module that is linked into
// them, with its licence. `make lint` holds NOTICE to it, and `make release` puts the
// licences' texts beside the programs.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// allowed are the licences that a program under Apache-2.0 may be linked with. What is
// under MPL-2.0 must be named with its source, which NOTICE does.
var allowed = []string{"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0", "Unlicense"}

// leastKnown is how much of a licence file must be a licence that is known, in percent:
// the rest is names and years.
const leastKnown = 75

const head = `Landfall
Copyright the authors of Landfall

Licensed under the Apache License, Version 2.0; see LICENSE.

The programs contain the modules below, each under its own licence. The source of
each is at https://pkg.go.dev/ by its path and version. Releases have the texts of
the licences beside them (LICENSES.txt). Written by ` + "`make notice`" + `.

`

// module is one that is linked into a program.
type module struct {
	Path, Version, Dir string
	Main               bool
	Replace            *module
}

func main() {
	check := flag.String("check", "", "`FILE` that must say what is true")
	texts := flag.Bool("texts", false, "print the texts of the licences instead")
	flag.Parse()
	if err := run(*check, *texts, os.Stdout, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "notice:", err)
		os.Exit(1)
	}
}

func run(check string, texts bool, out io.Writer, packages []string) error {
	if len(packages) == 0 {
		packages = []string{"./cmd/..."}
	}
	modules, err := linked(packages)
	if err != nil {
		return err
	}
	notice := bytes.NewBufferString(head)
	var text bytes.Buffer
	var wrong []error
	for _, m := range modules {
		licences, files, err := licensed(m.Dir)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s %s: %w", m.Path, m.Version, err))
			continue
		}
		fmt.Fprintf(notice, "%s %s  %s\n", m.Path, m.Version, strings.Join(licences, ", "))
		for _, f := range files {
			fmt.Fprintf(&text, "== %s %s: %s\n\n%s\n\n", m.Path, m.Version, f.name, bytes.TrimSpace(f.text))
		}
	}
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	switch {
	case texts:
		_, err = out.Write(text.Bytes())
	case check == "":
		_, err = out.Write(notice.Bytes())
	default:
		said, readErr := os.ReadFile(check)
		if err = readErr; err == nil && !bytes.Equal(said, notice.Bytes()) {
			err = fmt.Errorf("%s does not say what the programs are made of: run `make notice`", check)
		}
	}
	return err
}

// linked returns the modules of the packages' dependencies, in order, the main one left out.
func linked(packages []string) ([]module, error) {
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=Module"}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as the programs are built
	cmd.Stderr = os.Stderr
	list, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	found := make(map[string]module)
	for d := json.NewDecoder(bytes.NewReader(list)); ; {
		var p struct{ Module *module }
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		m := p.Module
		if m == nil || m.Main {
			continue // the standard library's licence is Go's, which is named at the end
		}
		if r := m.Replace; r != nil {
			if r.Version == "" {
				continue // in this repository
			}
			m = r
		}
		found[m.Path] = *m
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	// Without a version: whichever builds it, the licence is the same.
	found["go"] = module{Path: "go.dev", Version: "(the standard library)", Dir: strings.TrimSpace(string(root))}
	return slices.SortedFunc(maps.Values(found), func(a, b module) int { return strings.Compare(a.Path, b.Path) }), nil
}

type file struct {
	name string
	text []byte
}

var legalFile = regexp.MustCompile(`(?i)^(licen[sc]e|copying|notice|unlicense)([-.].*)?$`)

// licensed returns the licences of a module, by their SPDX names, and the files that say so.
func licensed(dir string) (licences []string, files []file, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if e.Type() != fs.FileMode(0) || !legalFile.MatchString(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, nil, err
		}
		files = append(files, file{e.Name(), text})
		cover := licensecheck.Scan(text)
		if cover.Percent < leastKnown {
			continue // a notice, or one licence's preface to others
		}
		for _, m := range cover.Match {
			if m.IsURL {
				continue
			}
			if !slices.Contains(allowed, m.ID) {
				return nil, nil, fmt.Errorf("%s: licence %s is not among %s", e.Name(), m.ID, strings.Join(allowed, ", "))
			}
			if !slices.Contains(licences, m.ID) {
				licences = append(licences, m.ID)
			}
		}
	}
	if len(licences) == 0 {
		return nil, nil, fmt.Errorf("no licence that is known in %s", dir)
	}
	slices.Sort(licences)
	return licences, files, nil
}
