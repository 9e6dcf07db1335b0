package attack

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"
)

// order is what a process of an attacker is told first; what is under way follows, each time
// that it changes.
type order struct {
	Name   string
	Target Target
}

// Order tells a process which attacker it is; Tell what is under way.
func Order(w io.Writer, name string, t Target) error {
	return json.NewEncoder(w).Encode(order{name, t})
}

// Tell tells a process of an attacker what is under way.
func Tell(w io.Writer, now Now) error { return json.NewEncoder(w).Encode(now) }

// Process is a process of one attacker: so that it takes no time of those that it attacks,
// it can be given less of the machine. It attacks until what it is told ends.
func Process(in io.Reader) error {
	d := json.NewDecoder(in)
	var o order
	if err := d.Decode(&o); err != nil {
		return fmt.Errorf("reading whom to attack: %w", err)
	}
	var now atomic.Pointer[Now]
	now.Store(new(Now))
	o.Target.Now = func() Now { return *now.Load() }
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		for {
			next := new(Now)
			if d.Decode(next) != nil {
				return
			}
			now.Store(next)
		}
	}()
	for _, a := range Attackers() {
		if a.Name == o.Name {
			return a.Run(ctx, o.Target)
		}
	}
	return fmt.Errorf("no attacker is called %q", o.Name)
}
