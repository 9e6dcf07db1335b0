package operator

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWrittenTokenIsRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "operator.token")
	if err := WriteToken(file); err != nil {
		t.Fatal(err)
	}
	token, err := ReadToken(file)
	if err != nil {
		t.Fatal(err)
	}
	if !token.Is(string(token)) || token.Is("") || token.Is(string(token)+"x") || Token("").Is("") {
		t.Error("it is not itself, or is something else")
	}
	if err := WriteToken(file); err == nil {
		t.Error("a token that was there is overwritten")
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("said", "token", token)
	if said := log.String() + fmt.Sprintf("%v %s %q", token, token, token); strings.Contains(said, string(token)) {
		t.Error("it shows:", said)
	}
}

func TestReadToken(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want string // in the error; empty for none
	}{
		"right":              {"abcdefghijklmnop\n", 0o600, ""},
		"a group's":          {"abcdefghijklmnop", 0o640, ""},
		"longest":            {strings.Repeat("a", maxToken) + "\r\n", 0o600, ""},
		"everybody's":        {"abcdefghijklmnop\n", 0o644, "chmod 600"},
		"short":              {"abcdefghijklmno\n", 0o600, "15 characters"},
		"empty":              {"\n", 0o600, "0 characters"},
		"long":               {strings.Repeat("a", maxToken+1), 0o600, "4097 characters"},
		"not read":           {strings.Repeat("a", 1<<20), 0o600, "1048576 bytes"},
		"two lines":          {"abcdefghijklmnop\nabcdefghijklmnop\n", 0o600, "one line"},
		"not for a header":   {"abcdefghijklmnopß\n", 0o600, "ASCII"},
		"control characters": {"abcdefghijklmnop\x00\n", 0o600, "ASCII"},
	} {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, c.mode); err != nil {
			t.Fatal(err)
		}
		token, err := ReadToken(file)
		if c.want == "" {
			if err != nil || string(token) != strings.TrimSpace(c.text) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "abcdef") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := ReadToken(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "seeder keygen --operator-token") {
		t.Errorf("none: %v", err)
	}
}
