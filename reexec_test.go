//go:build unix

package grace

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/birth"
	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/master"
	"github.com/julofinance/grace/v3/internal/proc"
	"github.com/julofinance/grace/v3/internal/testing/fdtest"
	"golang.org/x/sys/unix"
)

func TestTakeHandover(t *testing.T) {
	const all = "version=1,parent=%d,socket=%d,ready=%d,control=%d,first=%d,count=2"
	other := os.Getppid() + 1
	for name, tc := range map[string]struct {
		format string // of the variable; default all
		parent int    // default ours
		inode  uint64 // added to the real one
		hungUp bool   // the old process is dead
		read   bool   // a process has read the manifest
		change func(control *int)
		taken  bool
		text   string
	}{
		"good":                       {taken: true},
		"old is dead, adopted":       {parent: other, hungUp: true, taken: true},
		"leaked, old is dead":        {parent: other, hungUp: true, read: true, text: fmt.Sprintf("child of process %d", other)},
		"meant for another parent":   {parent: other, text: fmt.Sprintf("child of process %d", other)},
		"another socket":             {inode: 1, text: "names a control channel that this process does not have"},
		"not a socket":               {change: func(c *int) { *c = 0 }, text: "does not have"},
		"closed descriptor":          {change: func(c *int) { *c = 9999 }, text: "does not have"},
		"malformed":                  {format: "yes please %[1]d", text: "is not understood"},
		"no numbers":                 {format: "version=,parent=%[1]d", text: "is not understood"},
		"a huge count":               {format: strings.Replace(all, "count=2", "count=2147483647", 1), text: "names sockets that this process does not have"},
		"a huge first":               {format: strings.Replace(all, "first=%d", "first=2147483647", 1) + "%.0[5]d", text: "names sockets that this process does not have"},
		"beyond all numbers":         {format: strings.Replace(all, "count=2", "count=99999999999999999999", 1), text: "is not understood"},
		"cut short":                  {format: "version=1,parent=%[1]d,socket=%[2]d,ready=%[3]d,control=%[4]d", text: "is not understood"},
		"other version":              {format: strings.Replace(all, "version=1", "version=9", 1) + ",more=7", taken: true},
		"other version with no more": {format: "version=9,parent=%[1]d,socket=%[2]d,ready=%[3]d,control=%[4]d", taken: true},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs, err := control.Pair()
			if err != nil {
				t.Fatal(err)
			}
			defer ours.Close()
			defer unix.Close(theirs)
			_, fds := fdtest.Pipes(t, 3)
			base, err := fdtest.InOrder(fds)
			if err != nil {
				t.Fatal(err)
			}
			fd.CloseAll(fds)
			defer fd.CloseAll([]int{base, base + 1, base + 2})
			for _, fd := range []int{theirs, base, base + 1, base + 2} { // as exec leaves them
				if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
					t.Fatal(err)
				}
			}
			var st unix.Stat_t
			if err := unix.Fstat(theirs, &st); err != nil {
				t.Fatal(err)
			}
			if tc.parent == 0 {
				tc.parent = os.Getppid()
			}
			if tc.format == "" {
				tc.format = all
			}
			named := theirs
			if tc.change != nil {
				tc.change(&named)
			}
			if !tc.read {
				ours.Write([]byte("a manifest"))
			}
			if tc.hungUp {
				ours.Close()
			}
			t.Setenv(handoverVariable, fmt.Sprintf(tc.format, tc.parent, uint64(st.Ino)+tc.inode, base, named, base+1))
			g := birth.Take()
			h, err := takeHandover(g)
			if _, still := os.LookupEnv(handoverVariable); still {
				t.Error("the variable is still in the environment")
			}
			cloexec := func(fd int) bool {
				flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
				return err == nil && flags&unix.FD_CLOEXEC != 0
			}
			if !tc.taken {
				if h != nil || err == nil || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), handoverVariable) {
					t.Errorf("got %v and error %v, want an error that has %q", h, err, tc.text)
				}
				if cloexec(base) && !g.Ours {
					t.Error("descriptors that are not ours were touched")
				}
				return
			}
			if err != nil || h == nil {
				t.Fatalf("got %v and error %v", h, err)
			}
			if h.control != theirs || h.ready != base {
				t.Errorf("got %+v, want control %d and ready %d", *h, theirs, base)
			}
			marked := []int{theirs, base}
			if h.version == protocolVersion {
				marked = append(marked, base+1, base+2)
				if h.first != base+1 || h.count != 2 {
					t.Errorf("got %+v, want first %d and count 2", *h, base+1)
				}
			}
			for i, fd := range marked {
				if !cloexec(fd) {
					t.Errorf("descriptor %d of %d is not close-on-exec", i+1, len(marked))
				}
			}
		})
	}
	if h, err := takeHandover(birth.Take()); h != nil || err != nil {
		t.Errorf("without the variable: got %v, %v, want none", h, err)
	}
}

// What startProcess says is what takeHandover of the child reads.
func TestHandoverVariable(t *testing.T) {
	_, theirs, err := control.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(theirs)
	want := handover{version: protocolVersion, ready: 3, control: 4, first: 5, count: 17}
	v, err := want.variable(theirs)
	if err != nil {
		t.Fatal(err)
	}
	var got handover
	var parent int
	var socket uint64
	if n, err := fmt.Sscanf(v, "version=%d,parent=%d,socket=%d,ready=%d,control=%d,first=%d,count=%d",
		&got.version, &parent, &socket, &got.ready, &got.control, &got.first, &got.count); n != 7 || err != nil {
		t.Fatalf("%q: %v", v, err)
	}
	if got != want || parent != os.Getpid() {
		t.Errorf("%q: got %+v of parent %d, want %+v of %d", v, got, parent, want, os.Getpid())
	}
	unix.Close(theirs)
	if _, err := want.variable(theirs); err == nil {
		t.Error("no error for a closed descriptor")
	}
}

func TestWithHandover(t *testing.T) {
	got := withHandover([]string{"A=1", handoverVariable + "=old", "B=", handoverVariable + "=older", handoverVariable + "_X=2"}, "new")
	want := []string{"A=1", "B=", handoverVariable + "_X=2", handoverVariable + "=new"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCommand(t *testing.T) {
	t.Setenv("GRACE_TEST", "now")
	h := home{dir: "/first", path: "/first/bin/server"}
	for name, tc := range map[string]struct {
		opts []Option
		path string
		args []string
		env  []string // nil: that of now
	}{
		"nothing":             {nil, "/first/bin/server", os.Args[1:], nil},
		"arguments":           {[]Option{Args([]string{"-a", "b c"})}, "/first/bin/server", []string{"-a", "b c"}, nil},
		"no arguments":        {[]Option{Args(nil)}, "/first/bin/server", []string{}, nil},
		"environment":         {[]Option{Env([]string{"A=1"})}, "/first/bin/server", os.Args[1:], []string{"A=1"}},
		"empty environment":   {[]Option{Env(nil)}, "/first/bin/server", os.Args[1:], []string{}},
		"relative executable": {[]Option{Executable("./new")}, "/first/new", os.Args[1:], nil},
		"absolute executable": {[]Option{Executable("/opt/new")}, "/opt/new", os.Args[1:], nil},
		"executable by name":  {[]Option{Executable("new")}, "new", os.Args[1:], nil}, // in the PATH
	} {
		t.Run(name, func(t *testing.T) {
			o, err := newOptions(tc.opts)
			if err != nil {
				t.Fatal(err)
			}
			c := o.command(h)
			if c.Path != tc.path || c.Dir != "/first" || !slices.Equal(c.Argv[1:], tc.args) || c.Argv[0] != os.Args[0] {
				t.Errorf("got %+v, want path %s and arguments %q", c, tc.path, tc.args)
			}
			if tc.env == nil && !slices.Contains(c.Env, "GRACE_TEST=now") {
				t.Errorf("environment %q, want that of now", c.Env)
			}
			if tc.env != nil && !slices.Equal(c.Env, tc.env) {
				t.Errorf("environment %q, want %q", c.Env, tc.env)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "missing"), plain, dir} {
		c := command{Program: proc.Program{Path: path}}
		if err := c.resolve(); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v, want one that names the path", path, err)
		}
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	c := command{Program: proc.Program{Path: "sh"}}
	if err := c.resolve(); err != nil || c.Path != sh {
		t.Errorf("sh: got %s, %v, want %s", c.Path, err, sh)
	}
}

func TestByGoRun(t *testing.T) {
	const id = "0645666350c0a11fcfe1834365278640e2a45ffacf1262736bdce29aa22fe6b2"
	for path, want := range map[string]bool{
		"/tmp/go-build3905001796/b001/exe/app":            true,
		"/home/u/.cache/go-build/06/" + id + "-d/app":     true, // where nothing was to be made
		"/cache/06/" + id + "-d/app":                      true, // GOCACHE
		"/tmp/go-build3905001796/b001/app.test":           false,
		"/home/u/.cache/go-build/07/" + id + "-d/app":     false,
		"/home/u/.cache/go-build/06/" + id[:63] + "g-d/a": false,
		"/srv/06/06-d/app":                                false,
		"/srv/exe/app":                                    false,
		"app":                                             false,
		"":                                                false,
	} {
		if got := byGoRun(path); got != want {
			t.Errorf("%q: %v, want %v", path, got, want)
		}
	}
}

// The numbers of a hand-over that has failed may be other files' by now.
func TestSecondNewAfterAFailedOne(t *testing.T) {
	conn, theirs, err := control.Pair()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close() // no manifest will come
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	unix.CloseOnExec(pipe[0])
	unix.CloseOnExec(pipe[1])
	defer unix.Close(pipe[0])
	h := &handover{version: protocolVersion, control: theirs, ready: pipe[1]}
	if _, err := joinParent(h, limit); err == nil || errors.Is(err, ErrStopped) {
		t.Fatalf("without a manifest: error %v", err)
	}
	other, err := unix.FcntlInt(uintptr(pipe[0]), unix.F_DUPFD_CLOEXEC, theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	if _, err := joinParent(h, limit); !errors.Is(err, ErrStopped) {
		t.Errorf("the second time: error %v, want ErrStopped", err)
	}
	if _, err := unix.FcntlInt(uintptr(other), unix.F_GETFD, 0); err != nil {
		t.Errorf("a file that is not the hand-over's was closed: %v", err)
	}
}

// What is short is not the binary's fault.
func TestAdviceWhereSomethingIsShort(t *testing.T) {
	for _, short := range []error{unix.EMFILE, unix.ENFILE, unix.EAGAIN, unix.ENOMEM} {
		a := advice(&UpgradeError{Reason: ErrStart, Err: os.NewSyscallError("fcntl", short)})
		if strings.Contains(a, "binary") || !strings.Contains(a, "limit") {
			t.Errorf("%v has the advice %q; want one that speaks of limits, and not of the binary", short, a)
		}
	}
	if a := advice(&UpgradeError{Reason: ErrStart, Err: unix.ENOENT}); !strings.Contains(a, "binary") {
		t.Errorf("no such file has the advice %q; want one that speaks of the binary", a)
	}
}

// Nor is a master that is dead, or not known.
func TestAdviceWhereTheMasterIsNotThere(t *testing.T) {
	for pid, want := range map[int]string{os.Getpid(): "start the master again", 0: "HUP"} {
		err := (&master.Master{Name: "start_server", Pid: pid}).Signal(unix.SIGHUP)
		if a := advice(&UpgradeError{Reason: ErrStart, Err: err}); !strings.Contains(a, want) || strings.Contains(a, "binary") {
			t.Errorf("%v has the advice %q; want %q in it, and nothing of the binary", err, a, want)
		}
	}
}
