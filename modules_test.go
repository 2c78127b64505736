package grace

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"testing"
)

// TestModulePaths: the go command finds each module that a program may import. In the
// repository of github.com/julofinance/grace it looks for a module with /v3 at the end of
// its path in the directory before that, and for one with /v3 in the middle in a directory
// v3, which is not there.
func TestModulePaths(t *testing.T) {
	notImported := map[string]bool{"integration_test": true, "example": true, "bench": true, "testdata": true, ".git": true}
	found := 0
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && notImported[d.Name()] {
			return fs.SkipDir
		}
		if d.Name() != "go.mod" {
			return nil
		}
		found++
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		want := path.Join("github.com/julofinance/grace", filepath.ToSlash(filepath.Dir(file)), "v3")
		m := regexp.MustCompile(`(?m)^module (\S+)$`).FindSubmatch(text)
		if m == nil {
			t.Errorf("%s names no module", file)
		} else if string(m[1]) != want {
			t.Errorf("%s: the module is %s, want %s", file, m[1], want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 3 {
		t.Errorf("%d modules were found, want those of the root, metrics/graceprom and compat/v1/fasthttp at least", found)
	}
}
