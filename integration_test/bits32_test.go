//go:build linux

package integration_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What comes from the other process is looked at on a machine of 32 bit too, where
// a size of 2 GB is negative.
func TestSizesOn32Bit(t *testing.T) {
	qemu, err := exec.LookPath("qemu-arm")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI needs qemu-arm: %v", err)
		}
		t.Skipf("programs of 32 bit run with qemu-arm: %v", err)
	}
	for pkg, test := range map[string]string{"internal/control": "TestChannelEnds", "internal/serve": "TestBadConnsMessage"} {
		path := filepath.Join(t.TempDir(), "grace.test")
		build := exec.Command("go", "test", "-c", "-o", path, filepath.Join("github.com/julofinance/grace/v3", pkg))
		build.Env = append(os.Environ(), "GOARCH=arm", "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("go test -c: %v\n%s", err, out)
		}
		out, err := exec.Command(qemu, path, "-test.v", "-test.run", "^"+test+"$").CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS: "+test)) {
			t.Errorf("%s on 32 bit: %v\n%s", test, err, out)
		}
	}
}
