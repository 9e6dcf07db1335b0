package command

import (
	"os/exec"
	"path/filepath"
	"regexp"
)

// hint is how advice names one of the programs.
var hint = regexp.MustCompile("`(agent|seeder|landfall-dev) ")

// asCalled names the programs in advice by the directory that this one was called from:
// where only bin/seeder is there, `seeder init` is no help. One that PATH leads to is
// called by its name alone, as the others are.
func asCalled(program, text string) string {
	dir, _ := filepath.Split(program)
	if found, err := exec.LookPath(filepath.Base(program)); dir == "" || err == nil && found == program {
		return text
	}
	return hint.ReplaceAllStringFunc(text, func(found string) string {
		return "`" + Quote(dir+found[1:len(found)-1]) + " "
	})
}
