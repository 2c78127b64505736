//go:build linux

package integration_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// docCommands gives the indented blocks of a section of a page.
func docCommands(t *testing.T, page, section string) (blocks []string) {
	t.Helper()
	b, err := os.ReadFile("../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(b), "\n## "+section+"\n")
	if !ok {
		t.Fatalf("%s has no section %q", page, section)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return regexp.MustCompile(`(?m)(?:^    .*\n)+`).FindAllString(text, -1)
}

// TestSystemdTryIt runs "Try it" of docs/systemd.md, line by line: with other
// paths and another address, since the systemd is the test's own.
func TestSystemdTryIt(t *testing.T) {
	blocks := docCommands(t, "systemd.md", "Try it")
	if len(blocks) != 4 {
		t.Fatalf("docs/systemd.md has %d blocks of commands in \"Try it\", want 4: start, upgrade, grace-upgrade, reload", len(blocks))
	}
	const build = "    go build -o hello ./example/systemd\n"
	if !strings.HasPrefix(blocks[0], build) {
		t.Fatalf("it does not begin with %q", build)
	}
	hello := proctest.Build(t, "github.com/julofinance/grace/v3/example/systemd")
	for name, version := range map[string]int{"hello": 250, "hello-reload": 253} {
		t.Run(name, func(t *testing.T) {
			s, host := bootSystemd(t, version), loopback(t)
			const dir = "/var/tmp/try"
			for _, file := range []string{"systemd/hello.service", "systemd/hello-reload.service", "supervisors/grace-upgrade"} {
				b, err := os.ReadFile("../example/" + file)
				if err != nil {
					t.Fatal(err)
				}
				s.write(dir+"/example/"+file, string(b))
			}
			s.do("chmod", "+x", dir+"/example/supervisors/grace-upgrade")
			s.install(hello, dir+"/hello")
			s.write("/run/units/"+name+".service.d/test.conf", "[Service]\nEnvironment=HELLO_ADDR="+host+":9000\n")
			sh := func(commands string) string {
				commands = strings.NewReplacer("/etc/systemd/system/", "/run/units/", "localhost:9000", host+":9000").Replace(commands)
				return s.do("sh", "-exc", "cd "+dir+"\n"+commands)
			}
			try := func(block string) string {
				if name == "hello-reload" { // "the same commands"
					block = regexp.MustCompile(`\bhello(\.service)?\n`).ReplaceAllString(block, name+"$1\n")
					block = strings.ReplaceAll(strings.ReplaceAll(block, "/usr/local/bin/"+name+"\n", "/usr/local/bin/hello\n"), "hello.service ", name+".service ")
				}
				return sh(block)
			}
			pid := func() int { return s.mainPid(name + ".service") }
			try(strings.TrimPrefix(blocks[0], build))
			first := pid()
			out := try(blocks[1])
			if name == "hello-reload" {
				if !strings.Contains(out, "StatusText=generation 2 serves as pid") {
					t.Errorf("after the upgrade it prints:\n%s", out)
				}
				sh(blocks[3])
				return
			}
			s.wait("another main process", func() bool { return pid() != first })
			second := pid()
			sh(blocks[2])
			if now := pid(); now == second {
				t.Errorf("grace-upgrade has returned, and MainPID is still %d", now)
			}
		})
	}
}

// The commands of docs/systemd.md, with the server that the unit files name.
func TestSystemdDocs(t *testing.T) {
	hello := proctest.Build(t, "github.com/julofinance/grace/v3/example/systemd")
	for _, name := range []string{"hello", "hello-reload", "hello-socket", "hello-watchdog"} {
		t.Run(name, func(t *testing.T) {
			version := 250
			if name == "hello-reload" {
				version = 253
			}
			s, host := bootSystemd(t, version), loopback(t)
			s.install(hello, "/usr/local/bin/hello")
			s.unitFile(name+".service", "[Service]\nEnvironment=HELLO_ADDR="+host+":9000\n")
			if name == "hello-socket" {
				s.unitFile(name+".socket", "[Socket]\nListenStream=\nListenStream="+host+":9000\n")
			}
			s.do("systemctl", "daemon-reload")
			s.do("systemctl", "start", name)
			if out := s.do("systemctl", "show", "-p", "MainPID", "-p", "StatusText", name); !strings.Contains(out, "StatusText=generation 1 serves as pid") {
				t.Error(out)
			}
			s.do("systemctl", "reload", name)
			s.wait("the second generation", func() bool {
				return strings.HasPrefix(s.do("systemctl", "show", "-P", "StatusText", name), "generation 2 serves as pid")
			})
			s.do("sh", "-c", `! systemctl show -P StatusText "$0" | grep -E 'upgrade (failed|was rolled back)'`, name)
			s.do("sh", "-c", `kill -USR2 $(cat "/run/$0/hello.pid")`, name)
			s.wait("the third generation", func() bool {
				return strings.HasPrefix(s.do("systemctl", "show", "-P", "StatusText", name), "generation 3 serves as pid")
			})
			s.do("journalctl", "--sync")
			if out := s.do("journalctl", "-u", name, "-g", "grace", "--since", "-1h"); strings.Count(out, "grace: serving") != 3 {
				t.Errorf("journalctl shows:\n%s", out)
			}
			s.do("systemctl", "restart", name)
			s.do("systemctl", "stop", name)
			// Nothing in a unit file may be unknown to systemd.
			out := s.do("journalctl", "--no-pager", "-o", "cat")
			for _, line := range strings.Split(out, "\n") {
				if strings.Contains(line, "/run/units/hello") && strings.Contains(line, "ignoring") {
					t.Error(line)
				}
			}
		})
	}
}
