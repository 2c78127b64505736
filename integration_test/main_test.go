//go:build linux

package integration_test

import (
	"runtime"
	"testing"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/proctest"
)

// The servers are built by the tests, so go test does not see that they use the
// library. With all of it in the test's binary too, a result that was cached
// before the library changed is seen to be stale.
var library = grace.Serve

func TestMain(m *testing.M) {
	runtime.KeepAlive(library)
	proctest.Main(m)
}
