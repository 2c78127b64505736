//go:build unix

package grace

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/fd"
	"golang.org/x/sys/unix"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// alone checks that the directory has just these names.
func alone(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the directory has %q, want %q", got, want)
	}
}

func TestPIDFileReplacesWhatIsNotHeld(t *testing.T) {
	ours := fmt.Sprintln(os.Getpid())
	for name, content := range map[string]string{
		"stale":            "999999999\n",
		"empty":            "",
		"garbage":          "\x00\xff not a pid",
		"our own number":   ours, // the pid of a dead process was reused for us
		"number of init":   "1\n",
		"larger than ours": strings.Repeat("1234567890\n", 1000),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "pid")
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			p := newPIDFile(path, "", slog.Default())
			if err := p.acquire(); err != nil {
				t.Fatal(err)
			}
			if got := readFile(t, path); got != ours {
				t.Errorf("the file has %q, want %q", got, ours)
			}
			alone(t, dir, ".pid.lock", "pid")
			p.release(true)
			alone(t, dir)
			p.release(true) // does nothing
		})
	}
}

func TestPIDFileOfARunningProcess(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pid")
	p := newPIDFile("pid", dir, slog.Default())
	if err := p.acquire(); err != nil {
		t.Fatal(err)
	}
	want := readFile(t, path)
	other := newPIDFile(path, "", slog.Default())
	err := other.acquire()
	var running *RunningError
	if !errors.Is(err, ErrAlreadyRunning) || !errors.As(err, &running) || running.Pid != os.Getpid() || running.Path != path {
		t.Errorf("got %v, want a RunningError with pid %d and path %s", err, os.Getpid(), path)
	}
	if want := fmt.Sprintf("already running as pid %d", os.Getpid()); !strings.Contains(fmt.Sprint(err), want) {
		t.Errorf("got %v, want one that says %q", err, want)
	}
	if got := readFile(t, path); got != want {
		t.Errorf("the file has %q, want %q", got, want)
	}
	alone(t, dir, ".pid.lock", "pid")
	p.release(true)
	if err := other.acquire(); err != nil {
		t.Errorf("after release: %v", err)
	}
	other.release(true)
}

func TestPIDFileErrors(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		path string
		want error
	}{
		"no directory":        {filepath.Join(dir, "no", "pid"), os.ErrNotExist},
		"path is a directory": {dir, syscall.EISDIR},
		"directory is a file": {filepath.Join(os.Args[0], "pid"), syscall.ENOTDIR},
	} {
		t.Run(name, func(t *testing.T) {
			err := newPIDFile(tc.path, "", slog.Default()).acquire()
			if !errors.Is(err, tc.want) || !strings.HasPrefix(err.Error(), "grace: PID file ") || !strings.Contains(err.Error(), tc.path) {
				t.Errorf("got %v, want one that is %v and names %s", err, tc.want, tc.path)
			}
			alone(t, dir)
			if u, err := New(PIDFile(tc.path)); !errors.Is(err, tc.want) || u != nil {
				t.Errorf("New: got %v, %v", u, err)
			}
		})
	}
}

// Of many that start at once one gets the file, in every state that it can be in.
func TestPIDFileHasOneHolder(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pid")
	for round := range 500 {
		switch round % 3 {
		case 1:
			os.WriteFile(path, []byte("999999999\n"), 0o644)
		case 2:
			os.WriteFile(path, nil, 0o644)
		}
		const n = 4
		var mu sync.Mutex
		var holders []*pidFile
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range n {
			wg.Go(func() {
				p := newPIDFile(path, "", slog.Default())
				<-start
				err := p.acquire()
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					holders = append(holders, p)
				} else if !errors.Is(err, ErrAlreadyRunning) {
					t.Errorf("round %d: %v, want ErrAlreadyRunning", round, err)
				}
			})
		}
		close(start)
		wg.Wait()
		if len(holders) != 1 {
			t.Fatalf("round %d: %d hold the file, want 1", round, len(holders))
		}
		if !holders[0].names() {
			t.Fatalf("round %d: the name does not point to the holder's file", round)
		}
		holders[0].release(true)
		alone(t, dir)
	}
}

// One that stops while others start: at every moment it has one holder at most, and the
// process that has it keeps it.
func TestPIDFileChangesHands(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pid")
	var held sync.Mutex
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for got := 0; got < 50; {
				p := newPIDFile(path, "", slog.Default())
				if err := p.acquire(); err != nil {
					if !errors.Is(err, ErrAlreadyRunning) {
						t.Errorf("%v, want ErrAlreadyRunning", err)
						return
					}
					continue
				}
				if !held.TryLock() {
					t.Error("two hold the file")
					return
				}
				if !p.names() {
					t.Error("the name does not point to the holder's file")
				}
				got++
				held.Unlock()
				p.release(true)
			}
		})
	}
	wg.Wait()
	alone(t, dir)
}

func TestPIDFileHandOver(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pid")
	files := make([]*pidFile, 3)
	for i := range files {
		files[i] = newPIDFile(path, "", slog.Default())
	}
	old, next, third := files[0], files[1], files[2]
	if err := old.acquire(); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		if err := third.acquire(); !errors.Is(err, ErrAlreadyRunning) {
			t.Errorf("%s: a third process got %v, want ErrAlreadyRunning", when, err)
		}
	}
	handOver := func() {
		t.Helper()
		fds, err := old.lend()
		if err != nil || len(fds) != 1 {
			t.Fatalf("lend: %v, error %v; want one descriptor", fds, err)
		}
		if !next.inherit(os.NewFile(uintptr(fds[0]), "lock")) {
			t.Fatal("the new process does not see that the lock is that of its own file")
		}
		if err := next.prepare(); err != nil {
			t.Fatal(err)
		}
		refused("prepared")
		if err := next.take(); err != nil {
			t.Fatal(err)
		}
		refused("in place")
		next.tidy()
		alone(t, dir, ".pid.lock", "pid")
		refused("taken")
		if old.names() || !next.names() {
			t.Error("the name is not the new one's")
		}
	}
	handOver()
	// The new process dies: the lock lives on with the old one.
	next.release(false)
	refused("the new process is dead")
	if err := old.retake(); err != nil {
		t.Fatal(err)
	}
	refused("taken back")
	if !old.names() {
		t.Error("the name is not the old process's again")
	}
	// A second hand-over that ends well: the old process goes, and leaves the new one's
	// file alone.
	next = newPIDFile(path, "", slog.Default())
	handOver()
	old.release(true)
	alone(t, dir, ".pid.lock", "pid")
	refused("the old process is gone")
	next.release(true)
	alone(t, dir)
}

// A file that another program has put in place is not removed.
func TestPIDFileOfAnotherServiceStays(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pid")
	p := newPIDFile(path, "", slog.Default())
	if err := p.acquire(); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	p.release(true)
	if got := readFile(t, path); got != "1\n" {
		t.Errorf("the file has %q, want that of the other program", got)
	}
}

// The new version names another file, which is taken: it says so to the old process.
func TestUpgradeToATakenPIDFile(t *testing.T) {
	dir := t.TempDir()
	taken := newPIDFile(filepath.Join(dir, "b"), "", slog.Default())
	if err := taken.acquire(); err != nil {
		t.Fatal(err)
	}
	defer taken.release(true)
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(n int) []Option {
		return []Option{Probation(0), PIDFile(filepath.Join(dir, []string{"a", "b", "c"}[n-1]))}
	}
	g := h.first()
	err := receive(t, g.upgrade(), "Upgrade")
	wantErr(t, err, ErrExited)
	if want := "already running as pid"; !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want one that says %q", err, want)
	}
	if failed := h.next(); !errors.Is(failed.err, ErrAlreadyRunning) {
		t.Errorf("New of the new one: %v, want ErrAlreadyRunning", failed.err)
	}
	alone(t, dir, ".a.lock", ".b.lock", "a", "b")
	// The next one names a free file; the old process's file goes with it.
	done := g.upgrade()
	next := h.next()
	if err := receive(t, done, "Upgrade"); err != nil {
		t.Fatal(err)
	}
	receive(t, g.Done(), "Done")
	alone(t, dir, ".b.lock", ".c.lock", "b", "c")
	next.askStop()
	receive(t, next.Done(), "Done")
	alone(t, dir, ".b.lock", "b")
}

// Children of one master overlap: the newest has the file, and when it is gone
// the one before. A program that is not of that master is refused, and changes nothing.
func TestPIDFileUnderAMaster(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pid")
	child := func(master string) *pidFile {
		p := newPIDFile(path, "", slog.Default())
		p.master = master
		return p
	}
	one, two := child("m 1\n"), child("m 1\n")
	for _, p := range []*pidFile{one, two} {
		if err := p.takeOver(); err != nil {
			t.Fatal(err)
		}
		if !p.names() {
			t.Error("the name is not that of the newest")
		}
		alone(t, dir, ".pid.lock", "pid")
	}
	for what, p := range map[string]*pidFile{"no master": child(""), "another": child("m 2\n")} {
		if err := p.takeOver(); !errors.Is(err, ErrAlreadyRunning) {
			t.Errorf("a program of %s master: %v, want ErrAlreadyRunning", what, err)
		}
		p.release(true)
	}
	if _, err := one.lookAgain(); err != nil || !two.names() {
		t.Errorf("while the newest lives, the older one takes the file (error %v)", err)
	}
	two.release(false) // it dies
	if _, err := one.lookAgain(); err != nil || !one.names() {
		t.Errorf("the newest is dead, and the older one does not take the file (error %v)", err)
	}
	three := child("m 1\n")
	if err := three.takeOver(); err != nil {
		t.Fatal(err)
	}
	one.rest() // told to drain
	three.release(true)
	alone(t, dir)
	if _, err := one.lookAgain(); err != nil {
		t.Fatal(err)
	}
	alone(t, dir)
	one.release(true)
	alone(t, dir)
}

// A lock that is shared proves nothing: a script may look whether it is held.
func TestPIDFileLockIsReadByAScript(t *testing.T) {
	dir := t.TempDir()
	p := newPIDFile(filepath.Join(dir, "pid"), "", slog.Default())
	script, err := os.OpenFile(p.lockPath, os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer script.Close()
	if err := os.WriteFile(p.path, fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := fd.TryLockShared(script); err != nil {
		t.Fatal(err)
	}
	if err := p.tryTakeLock(); !errors.Is(err, errReader) {
		t.Errorf("got %v, want errReader", err)
	}
	done := make(chan error)
	go func() { done <- p.acquire() }()
	script.Close()
	if err := receive(t, done, "acquire"); err != nil {
		t.Error(err)
	}
	p.release(true)
}

// What is wrong with the PID file is not looked for at the binary.
func TestAdviceWhereThePIDFileCanNotBeLent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	u, _ := newSolo(t, PIDFile(filepath.Join(dir, "app.pid")))
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	_, err := u.launch(t.Context(), 1)
	if do := advice(err); !errors.Is(err, ErrStart) || !strings.Contains(do, "PID file") || strings.Contains(do, "binary") {
		t.Errorf("the error is %v, the advice %q", err, do)
	}
	u.askStop()
	receive(t, u.Done(), "Done")
}

// A child of the program may have a copy of the lock's open file. Not at a last stop
// does it keep the next start out, even where the lock's file stays: the PID file
// names another program.
func TestLastStopFreesTheLock(t *testing.T) {
	p := newPIDFile(filepath.Join(t.TempDir(), "pid"), "", slog.Default())
	if err := p.acquire(); err != nil {
		t.Fatal(err)
	}
	child, err := fd.Dup(p.lock)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	if err := os.WriteFile(p.path, []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.rest() // as a stop does
	p.giveUp(true, true)
	if _, err := os.Lstat(p.lockPath); err != nil {
		t.Errorf("the lock's file: %v; this shows nothing", err)
	}
	next := newPIDFile(p.path, "", slog.Default())
	if err := next.acquire(); err != nil {
		t.Error(err)
	}
	next.release(true)
}
