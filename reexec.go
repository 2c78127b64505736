package grace

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// handoverVariable tells a new process which descriptors it was given. It is
// taken out of the environment before main begins, and counts only for the
// process that it was made for.
const handoverVariable = "GRACE_HANDOVER"

// firstDir and firstArgs are those of this process's start, before anybody can
// have changed them.
var (
	firstDir, firstDirErr = os.Getwd()
	firstArgs             = append([]string(nil), os.Args...)
)

// home is what every generation shares with the first: where it was started,
// and by which path.
type home struct {
	dir  string
	path string
}

// findHome finds out how this process, the first, was started.
func findHome() (home, error) {
	if firstDirErr != nil {
		return home{}, fmt.Errorf("grace: the working directory can't be told, and a new process must start in it: %w", firstDirErr)
	}
	self, selfErr := os.Executable()
	path := ""
	if len(firstArgs) > 0 {
		path = firstArgs[0]
		if !strings.ContainsRune(path, os.PathSeparator) {
			found, err := exec.LookPath(path)
			if err != nil {
				found = ""
			}
			path = found
		}
	}
	if path != "" && !filepath.IsAbs(path) {
		path = filepath.Join(firstDir, path)
	}
	// The name in the arguments is the caller's choice ("exec -a"): it counts
	// only if this very binary lies there.
	if selfErr == nil && !sameFile(path, self) {
		path = self
	}
	if path == "" {
		return home{}, fmt.Errorf("grace: the path of this binary can't be told: %w", selfErr)
	}
	return home{dir: firstDir, path: path}, nil
}

func sameFile(a, b string) bool {
	fa, err := os.Stat(a)
	if err != nil {
		return false
	}
	fb, err := os.Stat(b)
	return err == nil && os.SameFile(fa, fb)
}

// A command is a new process to be.
type command struct {
	path string
	argv []string
	env  []string
	dir  string
	// sibling: the new process is to be our parent's child, if that can be.
	sibling bool
}

// command says what to start: the arguments of now, the directory and the path
// of the first start, the environment of now, each as the options change it.
func (o *options) command(h home) command {
	c := command{path: h.path, dir: h.dir, env: o.env}
	if o.executable != "" {
		c.path = o.executable
		if !filepath.IsAbs(c.path) && strings.ContainsRune(c.path, os.PathSeparator) {
			c.path = filepath.Join(h.dir, c.path)
		}
	}
	if c.env == nil {
		c.env = os.Environ()
	}
	c.argv = append([]string(nil), firstArgs...)
	if len(c.argv) == 0 {
		c.argv = []string{c.path}
	}
	if o.args != nil {
		c.argv = append(c.argv[:1:1], o.args...)
	}
	return c
}

// resolve looks the binary up, so that the error names the path that was tried.
func (c *command) resolve() error {
	found, err := exec.LookPath(c.path)
	if err != nil {
		return err
	}
	c.path = found
	return nil
}

// withHandover is env with the variable v, and without an older one, and with
// what New has taken out of it.
func withHandover(env []string, v string) []string {
	out := make([]string, 0, len(env)+1)
	for _, kv := range env {
		if !strings.HasPrefix(kv, handoverVariable+"=") {
			out = append(out, kv)
		}
	}
	if path, _ := takenPIDFile.Load().(string); path != "" && !slices.ContainsFunc(out, func(kv string) bool {
		return strings.HasPrefix(kv, "GRACE_PIDFILE=")
	}) {
		out = append(out, "GRACE_PIDFILE="+path)
	}
	return append(out, handoverVariable+"="+v)
}

// A process is a started one: a child, a sibling, or a test's.
type process interface {
	pid() int
	kill() error
	// wait returns when the process has ended, and was reaped if that can be. The
	// error says why it can't be told how: it never means that the process lives.
	wait() (*os.ProcessState, error)
}
