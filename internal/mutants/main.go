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
	"time"
)

// A mutant is one break, and the test that must fail for it.
type mutant struct {
	name     string
	file     string
	pkg, run string
	old, new string
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
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
			continue
		}
		mutants = append(mutants, m)
	}
	if len(mutants) == 0 && len(errs) == 0 {
		return errors.New("no mutants: run this at the top of the checkout")
	}
	if !check {
		errs = append(errs, breakAll(mutants)...)
	}
	fmt.Printf("mutants: %d passed, %d failed\n", len(mutants)-len(errs), len(errs))
	return errors.Join(errs...)
}

// breakAll runs each mutant's test, first as the code is, then broken.
func breakAll(mutants []mutant) (errs []error) {
	whole := map[string]error{}
	for _, m := range mutants {
		begun := time.Now()
		key := m.pkg + " " + m.run
		if _, ok := whole[key]; !ok {
			out, err := m.test("")
			if err != nil {
				err = fmt.Errorf("%s fails without a break: %w\n%s", key, err, out)
			}
			whole[key] = err
		}
		err := whole[key]
		if err == nil {
			err = m.survives()
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
			m.pkg, m.run, _ = strings.Cut(strings.TrimSpace(value), " ")
		}
	}
	if m.file == "" || m.run == "" {
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

// survives gives an error if the test does not fail with the broken file.
func (m mutant) survives() error {
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
	out, err := m.test("-overlay=" + overlay)
	switch {
	case err == nil:
		return fmt.Errorf("%s %s passes all the same", m.pkg, m.run)
	case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("go build")):
		return fmt.Errorf("the broken code does not build:\n%s", out)
	case !bytes.Contains(out, []byte("--- FAIL")) && !bytes.Contains(out, []byte("panic:")):
		return fmt.Errorf("%s %s did not run: %w\n%s", m.pkg, m.run, err, out)
	}
	return nil
}

// test runs the mutant's test; flags are added to those of every go command.
func (m mutant) test(flags string) ([]byte, error) {
	parts := strings.Split(m.run, "/")
	for i, p := range parts {
		parts[i] = "^" + p + "$"
	}
	dir, pkg := ".", m.pkg
	if _, err := os.Stat(filepath.Join(m.pkg, "go.mod")); err == nil {
		dir, pkg = m.pkg, "." // a module of its own
	}
	cmd := exec.Command("go", "test", "-count=1", "-timeout=5m", "-run", strings.Join(parts, "/"), pkg)
	cmd.Dir = dir
	set, err := exec.Command("go", "env", "GOFLAGS").Output() // of the environment or of go env -w
	if err != nil {
		return nil, fmt.Errorf("go env GOFLAGS: %w", err)
	}
	cmd.Env = append(os.Environ(), "GOFLAGS="+strings.TrimSpace(strings.TrimSpace(string(set))+" "+flags))
	out, err := cmd.CombinedOutput()
	if err == nil && bytes.Contains(out, []byte("[no tests to run]")) {
		err = errors.New("there is no such test")
	}
	return out, err
}
