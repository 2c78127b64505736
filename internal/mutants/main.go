// Mutants breaks one thing at a time, on purpose, and sees that the test which
// should notice fails: go run ./internal/mutants, or make mutants.
//
// Each file of testdata/mutants is one break:
//
//	# which invariant it breaks
//	file: pidfile.go
//	test: ./integration_test TestName/sub
//	--- old
//		whole lines of the file, which occur exactly once
//	+++ new
//		what stands in their place; may be nothing
//
// No file of the checkout is changed: the go command is given the broken copy as
// an overlay (go help build, -overlay), and so is each go build that a test runs.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// A mutant is one break, and the test that must fail for it.
type mutant struct {
	name       string
	file       string
	pkg, tests string
	old, new   string
}

func main() {
	check := flag.Bool("check", false, "only see that each break still fits the code")
	only := flag.String("run", "", "only the breaks whose names match this regular expression")
	flag.Parse()
	if err := run(*check, *only); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(check bool, only string) error {
	want, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	paths, err := filepath.Glob("testdata/mutants/*.txt")
	if err != nil {
		return err
	}
	var mutants []mutant
	var errs []error
	for _, path := range paths {
		if !want.MatchString(filepath.Base(path)) {
			continue
		}
		m, err := read(path)
		if err == nil {
			_, err = m.apply()
		}
		if err == nil {
			err = m.findTest()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
			continue
		}
		mutants = append(mutants, m)
	}
	if len(mutants) == 0 && len(errs) == 0 {
		return errors.New("no mutants: run this at the top of the checkout")
	}
	passed := len(mutants)
	if !check {
		survived := breakAll(mutants)
		passed -= len(survived)
		errs = append(errs, survived...)
	}
	fmt.Printf("mutants: %d passed, %d failed\n", passed, len(errs))
	return errors.Join(errs...)
}

var testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)

// findTest reports whether the package has a test of the mutant's name: of one that was
// moved or renamed, go test would say that there is none to run, and pass.
func (m mutant) findTest() error {
	name, _, _ := strings.Cut(m.tests, "/")
	want, err := regexp.Compile(name)
	if err != nil {
		return fmt.Errorf("test: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(m.pkg, "*_test.go"))
	if err != nil {
		return err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for _, f := range testFunc.FindAllSubmatch(b, -1) {
			if want.Match(f[1]) {
				return nil
			}
		}
	}
	return fmt.Errorf("no test of %s is named %s", m.pkg, name)
}

// breakAll runs each mutant's test, first as the code is, then broken.
func breakAll(mutants []mutant) (errs []error) {
	dir, err := os.MkdirTemp("", "grace-mutants-")
	if err != nil {
		return []error{err}
	}
	defer os.RemoveAll(dir)
	built := map[string]func() (string, error){}
	whole := map[string]error{}
	for _, m := range mutants {
		begun := time.Now()
		key := m.pkg + " " + m.tests
		if _, ok := whole[key]; !ok {
			if built[m.pkg] == nil {
				binary := filepath.Join(dir, fmt.Sprint(len(built)))
				built[m.pkg] = sync.OnceValues(func() (string, error) { return binary, m.build(binary) })
			}
			binary, err := built[m.pkg]()
			var out []byte
			if err == nil {
				out, err = m.run(binary, nil)
			}
			if err != nil {
				err = fmt.Errorf("%s fails without a break: %w\n%s", key, err, out)
			}
			whole[key] = err
		}
		err := whole[key]
		if err == nil {
			binary, _ := built[m.pkg]()
			err = m.survives(binary)
		}
		verdict := "noticed"
		if err != nil {
			verdict = "NOT NOTICED"
			errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
		}
		fmt.Printf("%-11s %-40s %s (%v)\n", verdict, m.name, key, time.Since(begun).Round(100*time.Millisecond))
	}
	return errs
}

// read reads one file of testdata/mutants.
func read(path string) (m mutant, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return m, err
	}
	m.name = strings.TrimSuffix(filepath.Base(path), ".txt")
	head, rest, ok := strings.Cut(string(b), "--- old\n")
	if !ok {
		return m, errors.New("has no line '--- old'")
	}
	m.old, m.new, ok = strings.Cut(rest, "+++ new\n")
	if !ok || m.old == "" {
		return m, errors.New("has nothing old, or no line '+++ new'")
	}
	for line := range strings.Lines(head) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "file":
			m.file = strings.TrimSpace(value)
		case "test":
			m.pkg, m.tests, _ = strings.Cut(strings.TrimSpace(value), " ")
		}
	}
	if m.file == "" || m.tests == "" {
		return m, errors.New("has no 'file:', or no 'test:' with a package and a test")
	}
	return m, nil
}

// apply gives the broken file.
func (m mutant) apply() ([]byte, error) {
	b, err := os.ReadFile(m.file)
	if err != nil {
		return nil, err
	}
	whole := "\n" + string(b)
	if n := strings.Count(whole, "\n"+m.old); n != 1 {
		return nil, fmt.Errorf("%s has these lines %d times, not once:\n%s", m.file, n, m.old)
	}
	return []byte(strings.Replace(whole, "\n"+m.old, "\n"+m.new, 1)[1:]), nil
}

// survives gives an error if the test does not fail with the broken file. whole is
// the binary of the tests of the package, as the code is.
func (m mutant) survives(whole string) error {
	broken, err := m.apply()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "grace-mutant-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file, err := filepath.Abs(m.file)
	if err != nil {
		return err
	}
	copied := filepath.Join(dir, filepath.Base(m.file))
	overlay := filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{file: copied}})
	if err == nil {
		err = errors.Join(os.WriteFile(copied, broken, 0o600), os.WriteFile(overlay, list, 0o600))
	}
	if err != nil {
		return err
	}
	env, err := withFlag("-overlay=" + overlay)
	if err != nil {
		return err
	}
	var out []byte
	if m.buildsAll() {
		out, err = m.run(whole, env)
	} else {
		out, err = m.test(env)
	}
	switch {
	case err == nil:
		return fmt.Errorf("%s %s passes all the same", m.pkg, m.tests)
	case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("go build")) || bytes.Contains(out, []byte("go test -c")):
		return fmt.Errorf("the broken code does not build:\n%s", out)
	case !bytes.Contains(out, []byte("--- FAIL")) && !bytes.Contains(out, []byte("panic:")):
		return fmt.Errorf("%s %s did not run: %w\n%s", m.pkg, m.tests, err, out)
	}
	return nil
}

// build makes the binary of the tests of the package, as the code is.
func (m mutant) build(binary string) error {
	dir, pkg := m.module()
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-o", binary, pkg)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go test -c: %w\n%s", err, out)
	}
	return nil
}

// buildsAll reports whether what the tests try is in programs only that they build
// themselves: then the binary of the tests need not be built for each break.
func (m mutant) buildsAll() bool { return strings.HasPrefix(m.pkg, "./integration_test") }

// run runs the mutant's test in such a binary.
func (m mutant) run(binary string, env []string) ([]byte, error) {
	cmd := exec.Command(binary, "-test.timeout=5m", "-test.run="+m.pattern())
	cmd.Dir, cmd.Env = m.pkg, env
	return ran(cmd)
}

// test builds and runs the mutant's test. The broken code is not vetted: what
// matters is that a test fails.
func (m mutant) test(env []string) ([]byte, error) {
	dir, pkg := m.module()
	cmd := exec.Command("go", "test", "-vet=off", "-count=1", "-timeout=2m", "-run="+m.pattern(), pkg)
	cmd.Dir, cmd.Env = dir, env
	return ran(cmd)
}

// withFlag is the environment in which each go command has one more flag.
func withFlag(flag string) ([]string, error) {
	set, err := exec.Command("go", "env", "GOFLAGS").Output() // of the environment or of go env -w
	if err != nil {
		return nil, fmt.Errorf("go env GOFLAGS: %w", err)
	}
	return append(os.Environ(), "GOFLAGS="+strings.TrimSpace(strings.TrimSpace(string(set))+" "+flag)), nil
}

func ran(cmd *exec.Cmd) ([]byte, error) {
	out, err := cmd.CombinedOutput()
	if err == nil && bytes.Contains(out, []byte("no tests to run")) {
		err = errors.New("there is no such test")
	}
	return out, err
}

// pattern matches the test and nothing else.
func (m mutant) pattern() string {
	parts := strings.Split(m.tests, "/")
	for i, p := range parts {
		parts[i] = "^" + p + "$"
	}
	return strings.Join(parts, "/")
}

// module says where to be, and what the package is called there: it may be of a module of
// its own, at its directory or above that.
func (m mutant) module() (dir, pkg string) {
	for dir = filepath.Clean(m.pkg); dir != "."; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			rest, err := filepath.Rel(dir, m.pkg)
			if err != nil {
				break // not reached: dir begins m.pkg
			}
			return dir, "./" + filepath.ToSlash(rest)
		}
	}
	return ".", m.pkg
}
