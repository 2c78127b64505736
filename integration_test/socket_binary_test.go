//go:build linux

package integration_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// buildVersion builds the test server as another version of itself.
func buildVersion(t *testing.T, version string) string {
	t.Helper()
	return proctest.Build(t, serverPackage, "-ldflags=-X main.version="+version)
}

// place puts the binary at path by a rename. Nothing is written, so that no
// process that is forked at this moment can hold it open for writing.
func place(t *testing.T, binary, path string) {
	t.Helper()
	if err := os.Link(binary, path+".next"); err != nil {
		// Another file system: a symlink is replaced by rename as well.
		if err := os.Symlink(binary, path+".next"); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(path+".next", path); err != nil {
		t.Fatal(err)
	}
	os.Remove(path + ".next") // left if both were the same file before
}

func flip(t *testing.T, target, link string) {
	t.Helper()
	if err := os.Symlink(target, link+".next"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".next", link); err != nil {
		t.Fatal(err)
	}
}

func (s *server) wantVersion(want string) {
	s.t.Helper()
	if got := s.mustGet("/version"); got != want {
		s.t.Errorf("version %s answers, want %s", got, want)
	}
}

func TestBinaryReplaced(t *testing.T) {
	one, two, three := buildVersion(t, "one"), buildVersion(t, "two"), buildVersion(t, "three")
	t.Run("by rename", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "server")
		place(t, one, path)
		s := startServerAs(t, proctest.Command{Path: path, Args: []string{"-probation", "0s"}})
		for _, next := range []struct{ binary, version string }{{two, "two"}, {two, "two"}, {three, "three"}, {one, "one"}} {
			place(t, next.binary, path)
			s.mustUpgrade()
			s.wantVersion(next.version)
		}
	})
	t.Run("by a flipped symlink", func(t *testing.T) {
		dir := t.TempDir()
		for version, binary := range map[string]string{"1": one, "2": two, "3": three} {
			if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
				t.Fatal(err)
			}
			place(t, binary, filepath.Join(dir, version, "server"))
		}
		current := filepath.Join(dir, "current")
		flip(t, "1", current)
		s := startServerAs(t, proctest.Command{Path: filepath.Join(current, "server"), Args: []string{"-probation", "0s"}})
		for _, next := range [][2]string{{"2", "two"}, {"3", "three"}, {"1", "one"}} {
			flip(t, next[0], current)
			if next[0] == "3" { // the release that runs may be gone by then
				if err := os.RemoveAll(filepath.Join(dir, "1")); err != nil {
					t.Fatal(err)
				}
				os.Mkdir(filepath.Join(dir, "1"), 0o755)
				place(t, one, filepath.Join(dir, "1", "server"))
			}
			s.mustUpgrade()
			s.wantVersion(next[1])
		}
	})
	t.Run("removed, then there again", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "server")
		place(t, one, path)
		s := startServerAs(t, proctest.Command{Path: path, Args: []string{"-probation", "0s"}})
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if r := s.upgrade(); len(r.Is) != 1 || r.Is[0] != "ErrStart" {
			t.Errorf("Upgrade without a binary: %+v, want ErrStart", r)
		}
		s.wantVersion("one")
		place(t, two, path)
		s.mustUpgrade()
		s.wantVersion("two")
	})
}

// However the first process was found, and wherever the program has gone since.
func TestBinaryFoundAgain(t *testing.T) {
	one, two, three := buildVersion(t, "one"), buildVersion(t, "two"), buildVersion(t, "three")
	elsewhere := t.TempDir()
	for name, tc := range map[string]struct {
		argv0 string // with the directory's name for DIR
		dir   string // to start in, below the directory
		path  bool   // the directory is in the PATH
		chdir bool   // the program changes its working directory
	}{
		"relative path":                          {argv0: "./bin/server"},
		"relative path, changed directory":       {argv0: "bin/server", chdir: true},
		"path with dots, changed directory":      {argv0: "../bin/server", dir: "work", chdir: true},
		"by the PATH":                            {argv0: "server", path: true},
		"by the PATH, changed directory":         {argv0: "server", path: true, chdir: true},
		"absolute path, changed directory":       {chdir: true},
		"another name in its arguments (a -)":    {argv0: "-server"},
		"another name that a file has":           {argv0: "decoy/server"},
		"the name of another program's, by PATH": {argv0: "sh"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, sub := range []string{"bin", "work", "decoy"} {
				if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			path := filepath.Join(dir, "bin", "server")
			place(t, one, path)
			if err := os.WriteFile(filepath.Join(dir, "decoy", "server"), []byte("not it"), 0o755); err != nil {
				t.Fatal(err)
			}
			if tc.path {
				t.Setenv("PATH", filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
			}
			args := []string{"-probation", "0s"}
			if tc.chdir {
				args = append(args, "-chdir", elsewhere)
			}
			s := startServerAs(t, proctest.Command{Path: path, Argv0: tc.argv0, Dir: filepath.Join(dir, tc.dir), Args: args})
			for _, next := range []struct{ binary, version string }{{two, "two"}, {three, "three"}} {
				place(t, next.binary, path)
				s.mustUpgrade()
				s.wantVersion(next.version)
				if got, want := s.mustGet("/run?arg=pwd"), map[bool]string{true: elsewhere, false: filepath.Join(dir, tc.dir)}[tc.chdir]; got != want {
					t.Errorf("it works in %s, want %s", got, want)
				}
			}
		})
	}
}

// A first start with the arguments and the environment of then, a new one with
// those of now.
func TestWhatANewProcessIsGiven(t *testing.T) {
	s := startServer(t, "-probation", "0s", "with an argument", "", "$HOME")
	want := s.mustGet("/args")
	for range 2 {
		s.mustUpgrade()
		if got := s.mustGet("/args"); got != want {
			t.Errorf("arguments %q, want %q", got, want)
		}
	}
}
