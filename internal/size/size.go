// Package size reads and writes numbers of bytes, and of bytes/s, as people give them.
package size

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// units are binary: cache sizes are compared with files on disk.
var units = []struct {
	suffix string
	factor float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// Parse reads a size such as 20GiB, 500MB or 4096, in bytes.
func Parse(s string) (int64, error) {
	number, factor := s, 1.0
	for _, u := range units {
		if n, ok := strings.CutSuffix(s, u.suffix); ok {
			number, factor = n, u.factor
			break
		}
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !(n >= 0 && n*factor < math.MaxInt64/2) {
		return 0, fmt.Errorf("%q is not a size such as 20GiB or 500MB", s)
	}
	return int64(n * factor), nil
}

// ParseRate reads a rate such as 1Gbit, 400Mbit or 50MB, in bytes/s; "/s" may follow.
func ParseRate(s string) (int64, error) {
	number := strings.TrimSuffix(s, "/s")
	for _, u := range []struct {
		suffix string
		bytes  float64
	}{{"Kbit", 1e3 / 8}, {"Mbit", 1e6 / 8}, {"Gbit", 1e9 / 8}} {
		n, ok := strings.CutSuffix(number, u.suffix)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(n), 64)
		if err != nil || !(v >= 0 && v*u.bytes < math.MaxInt64/2) {
			return 0, fmt.Errorf("%q is not a rate such as 1Gbit or 50MB", s)
		}
		return int64(v * u.bytes), nil
	}
	v, err := Parse(number)
	if err != nil {
		return 0, fmt.Errorf("%q is not a rate such as 1Gbit or 50MB", s)
	}
	return v, nil
}

// Format writes bytes for people.
func Format(n int64) string {
	const step = 1024
	if n < step {
		return fmt.Sprintf("%d B", n)
	}
	v := float64(n)
	unit := ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v /= step; v < step {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}
