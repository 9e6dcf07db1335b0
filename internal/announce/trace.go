package announce

import (
	"encoding/json"
	"strings"
)

// TraceParent is a traceparent of W3C Trace Context, or empty.
type TraceParent string

// UnmarshalJSON takes what is no traceparent for an empty one: a build is not to be
// refused for its trace.
func (p *TraceParent) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil && isTraceParent(s) {
		*p = TraceParent(s)
	}
	return nil
}

// isTraceParent reports whether s has the form that every version of the standard
// begins with, and no more: version, trace, span and flags in lower-case hexadecimal.
func isTraceParent(s string) bool {
	const length = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if len(s) != length {
		return false
	}
	fields := strings.Split(s, "-")
	if len(fields) != 4 || len(fields[0]) != 2 || len(fields[1]) != 32 || len(fields[2]) != 16 {
		return false
	}
	for _, f := range fields {
		if strings.Trim(f, "0123456789abcdef") != "" {
			return false
		}
	}
	return fields[0] != "ff" && strings.Trim(fields[1], "0") != "" && strings.Trim(fields[2], "0") != ""
}
