//go:build linux && (amd64 || arm64)

package spawn

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// run starts p with a result pipe, gives its standard output, and how it ended.
// With copied, the process has its own memory: the same steps, under an emulator
// that knows no other way too.
func run(t *testing.T, p Program, stdout int) (failure Failure, status syscall.WaitStatus) {
	t.Helper()
	result := pipe(t)
	p.Result = result[1]
	p.Files = append(p.Files, File{stdout, 1})
	syscall.ForkLock.Lock()
	r, errno := p.Start()
	syscall.ForkLock.Unlock()
	if errno != 0 {
		t.Fatalf("clone: %v", syscall.Errno(errno))
	}
	if r.Pidfd >= 0 {
		defer syscall.Close(int(r.Pidfd))
	}
	syscall.Close(result[1])
	f := os.NewFile(uintptr(result[0]), "result")
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	r.Done()
	if len(b) == 16 {
		failure = Failure{binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:])}
	} else if len(b) != 0 {
		t.Fatalf("%d bytes were written as the result", len(b))
	}
	for {
		if _, err := syscall.Wait4(r.Pid, &status, 0, nil); err != syscall.EINTR {
			if err != nil {
				t.Fatal(err)
			}
			return failure, status
		}
	}
}

// pipe gives a pipe whose write end has a high number.
func pipe(t *testing.T) (p [2]int) {
	t.Helper()
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	high, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(p[1]), syscall.F_DUPFD_CLOEXEC, 200)
	if errno != 0 {
		t.Fatal(errno)
	}
	syscall.Close(p[1])
	p[1] = int(high)
	return p
}

// output runs a shell command as p says, and gives what it prints.
func output(t *testing.T, p Program, command string) string {
	t.Helper()
	out := pipe(t)
	p.Path, p.Argv = "/bin/sh", []string{"sh", "-c", command}
	if p.Env == nil {
		p.Env = os.Environ()
	}
	failure, status := run(t, p, out[1])
	syscall.Close(out[1])
	f := os.NewFile(uintptr(out[0]), "output")
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if failure != (Failure{}) || status.ExitStatus() != 0 {
		t.Errorf("%s: %+v, status %v: %s", command, failure, status, b)
	}
	return strings.TrimSpace(string(b))
}

// both runs f with shared memory and with a copy.
func both(t *testing.T, f func(t *testing.T, copied bool)) {
	t.Run("shared", func(t *testing.T) {
		if os.Getenv("SPAWN_TEST_EMULATED") != "" {
			t.Skip("the emulator has no clone(2) of this kind")
		}
		f(t, false)
	})
	t.Run("copied", func(t *testing.T) { f(t, true) })
}

func TestArguments(t *testing.T) {
	both(t, func(t *testing.T, copied bool) {
		dir, err := filepath.EvalSymlinks(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		got := output(t, Program{Dir: dir, Env: []string{"A=b c", "PATH=" + os.Getenv("PATH")}, copied: copied}, `pwd; echo "$A"`)
		if want := dir + "\nb c"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// Descriptors that trade their numbers, one that stays, one that is kept, and others
// that are not named, close-on-exec or not.
func TestFiles(t *testing.T) {
	both(t, func(t *testing.T, copied bool) {
		dir := t.TempDir()
		open := func(name string, fd int) {
			t.Helper()
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			n, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
			if err == nil {
				err = syscall.Dup3(n, fd, syscall.O_CLOEXEC)
				syscall.Close(n)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { syscall.Close(fd) })
		}
		for fd := 100; fd < 110; fd++ {
			open(fmt.Sprint(fd), fd)
		}
		for _, fd := range []int{107, 109} {
			if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_SETFD, 0); errno != 0 {
				t.Fatal(errno)
			}
		}
		p := Program{Files: []File{{100, 101}, {101, 102}, {102, 100}, {103, 103}, {104, 150}}, Keep: []int{107}, copied: copied}
		lines := strings.Split(output(t, p, `cd /proc/self/fd; for f in 10? 150; do [ -e $f ] && echo $f $(readlink $f); done; true`), "\n")
		want := []string{"100 102", "101 100", "102 101", "103 103", "107 107", "150 104"}
		for i := range want {
			to, from, _ := strings.Cut(want[i], " ")
			want[i] = to + " " + filepath.Join(dir, from)
		}
		if os.Getenv("SPAWN_TEST_EMULATED") != "" { // the emulator knows no close_range(2)
			lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "109 ") })
		}
		if !slices.Equal(lines, want) {
			t.Errorf("the process has\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestFailures(t *testing.T) {
	both(t, func(t *testing.T, copied bool) {
		for name, tc := range map[string]struct {
			p    Program
			want Failure
		}{
			"directory": {Program{Path: "/bin/true", Dir: "/no/such/directory"}, Failure{uint64(syscall.ENOENT), Dir}},
			"files":     {Program{Path: "/bin/true", Files: []File{{99, 100}}}, Failure{uint64(syscall.EBADF), Files}},
			"same file": {Program{Path: "/bin/true", Files: []File{{99, 99}}}, Failure{uint64(syscall.EBADF), Files}},
			"exec":      {Program{Path: "/no/such/file"}, Failure{uint64(syscall.ENOENT), Exec}},
			"no access": {Program{Path: "/"}, Failure{uint64(syscall.EACCES), Exec}},
		} {
			t.Run(name, func(t *testing.T) {
				tc.p.Argv, tc.p.copied = []string{"x"}, copied
				failure, status := run(t, tc.p, 2)
				if failure != tc.want || status.ExitStatus() != 127 {
					t.Errorf("got %+v, status %d; want %+v, 127", failure, status.ExitStatus(), tc.want)
				}
			})
		}
	})
}

// The signals of the new process: what is handled here has its default action,
// what is ignored is ignored, and none is blocked.
func TestSignals(t *testing.T) {
	handled := make(chan os.Signal, 1)
	signal.Notify(handled, syscall.SIGUSR1)
	signal.Ignore(syscall.SIGUSR2)
	defer signal.Reset(syscall.SIGUSR1, syscall.SIGUSR2)
	both(t, func(t *testing.T, copied bool) {
		got := output(t, Program{copied: copied}, `kill -USR2 $$; sh -c 'kill -USR1 $$; echo survived'; echo $?; grep SigBlk /proc/self/status`)
		if f := strings.Fields(got); len(f) != 3 || f[0] != fmt.Sprint(128+int(syscall.SIGUSR1)) || strings.Trim(f[2], "0") != "" {
			t.Errorf("got %q; want the status of a process that SIGUSR1 has killed, and no blocked signal", got)
		}
		select {
		case <-handled:
			t.Error("the signal was handled here")
		default:
		}
	})
}

// Go raises the limit of open files for itself alone.
func TestLimit(t *testing.T) {
	var now limit
	syscall4(sysPrlimit, 0, noFile, 0, uintptr(unsafe.Pointer(&now)))
	if now != (limit{original.max - 1, original.max}) && now != original {
		t.Skip("this process's limit is neither the one that it was started with nor that which Go sets")
	}
	both(t, func(t *testing.T, copied bool) {
		if got, want := output(t, Program{copied: copied}, `ulimit -Sn`), fmt.Sprint(original.cur); got != want {
			t.Errorf("got the limit %s, want %s", got, want)
		}
	})
}
