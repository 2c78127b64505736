//go:build linux

package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// A systemd is one of its own: process 1 of namespaces of its own, with a
// cgroup of its own as its root, and with a file system of which it sees the
// machine's only through an overlay in memory. It knows the unit files that the
// test gives it and no others, so that nothing of this machine is started.
// Only the network is shared. Everything ends with the test process.
type systemd struct {
	t       testing.TB
	name    string // of the cgroup
	pid     int    // of its process 1, as seen from here
	root    string // its file system, as seen from here
	output  *lockedBuffer
	version int
}

// systemdOther is a newer systemd, unpacked there by .ci/systemd where the
// machine's own has no Type=notify-reload.
const systemdOther = "/var/cache/grace-test/systemd"

// systemdOuter joins a cgroup and makes the file system. $1 is an empty
// directory, $2 the cgroup's name, $3 the other systemd, or empty, $4 the script
// that goes on.
const systemdOuter = `set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/cgroup" "$1/upper" "$1/work" "$1/root" "$1/other"
mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir "$1/cgroup/$2"
echo $$ >"$1/cgroup/$2/cgroup.procs"
umount "$1/cgroup"
lower=/
if [ -n "$3" ]; then
	cp -a "$3/." "$1/other" # a lower layer may not lie within another one
	lower=$1/other:/
fi
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$1/upper,workdir=$1/work" "$1/root"
exec unshare --fork --kill-child --pid --mount --cgroup --ipc --uts sh -c "$4" sh "$1/root"`

const systemdInner = `set -eu
cd "$1"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mount -t tmpfs -o mode=1777 tmpfs tmp
for d in null zero full random urandom tty; do
	touch "dev/$d"
	mount --bind "/dev/$d" "dev/$d"
done
ln -s /proc/self/fd dev/fd
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mkdir -p run/units run/none etc/systemd/journald.conf.d usr/local/bin
cat >etc/systemd/journald.conf.d/test.conf <<'END'
[Journal]
Storage=volatile
ReadKMsg=no
Audit=no
ForwardToSyslog=no
ForwardToWall=no
RateLimitBurst=0
END
echo 0123456789abcdef0123456789abcdef >etc/machine-id
for u in sysinit basic shutdown sockets local-fs network umount multi-user; do
	printf '[Unit]\nDefaultDependencies=no\n' >"run/units/$u.target"
done
cat >run/units/test.target <<'END'
[Unit]
DefaultDependencies=no
Wants=systemd-journald.service
After=systemd-journald.service
END
cat >run/units/systemd-journald.service <<'END'
[Unit]
DefaultDependencies=no
Requires=systemd-journald.socket
After=systemd-journald.socket
[Service]
Type=notify
ExecStart=/lib/systemd/systemd-journald
StandardOutput=null
FileDescriptorStoreMax=1000
END
cp usr/lib/systemd/system/systemd-journald.socket run/units/
hostname grace-test
pivot_root . mnt
umount -l /mnt
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=grace \
	SYSTEMD_UNIT_PATH=/run/units SYSTEMD_GENERATOR_PATH=/run/none \
	/lib/systemd/systemd --system --unit=test.target`

var systemdCount int

// needSystemd skips the test where there is no systemd of at least this
// version, or this process may not make namespaces, and fails in CI. other says
// that the unpacked one is to be used.
func needSystemd(t testing.TB, version int) (other string, have int) {
	t.Helper()
	missing := ""
	if os.Getuid() != 0 {
		missing = "this test needs root"
	}
	for _, tool := range []string{"/lib/systemd/systemd", "systemctl", "journalctl", "unshare", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil && missing == "" {
			missing = "this test needs " + tool + ": package systemd, util-linux"
		}
	}
	if missing == "" {
		have = systemdVersion("/lib/systemd")
		if have < version {
			other, have = systemdOther, systemdVersion(systemdOther+"/usr/lib/systemd")
			if have < version {
				missing = fmt.Sprintf("this test needs systemd %d or newer: package systemd of bookworm-backports, see .ci/systemd", version)
			}
		}
	}
	if missing == "" {
		if out, err := exec.Command("unshare", "--mount", "sh", "-c", "mount --make-rprivate / && mount -t cgroup2 none /mnt").CombinedOutput(); err != nil {
			missing = fmt.Sprintf("this test needs to be allowed namespaces and a cgroup2 mount: %s", bytes.TrimSpace(out))
		}
	}
	if missing != "" {
		if os.Getenv("CI") == "true" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	return other, have
}

// systemdVersion finds the version in the name of systemd's own library.
func systemdVersion(dir string) int {
	for _, pattern := range []string{"libsystemd-shared-*.so", "../*/systemd/libsystemd-shared-*.so"} {
		names, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, name := range names {
			if m := regexp.MustCompile(`shared-(\d+)`).FindStringSubmatch(name); m != nil {
				n, _ := strconv.Atoi(m[1])
				return n
			}
		}
	}
	return 0
}

// A lockedBuffer can be read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// bootSystemd boots one of at least this version.
func bootSystemd(t testing.TB, version int) *systemd {
	t.Helper()
	other, have := needSystemd(t, version)
	systemdCount++
	s := &systemd{t: t, name: fmt.Sprintf("grace-test-%d-%d", os.Getpid(), systemdCount), output: new(lockedBuffer), version: have}
	cmd := exec.Command("unshare", "--mount", "sh", "-c", systemdOuter, "sh", t.TempDir(), s.name, other, systemdInner)
	cmd.Stdout, cmd.Stderr = s.output, s.output
	// Should this process be killed, so are they: the thread that has started
	// them lives as long as they do.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.shutDown(cmd.Process.Pid, ended) })
	proctest.WaitFor(t, proctest.Limit, "systemd to boot", func() bool {
		select {
		case <-ended:
			t.Fatalf("systemd does not boot:\n%s", s.output)
		default:
		}
		for _, c := range proctest.Children(cmd.Process.Pid) {
			if c.Name == "systemd" {
				s.pid, s.root = c.Pid, fmt.Sprintf("/proc/%d/root", c.Pid)
				out, _ := s.try("systemctl", "is-active", "test.target", "systemd-journald.service")
				return out == "active\nactive"
			}
		}
		return false
	})
	return s
}

// shutDown ends it, with all that it has started, and removes the cgroup.
func (s *systemd) shutDown(unshare int, ended <-chan struct{}) {
	if s.t.Failed() && s.pid != 0 {
		out, _ := s.try("journalctl", "--no-pager", "-o", "short-monotonic")
		s.t.Logf("systemd %d, journal:\n%s\n%s", s.version, out, s.output)
	}
	children := proctest.Children(unshare)
	for _, c := range children {
		syscall.Kill(c.Pid, syscall.SIGKILL) // process 1: the kernel ends the others
	}
	if len(children) == 0 {
		syscall.Kill(unshare, syscall.SIGKILL)
	}
	<-ended // it has waited for its child
	proctest.WaitFor(s.t, proctest.Limit, "the cgroup to be empty", func() bool {
		return exec.Command("unshare", "--mount", "sh", "-c", `mount --make-rprivate / && mount -t cgroup2 none /mnt &&
			{ [ ! -d "/mnt/$1" ] || find "/mnt/$1" -depth -type d -exec rmdir {} \; ; } && [ ! -d "/mnt/$1" ]`, "sh", s.name).Run() == nil
	})
}

// try runs a command inside.
func (s *systemd) try(command ...string) (string, error) {
	args := append([]string{"-t", strconv.Itoa(s.pid), "-m", "-p", "-C", "-i", "-u", "--"}, command...)
	ctx, cancel := context.WithTimeout(context.Background(), 2*proctest.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=cat", "COLUMNS=1000"}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// do runs a command inside that must succeed.
func (s *systemd) do(command ...string) string {
	s.t.Helper()
	out, err := s.try(command...)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return out
}

// show gives one property of a unit.
func (s *systemd) show(unit, property string) string {
	s.t.Helper()
	return s.do("systemctl", "show", "--value", "-p", property, unit)
}

// mainPid is what systemd takes for the unit's main process.
func (s *systemd) mainPid(unit string) int {
	s.t.Helper()
	return atoi(s.t, s.show(unit, "MainPID"))
}

// journal gives the messages of a unit's processes and about it.
func (s *systemd) journal(unit string) []string {
	s.t.Helper()
	s.do("journalctl", "--sync")
	return strings.Split(s.do("journalctl", "--no-pager", "-o", "cat", "-u", unit), "\n")
}

// waitJournal waits for a message that matches.
func (s *systemd) waitJournal(unit, pattern string) []string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	s.wait("the journal to have "+pattern, func() bool {
		for _, line := range s.journal(unit) {
			if found = re.FindStringSubmatch(line); found != nil {
				return true
			}
		}
		return false
	})
	return found
}

func (s *systemd) wait(what string, cond func() bool) {
	s.t.Helper()
	proctest.WaitFor(s.t, proctest.Limit, what, cond)
}

// waitShow waits until a property has a value.
func (s *systemd) waitShow(unit, property, want string) {
	s.t.Helper()
	last := ""
	defer func() {
		if last != want {
			s.t.Logf("%s of %s is %q, want %q", property, unit, last, want)
		}
	}()
	s.wait(unit+"'s "+property+" to be "+want, func() bool { last = s.show(unit, property); return last == want })
}

// write makes a file inside.
func (s *systemd) write(path, text string) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(s.root+path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(s.root+path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// install copies a program, by rename as a deployment does.
func (s *systemd) install(program, path string) {
	s.t.Helper()
	b, err := os.ReadFile(program)
	if err == nil {
		err = proctest.WriteProgram(s.root+path+".new", b, 0o755)
	}
	if err == nil {
		err = os.Rename(s.root+path+".new", s.root+path)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// unitFile copies a unit file of example/systemd, with its drop-in.
func (s *systemd) unitFile(name, dropIn string) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join("../example/systemd", name))
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("/run/units/"+name, string(b))
	if dropIn != "" {
		s.write("/run/units/"+name+".d/test.conf", dropIn)
	}
}

// loopback gives an address of the loopback that no other test uses now: unit
// files name a port, and this test's is not known to be free elsewhere.
func loopback(t testing.TB) string {
	t.Helper()
	for i := range 250 {
		pid := os.Getpid()
		host := fmt.Sprintf("127.%d.%d.%d", 64+(pid>>8)%64, pid%256, 1+(systemdCount+i)%250)
		l, err := net.Listen("tcp", host+":9000")
		if err == nil {
			l.Close()
			return host
		}
	}
	t.Fatal("no address of the loopback has port 9000 free")
	return ""
}
