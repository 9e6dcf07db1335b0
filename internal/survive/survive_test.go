package survive

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	want := errors.New("as usual")
	if err := Run(logger, func() error { return want }); err != want || log.Len() > 0 {
		t.Fatalf("got %v, logged %q, expected the error alone", err, &log)
	}
	var none []int
	err := Run(logger, func() error { none[3] = 1; return nil })
	var p *Panic
	if !errors.As(err, &p) || !strings.Contains(err.Error(), "index out of range") {
		t.Fatalf("got %v, expected the panic as an error", err)
	}
	if !strings.Contains(log.String(), "TestRun") {
		t.Errorf("the log has no stack: %s", &log)
	}
}
