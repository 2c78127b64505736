//go:build linux && race

package proctest

func init() { raceEnabled = true }
