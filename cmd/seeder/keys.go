package main

import (
	"context"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
)

const (
	// completionTimeout is how long a shell waits for keys: who presses Tab
	// would rather have none than wait for a seeder that does not answer.
	completionTimeout = 500 * time.Millisecond
	// completionKeys is how many executions are looked at for keys.
	completionKeys = 100
)

// keys completes the keys of the newest executions that a command can be meant for.
func keys(meant func(*api.Execution) bool) command.Completer {
	return func(ctx context.Context, flag func(string) string) []string {
		ctx, cancel := context.WithTimeout(ctx, completionTimeout)
		defer cancel()
		to, err := command.NewClient("seeder", flag("seeder"), flag)
		if err != nil {
			return nil
		}
		page, err := to.Executions(ctx, completionKeys, "")
		if err != nil {
			return nil
		}
		var out []string
		for i := range page.Executions {
			if e := &page.Executions[i]; meant(e) {
				out = append(out, nameOf(e))
			}
		}
		return out
	}
}

// serviceNames completes names of services.
func serviceNames(ctx context.Context, flag func(string) string) []string {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	to, err := command.NewClient("seeder", flag("seeder"), flag)
	if err != nil {
		return nil
	}
	list, err := to.Services(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, s := range list.Services {
		out = append(out, s.Service)
	}
	return out
}

func anyExecution(*api.Execution) bool { return true }
func running(e *api.Execution) bool    { return !e.Ended() }

// unfinished are those with a destination that has not arrived.
func unfinished(e *api.Execution) bool {
	for _, d := range e.Destinations {
		if d.State != api.StateLanded {
			return true
		}
	}
	return false
}
