package main

import (
	"testing"

	"github.com/landfall-dist/landfall/internal/command/commandtest"
)

func TestApp(t *testing.T) { commandtest.Check(t, app) }
