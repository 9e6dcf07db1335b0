package goal

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// Share is a number of hosts, or per cent of them: "3", "10%", "0.5%". Empty for none.
type Share string

// maxShare bounds a number of hosts.
const maxShare = 1_000_000

// Check reports what is wrong with it.
func (s Share) Check() error {
	if s == "" {
		return nil
	}
	if percent, ok := strings.CutSuffix(string(s), "%"); ok {
		if r := rational(percent); r != nil && r.Cmp(big.NewRat(100, 1)) <= 0 {
			return nil
		}
		return fmt.Errorf("%w: %.20q: expected 0%% to 100%%", ErrInvalid, string(s))
	}
	if n, err := strconv.Atoi(string(s)); err != nil || n < 0 || n > maxShare || string(s)[0] == '+' {
		return fmt.Errorf("%w: %.20q: expected a number of hosts or per cent of them, as in 3 or 10%%", ErrInvalid, string(s))
	}
	return nil
}

// rational reads digits with at most one dot, nil for anything else: exact, so that 29% of
// 100 are 29.
func rational(s string) *big.Rat {
	if s == "" || len(s) > 8 || strings.Trim(s, "0123456789.") != "" {
		return nil
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return nil
	}
	return r
}

// Of is how many of n it is: rounded down, but at least one where there is something of
// which it is a share, and never more than n. What Check refuses is none.
func (s Share) Of(n int) int {
	within := s.Within(n)
	if within == 0 && n > 0 && s.Check() == nil && strings.Trim(string(s), "0.%") != "" {
		return 1
	}
	return within
}

// Within is how many of n it is, rounded down: of so many may something be said.
func (s Share) Within(n int) int {
	if s == "" || n <= 0 || s.Check() != nil {
		return 0
	}
	share, isPercent := strings.CutSuffix(string(s), "%")
	if !isPercent {
		count, _ := strconv.Atoi(share)
		return min(count, n)
	}
	r := rational(share)
	r.Mul(r, big.NewRat(int64(n), 100))
	return int(new(big.Int).Quo(r.Num(), r.Denom()).Int64())
}

// Whole reports whether it is all of any number.
func (s Share) Whole() bool {
	percent, ok := strings.CutSuffix(string(s), "%")
	r := rational(percent)
	return ok && r != nil && r.Cmp(big.NewRat(100, 1)) == 0
}
