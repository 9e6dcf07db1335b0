package executionid

import (
	"errors"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func TestNewIsGreater(t *testing.T) {
	for _, last := range []string{
		"", "not an id", New(noon, ""), New(noon.Add(time.Hour), ""), New(noon.Add(MaxAhead), ""),
		New(noon, "")[:10] + "ZZZZZZZZZZZZZZZZ", // its random part is full
	} {
		id := New(noon, last)
		if id <= last && last != "not an id" {
			t.Errorf("%s after %s", id, last)
		}
		if err := Check(id, noon); err != nil {
			t.Errorf("after %s: %v", last, err)
		}
	}
}

// The greatest id has none after it, so it counts for nothing.
func TestNewNeverWraps(t *testing.T) {
	for _, last := range []string{
		"7ZZZZZZZZZZZZZZZZZZZZZZZZZ", "7ZZZZZZZZZZZZZZZZZZZZZZZZY", New(noon.Add(MaxAhead+time.Second), ""), "80000000000000000000000000",
	} {
		if id := New(noon, last); !Time(id).Equal(noon) {
			t.Errorf("after %s comes %s, of %s", last, id, Time(id))
		}
	}
}

func TestCheck(t *testing.T) {
	good := New(noon, "")
	for id, want := range map[string]error{
		good:                                    nil,
		New(noon.Add(-50*365*24*time.Hour), ""): nil,
		New(noon.Add(MaxAhead), ""):             nil,
		New(noon.Add(MaxAhead+time.Second), ""): ErrAhead,
		"7ZZZZZZZZZZZZZZZZZZZZZZZZZ":            ErrAhead,
		"80000000000000000000000000":            ErrInvalid, // more than 128 bits
		strings.ToLower(good):                   ErrInvalid,
		"":                                      ErrInvalid,
		"arn:aws:states:execution":              ErrInvalid,
		strings.Repeat("0", 1000):               ErrInvalid,
	} {
		if err := Check(id, noon); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%.40s: %v, want %v", id, err, want)
		}
	}
}
