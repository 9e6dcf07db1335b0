package hostwire

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// Every message that a frame may have is counted as what it is, from both sides.
func TestKinds(t *testing.T) {
	left := slices.DeleteFunc(Kinds(), func(kind string) bool { return kind == otherKind })
	frames := reflect.TypeFor[frame]()
	for i := range frames.NumField() {
		field := frames.Field(i)
		kind, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		m := reflect.New(field.Type.Elem()).Interface().(Message)
		if got := kindOf(m); got != kind {
			t.Errorf("%s is received as %s", kind, got)
		}
		at := slices.Index(left, kind)
		if at < 0 {
			t.Errorf("%s is not counted", kind)
			continue
		}
		left = slices.Delete(left, at, at+1)
	}
	if len(left) > 0 {
		t.Errorf("no frame has %v", left)
	}
	for _, m := range []Message{hello(), &Ping{}, &Holds{ulid1, 1, false}, &Leave{"web", 1, 30}} {
		e, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		if e.kind() != kindOf(m) {
			t.Errorf("%T is sent as %s, received as %s", m, e.kind(), kindOf(m))
		}
	}
	var c Counters
	c.out(Encoded("123456later\"")) // of a kind that is not known
	c.out(nil)
	c.in(nil, 1)
	if sent, received := c.Messages(otherKind); sent != 2 || received != 1 {
		t.Errorf("%d others sent, %d received", sent, received)
	}
}
