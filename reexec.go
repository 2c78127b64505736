package grace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/julofinance/grace/v3/internal/birth"
	"github.com/julofinance/grace/v3/internal/hint"
	"github.com/julofinance/grace/v3/internal/proc"
)

// handoverVariable tells a new process which descriptors it was given. Package
// birth takes it out of the environment before any other package is initialised,
// and it counts only for the process that it was made for.
const handoverVariable = birth.Variable

// How this process was started, read before anything can have changed it. The
// bytes of os.Args are those that a program overwrites to show a title in ps.
var (
	firstArgs             = cloneAll(os.Args)
	firstDir, firstDirErr = os.Getwd()
	firstHome, noHomeErr  = findHome()
)

func cloneAll(texts []string) []string {
	out := make([]string, len(texts))
	for i, s := range texts {
		out[i] = strings.Clone(s)
	}
	return out
}

// home is what every generation shares with the first: where it was started,
// and by which path.
type home struct {
	dir  string // empty if it could not be told: it was gone already
	path string
	real string // where that led to, without symlinks
}

// findHome finds out how this process was started; the first one's counts.
func findHome() (home, error) {
	if inherited != nil {
		return home{}, nil // the old process has told it
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
		if path = filepath.Join(firstDir, path); firstDirErr != nil {
			path = "" // it tells nothing
		}
	}
	// The name in the arguments is the caller's choice ("exec -a"): it counts
	// only if this very binary lies there.
	if selfErr == nil && !sameFile(path, self) {
		path = self
	}
	if path == "" {
		return home{}, fmt.Errorf("grace: the path of this binary can't be told: %w", selfErr)
	}
	return home{dir: firstDir, path: path, real: self}, nil
}

func sameFile(a, b string) bool {
	fa, err := os.Stat(a)
	if err != nil {
		return false
	}
	fb, err := os.Stat(b)
	return err == nil && os.SameFile(fa, fb)
}

// A command is a process to be started, and what its program was looked up for.
type command struct {
	proc.Program
	needsDir bool // path is relative, and dir is not known
}

// command returns what to start: the present arguments, the directory and the
// path of the first start, the present environment, each as the options change
// it.
func (o *options) command(h home) command {
	c := command{Program: proc.Program{Path: h.path, Dir: h.dir, Env: o.env}}
	if o.dir != "" {
		c.Dir, c.DirAsked = o.dir, true
		if !filepath.IsAbs(c.Dir) {
			c.Dir = filepath.Join(h.dir, c.Dir)
		}
	}
	if o.executable != "" {
		c.Path = o.executable
		if !filepath.IsAbs(c.Path) && strings.ContainsRune(c.Path, os.PathSeparator) {
			c.Path = filepath.Join(c.Dir, c.Path)
			c.needsDir = c.Dir == ""
		}
	}
	if c.Env == nil {
		c.Env = os.Environ()
	}
	c.Argv = append([]string(nil), firstArgs...)
	if len(c.Argv) == 0 {
		c.Argv = []string{c.Path}
	}
	if o.args != nil {
		c.Argv = append(c.Argv[:1:1], o.args...)
	}
	return c
}

// resolve looks the binary up, so that the error names the path that was tried.
func (c *command) resolve() error {
	if byGoRun(c.Path) {
		return hint.New(fmt.Errorf("start %s: it was made by go run, which ends with this process, and makes another one of new code", c.Path), adviceGoRun)
	}
	if c.needsDir {
		return hint.New(fmt.Errorf("start %s: it is a relative path, and the working directory of the first start was gone already then", c.Path), "give Executable an absolute path, or start the service in a directory that stays")
	}
	found, err := exec.LookPath(c.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return hint.New(fmt.Errorf("the binary is gone, or was moved: %w", err), "put the new binary at the path that the error names, or give Executable another one, and send the signal again")
	}
	if err != nil {
		return err
	}
	c.Path = found
	return nil
}

// find is resolve for file systems that may hang: it stops waiting when ctx ends.
func (c command) find(ctx context.Context) (command, error) {
	done := make(chan error, 1)
	found := c
	go func() { done <- found.resolve() }()
	select {
	case err := <-done:
		return found, err
	case <-ctx.Done(): // found belongs to the goroutine
		return c, &proc.StuckError{Path: c.Path, Doing: "to be looked up"}
	}
}

// byGoRun reports whether path is that of a binary that go run has made: in a
// directory that it removes in the end, or, where there was nothing to be made
// since the last time, in the build cache (since Go 1.24; see putIndexEntry and put
// in cmd/go/internal/cache). What go test makes is elsewhere.
func byGoRun(path string) bool {
	parts := strings.Split(filepath.ToSlash(path), "/")
	n := len(parts)
	if n > 4 && parts[n-2] == "exe" && strings.HasPrefix(parts[n-4], "go-build") {
		return true
	}
	if n < 4 || len(parts[n-3]) != 2 || !strings.HasPrefix(parts[n-2], parts[n-3]) {
		return false
	}
	id, cached := strings.CutSuffix(parts[n-2], "-d")
	return cached && len(id) == 64 && strings.Trim(id, "0123456789abcdef") == ""
}

const adviceGoRun = "make the binary with go build and start that"

// foreseeTrouble warns at the start of what would make each upgrade fail.
func (u *Upgrader) foreseeTrouble() {
	c := u.opt.command(u.home)
	switch {
	case u.underMaster() || !supported:
	case byGoRun(c.Path):
		u.log.Warn("grace: this process can't be upgraded: go run has made its binary", "path", c.Path, "hint", adviceGoRun)
	case u.opt.executable == "":
		if _, err := os.Stat(c.Path); errors.Is(err, fs.ErrNotExist) {
			u.log.Warn("grace: the binary of this process is gone; an upgrade needs one", "path", c.Path)
		}
	}
}

// begin starts c: in its directory, or, if that is gone and nothing is known to
// need it, in the one of this process. A program that needs it fails by itself,
// and is not ready then.
func (u *Upgrader) begin(ctx context.Context, c command, start func(command) (proc.Process, error)) (proc.Process, error) {
	if c.Dir == "" {
		u.log.Warn(noDirectory, "now", currentDir(), "err", "it was gone already when the first process was started")
	}
	p, err := startWritten(ctx, u.log, c, start)
	if c.Dir != "" {
		go u.warnOfOtherRelease(c) // beside the start, which does not wait for this
	}
	var gone *proc.DirError
	if errors.As(err, &gone) {
		if c.DirAsked {
			return nil, hint.New(fmt.Errorf("start %s: %w", c.Path, err), "make the directory, or give Dir another one, and send the signal again")
		}
		u.log.Warn(noDirectory, "dir", c.Dir, "now", currentDir(), "err", gone.Err)
		c.Dir = ""
		p, err = startWritten(ctx, u.log, c, start)
	}
	return p, err
}

// warnOfOtherRelease waits for the disk.
func (u *Upgrader) warnOfOtherRelease(c command) {
	if binary, dir := realPath(c.Path), realPath(c.Dir); otherRelease(u.home.real, binary, dir) {
		u.log.Warn("grace: the new binary is of another release than the directory in which it starts", "binary", binary, "dir", dir,
			"hint", "give Dir the path that leads to the release of now, or start the service with PWD set to it")
	}
}

// stillWritten is how long a binary may be open for writing: a program that
// copies it into place may be almost through.
const stillWritten = 2 * time.Second

// startWritten starts c once its binary is not open for writing any more.
func startWritten(ctx context.Context, log *slog.Logger, c command, start func(command) (proc.Process, error)) (proc.Process, error) {
	begun := time.Now()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		p, err := start(c)
		switch {
		case !errors.Is(err, errTextBusy):
			return p, err
		case time.Since(begun) > stillWritten || ctx.Err() != nil:
			return nil, hint.New(fmt.Errorf("%w: it is open for writing in another process", err),
				"write a new binary beside the old one, rename it into place, and send the signal again")
		case pause == 5*time.Millisecond:
			log.Info("grace: the new binary is still open for writing; trying again for a moment", "path", c.Path, "limit", stillWritten)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

const noDirectory = "grace: the working directory of the first start can't be used; the new process starts in this one's"

func currentDir() string {
	dir, err := os.Getwd()
	if err != nil {
		return "unknown: it is gone"
	}
	return dir
}

func realPath(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return path
}

// otherRelease reports whether binary has come from a release to another one,
// and dir is still in the first: /srv/41/bin/app, /srv/42/bin/app and /srv/41.
func otherRelease(first, binary, dir string) bool {
	was, is := strings.Split(first, "/"), strings.Split(binary, "/")
	n := 0
	for n < len(was) && n < len(is) && was[n] == is[n] {
		n++
	}
	if n >= len(was)-1 { // the same directory, or one below
		return false
	}
	release := strings.Join(was[:n+1], "/")
	return dir == release || strings.HasPrefix(dir, release+"/")
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

// A strayError means that the variable was meant for another process.
type strayError struct {
	value  string
	parent int // of that process
}

func (e *strayError) Error() string {
	return fmt.Sprintf("%s=%q was meant for a child of process %d, and this is one of %d", handoverVariable, e.value, e.parent, os.Getppid())
}
