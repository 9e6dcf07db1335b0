package identity_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/identity"
)

func TestJoinToken(t *testing.T) {
	made := identity.NewJoinToken(identity.Fingerprint{1, 2, 3})
	text := made.Text()
	if got, err := identity.ParseJoinToken(text); err != nil || got != made || len(text) != identity.MaxJoinToken {
		t.Errorf("%d characters, %v", len(text), err)
	}
	if identity.NewJoinToken(made.Root).Hash() == made.Hash() {
		t.Error("two tokens are alike")
	}
	parts := strings.Split(text, ".")
	for name, bad := range map[string]string{
		"nothing": "", "short": parts[2], "other kind": "lfjoin2" + strings.TrimPrefix(text, "lfjoin1"), "long": text + "A", "more parts": strings.Join(parts[:3], ".") + ".A.A",
		"id": strings.Join([]string{parts[0], "../../../etc/ab", parts[2], parts[3]}, "."), "id in capitals": strings.Join([]string{parts[0], "ABCDEF0123456789", parts[2], parts[3]}, "."),
		"secret": strings.Join([]string{parts[0], parts[1], parts[2][1:], parts[3]}, "."), "root": strings.Join([]string{parts[0], parts[1], parts[2], "!" + parts[3][1:]}, "."),
	} {
		_, err := identity.ParseJoinToken(bad)
		if err == nil {
			t.Errorf("%s is a token", name)
		} else if strings.Contains(err.Error(), parts[2][1:]) || strings.Contains(err.Error(), parts[3][1:]) {
			t.Errorf("%s: the error shows the token: %v", name, err)
		}
	}

	// However it is printed, the secret does not show.
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("it", "token", made)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("it", "token", made)
	said := fmt.Sprintf("%v %+v %s %#v %q", made, made, made, made, []identity.JoinToken{made}) + log.String()
	if strings.Contains(said, parts[2]) || !strings.Contains(said, made.ID) {
		t.Errorf("said: %s", said)
	}

	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := identity.ReadJoinToken(file); err != nil || got != made {
		t.Error(err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.ReadJoinToken(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("everybody's: %v", err)
	}
	if _, err := identity.ReadJoinToken(file + "-none"); err == nil || !strings.Contains(err.Error(), "seeder ca token") {
		t.Errorf("none: %v", err)
	}
}
