//go:build linux

package main

import (
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/exclusivetest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

var program = exclusivetest.Store{Broken: "this version can't read the database"}

func TestUpgrades(t *testing.T)      { program.Upgrades(t) }
func TestBrokenVersion(t *testing.T) { program.BrokenVersion(t) }
func TestDyingVersions(t *testing.T) { program.DyingVersions(t) }
