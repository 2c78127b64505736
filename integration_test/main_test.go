//go:build linux

// Package integration_test runs upgrades of real processes.
package integration_test

import (
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }
