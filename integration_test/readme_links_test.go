//go:build linux

package integration_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A link of a page, as it is written.
var link = regexp.MustCompile(`\[[^\]]*\]\(([^()\s]+)\)`)

// A page is a file in Markdown, without its blocks of code.
type page struct {
	path string // from the top of the checkout
	text string
}

func readPage(t *testing.T, path string) page {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", path))
	if err != nil {
		t.Fatal(err)
	}
	return page{path, regexp.MustCompile("(?ms)^```.*?^```").ReplaceAllString(string(b), "")}
}

// section gives the text below the heading with this anchor, to the next one; with no anchor
// all of it.
func (p page) section(anchor string) (text string, ok bool) {
	if anchor == "" {
		return p.text, true
	}
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	all := heading.FindAllStringSubmatchIndex(p.text, -1)
	for i, at := range all {
		// As GitHub makes them.
		name := strings.ToLower(p.text[at[2]:at[3]])
		name = regexp.MustCompile(`[^\pL\pN _-]`).ReplaceAllString(name, "")
		if strings.ReplaceAll(name, " ", "-") != anchor {
			continue
		}
		end := len(p.text)
		if i+1 < len(all) {
			end = all[i+1][0]
		}
		return p.text[at[0]:end], true
	}
	return "", false
}

// follow gives what a link of p leads to; "" for a directory. It fails the test if there is
// no such file, or no such heading in it.
func (p page) follow(t *testing.T, to string) (path, text string) {
	t.Helper()
	file, anchor, _ := strings.Cut(to, "#")
	path = p.path
	if file != "" {
		path = filepath.Join(filepath.Dir(p.path), file)
	}
	info, err := os.Stat(filepath.Join("..", path))
	if err != nil {
		t.Errorf("%s: the link to %s: %v", p.path, to, err)
		return path, ""
	}
	if info.IsDir() {
		return path, ""
	}
	if filepath.Ext(path) != ".md" {
		b, err := os.ReadFile(filepath.Join("..", path))
		if err != nil || anchor != "" {
			t.Errorf("%s: the link to %s: %v", p.path, to, err)
		}
		return path, string(b)
	}
	text, ok := readPage(t, path).section(anchor)
	if !ok {
		t.Errorf("%s: the link to %s: no heading of %s has this name", p.path, to, path)
	}
	return path, text
}

// TestLinks: what the pages link to is there, with its heading.
func TestLinks(t *testing.T) {
	paths := []string{"README.md", "CHANGELOG.md"}
	docs, err := filepath.Glob("../docs/*.md")
	if err != nil || len(docs) == 0 {
		t.Fatal(docs, err)
	}
	for _, path := range docs {
		paths = append(paths, strings.TrimPrefix(path, "../"))
	}
	links := 0
	for _, path := range paths {
		p := readPage(t, path)
		for _, m := range link.FindAllStringSubmatch(p.text, -1) {
			if !strings.Contains(m[1], "://") {
				p.follow(t, m[1])
				links++
			}
		}
	}
	if links < 100 {
		t.Errorf("the pages have %d links among themselves: not all are seen", links)
	}
}

// TestREADMETable: the table "my server has → do this" of README.md has a row for each kind of
// server, that row names or links what it should, and what it links to speaks of that kind.
// The names of Go in the table exist.
func TestREADMETable(t *testing.T) {
	readme := readPage(t, "README.md")
	_, table, ok := strings.Cut(readme.text, "\n| my server has | do this |\n")
	if !ok {
		t.Fatal("README.md has no table that begins with 'my server has'")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	rows := map[string]string{}
	for row := range strings.Lines(table) {
		cells := strings.Split(row, "|")
		if len(cells) != 4 {
			t.Fatalf("a row of %d cells: %s", len(cells)-2, row)
		}
		rows[strings.TrimSpace(cells[1])] = cells[2]
	}
	exported := exportedNames(t)
	for has, do := range rows {
		if strings.HasPrefix(has, "---") {
			continue
		}
		if !strings.Contains(do, "](") {
			t.Errorf("the row %q links nothing", has)
		}
		for _, m := range regexp.MustCompile(`\b(grace|u)\.(\w+)`).FindAllString(do, -1) {
			if !exported[m] {
				t.Errorf("the row %q: there is no %s", has, m)
			}
		}
	}
	for kind, want := range map[string]struct {
		has  string // in the first cell
		do   string // in the second one
		says string // what the page or program that is linked there says
	}{
		"a file that one process may have": {"flock", "grace.Exclusive(", "flock"},
		"a database of one writer":         {"SQLite", "grace.Exclusive(", "SQLite"},
		"state in memory":                  {"state in memory that must not be lost", "example/exclusive/memory", "grace.Exclusive("},
		"state in memory, a little old":    {"state in memory that may be a little old", "grace.CarryState(", "CarryState"},
		"a cron job":                       {"cron", "example/worker", "job"},
		"SSE":                              {"SSE", "grace.Draining(", "SSE"},
		"WebSocket":                        {"WebSocket", "example/websocket", "Draining("},
		"UDP":                              {"UDP", "docs/udp.md", "ListenPacket"},
		"QUIC":                             {"QUIC", "docs/udp.md", "QUIC"},
		"served by a framework":            {"a framework that calls `Serve` itself", "u.Prepare(", "Prepare("},
		"its own signal handling":          {"its own signals", "example/daemon", "signal.Notify"},
	} {
		t.Run(kind, func(t *testing.T) {
			for has, do := range rows {
				if !strings.Contains(has, want.has) {
					continue
				}
				if !strings.Contains(do, want.do) {
					t.Errorf("the row %q does not name %s", has, want.do)
				}
				said := false
				for _, m := range link.FindAllStringSubmatch(do, -1) {
					_, text := readme.follow(t, m[1])
					said = said || strings.Contains(text, want.says)
				}
				if !said {
					t.Errorf("nothing that the row %q links says %q", has, want.says)
				}
				return
			}
			t.Errorf("no row has %q", want.has)
		})
	}
}

// exportedNames are those of the library, as a program writes them: grace.Serve, and u.Run for
// a method of Upgrader.
func exportedNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	files, err := filepath.Glob("../*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			switch {
			case !ok || !fn.Name.IsExported():
			case fn.Recv == nil:
				names["grace."+fn.Name.Name] = true
			default:
				if p, ok := fn.Recv.List[0].Type.(*ast.StarExpr); ok {
					if typ, ok := p.X.(*ast.Ident); ok && typ.Name == "Upgrader" {
						names["u."+fn.Name.Name] = true
					}
				}
			}
		}
	}
	if !names["grace.New"] || !names["u.Run"] {
		t.Fatalf("New and Run are not among the names: %v", names)
	}
	return names
}
