// Package early imports nothing of grace and sorts before all of it, so its init
// function runs as early as one that starts a process can.
package early

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

func init() {
	if os.Getenv("TEST_EARLY") != "" {
		Probe()
	}
}

// Probe prints the environment and the descriptors of a child.
func Probe() {
	for _, args := range [][]string{{"env"}, {"ls", "-l", "/proc/self/fd"}} {
		out, _ := exec.Command(args[0], args[1:]...).CombinedOutput()
		for _, l := range strings.Split(strings.TrimSpace(string(out)), "\n") {
			fmt.Printf("probe %s %s\n", args[0], l)
		}
	}
	fmt.Printf("probed pid=%d\n", os.Getpid())
}
