package identity

import "fmt"

// Mode is where TLS is used between members.
type Mode string

// The modes. Prefer is for the time of a roll-out: it speaks TLS with members that
// show a certificate, and accepts the others without.
const (
	Off     Mode = "off"
	Prefer  Mode = "prefer"
	Require Mode = "require"
)

// ParseMode reads the value of --tls; empty is Off.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case "":
		return Off, nil
	case Off, Prefer, Require:
		return m, nil
	}
	return "", fmt.Errorf("%.20q: expected off, prefer or require", s)
}
