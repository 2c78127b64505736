//go:build linux

package proctest

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	raceEnabled bool   // the test binary has the race detector
	binDir      string // set by Main

	buildsMu sync.Mutex
	builds   = map[string]*build{}
)

type build struct {
	once sync.Once
	path string
	err  error
}

// Main runs the tests of a package and exits. It fails if a process is left.
func Main(m *testing.M) {
	// A process started with SIGHUP ignored (nohup) passes that on to what it
	// starts; one with a handler does not.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "proctest: become a child subreaper:", err)
		return 1
	}
	dir, err := os.MkdirTemp("", "grace-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "proctest:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755) // for programs that run as another user
	binDir = dir
	// What this machine's environment holds must not reach the programs.
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "GRACE_") {
			os.Unsetenv(name)
		}
	}
	// Nor may the descriptors that this process was started with.
	fds, err := FDs(os.Getpid())
	if err != nil {
		fmt.Fprintln(os.Stderr, "proctest:", err)
		return 1
	}
	for fd := range fds {
		if fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	// The race detector lets each process linger for a second at its end.
	os.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0"))
	startReaper()
	code := m.Run()
	if left := leftBehind(); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "proctest: processes are left:", left)
		return 1
	}
	return code
}

// Build builds the main package pkg, an import path or a path that begins with
// "./", once for all tests of the binary, and gives the program's path. It has
// the race detector if the tests have it, and counts coverage if GOCOVERDIR is
// set. More flags for go build may be given, "-ldflags=-X main.version=2" say.
func Build(t testing.TB, pkg string, flags ...string) string {
	t.Helper()
	if binDir == "" {
		t.Fatal("proctest: TestMain must call proctest.Main")
	}
	args := []string{"build"}
	if raceEnabled {
		args = append(args, "-race")
	}
	if os.Getenv("GOCOVERDIR") != "" {
		// Without the main package nothing would be written when the program ends.
		args = append(args, "-cover", "-coverpkg=github.com/julofinance/grace/v3,"+pkg)
	}
	args = append(args, flags...)
	key := strings.Join(append(args, pkg), "\x00")
	buildsMu.Lock()
	b := builds[key]
	if b == nil {
		b = &build{path: filepath.Join(binDir, fmt.Sprintf("%s-%d", filepath.Base(pkg), len(builds)))}
		builds[key] = b
	}
	buildsMu.Unlock()
	b.once.Do(func() {
		out, err := exec.Command("go", append(args, "-o", b.path, pkg)...).CombinedOutput()
		if err != nil {
			b.err = fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}
