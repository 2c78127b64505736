//go:build linux

package integration_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPageNamesEveryFile: the package's page is true of the files and programs there are.
func TestPageNamesEveryFile(t *testing.T) {
	page, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	words := map[string]bool{} // those that the page names, patterns too
	for _, word := range regexp.MustCompile(`[a-z0-9_*]+`).FindAllString(string(page), -1) {
		words[word] = true
	}
	files, _ := filepath.Glob("*_test.go")
	programs, _ := filepath.Glob("*/main.go")
	modules, _ := filepath.Glob("*/go.mod")
	if len(files) == 0 || len(programs) == 0 || len(modules) == 0 {
		t.Fatalf("%d files, %d programs, %d modules", len(files), len(programs), len(modules))
	}
	for _, file := range append(append(files, programs...), modules...) {
		name := strings.TrimSuffix(filepath.ToSlash(file), "_test.go")
		if dir, _, ok := strings.Cut(name, "/"); ok {
			name = dir
		}
		named := words[name] || name == "doc" || name == "main"
		for word := range words {
			if ok, _ := filepath.Match(word, name); ok && strings.Contains(word, "_*") && word != "helpers_*" {
				named = true
			}
		}
		if !named {
			t.Errorf("%s is not on the page in doc.go", file)
		}
	}
	delete(words, "_test")
	delete(words, "start_server") // a program of others
	for word := range words {
		if found, _ := filepath.Glob(strings.TrimSuffix(word, "*") + "*"); strings.Contains(word, "_") && len(found) == 0 {
			t.Errorf("doc.go names %s, and there is no such file", word)
		}
	}
}

// TestCodePageNamesFiles: each file that docs/code.md sends its reader to is there.
func TestCodePageNamesFiles(t *testing.T) {
	page, err := os.ReadFile("../docs/code.md")
	if err != nil {
		t.Fatal(err)
	}
	files := regexp.MustCompile("`([a-z0-9_/]+\\.go)`").FindAllStringSubmatch(string(page), -1)
	if len(files) < 20 {
		t.Fatalf("docs/code.md names %d files", len(files))
	}
	for _, m := range files {
		if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
			t.Errorf("docs/code.md: %v", err)
		}
	}
}
