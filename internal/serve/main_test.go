//go:build linux

package serve

import (
	"fmt"
	"os"
	"testing"
)

// TestMain runs the tests; or the clients of a benchmark, whose process it is then.
func TestMain(m *testing.M) {
	if addr := os.Getenv(idleClientsOf); addr != "" {
		if err := beIdleClients(addr, os.Getenv(idleClients)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
