package command

import (
	"regexp"
	"strings"
	"unicode"
)

// Plain makes text from the network harmless to a terminal: a key, a region or an
// error may hold escape sequences, or characters that turn the line around.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// plainLines is Plain for errors, of which several may be joined by newlines.
func plainLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = Plain(line)
	}
	return strings.Join(lines, "\n")
}

var unquoted = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=,-]+$`)

// Quote makes a word safe to paste into a shell.
func Quote(word string) string {
	if unquoted.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
