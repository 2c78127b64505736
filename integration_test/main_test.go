//go:build linux

// Package integration_test runs upgrades of real processes.
package integration_test

import (
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"

	// The servers are built by the tests: this lets go test know that a cached
	// result is stale when the library has changed.
	_ "github.com/julofinance/grace/v3"
)

func TestMain(m *testing.M) { proctest.Main(m) }
