//go:build linux && amd64

package grace

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// The goroutine that owns the state waits for nothing outside. What its functions
// call that asks the system or the network is listed here, each with the reason why
// that does not wait.
var loopMayCall = map[string]string{
	"control.Channel.Close calls net.conn.Close":         "a socket without SO_LINGER",
	"proc.forked.Kill calls os.Process.Kill":             "a signal",
	"proc.forked.process calls os.FindProcess":           "only without pidfd: the process is looked up",
	"proc.killPidfd calls unix.PidfdSendSignal":          "a signal",
	"sockets.Listener.Give calls net.Conn.Close":         "a socket without SO_LINGER",
	"sockets.Socket.listenNow calls unix.Listen":         "listen(2) of a socket that is bound",
	"control.writeNonblock calls syscall.RawConn.Write":  "its function says at once that it is done",
	"control.writeNonblock calls unix.SendmsgN":          "the socket is non-blocking",
	"sockets.markTakenBack calls unix.SetsockoptTimeval": "an option",
}

// harmless are functions that wait for nothing, of packages most of which do.
var harmless = strings.Fields(`Getpid Getppid Getenv LookupEnv Environ NewSyscallError Error Unwrap String Is Sys
	Network Addr LocalAddr RemoteAddr SplitHostPort JoinHostPort SyscallConn Control SetDeadline SetReadDeadline SetWriteDeadline
	Signal Signaled Exited ExitStatus UnixRights NsecToTimeval Nano ClockGettime Getsid
	CipherSuiteName`)

// calledLater are functions of this module that let another goroutine call what they
// are given.
var calledLater = []string{"run", "watch", "ping", "restore", "Run", "Send", "SendWithin"}

// whatWaits reports whether f, of another package, may wait for something outside.
func whatWaits(f *types.Func) bool {
	switch f.Pkg().Path() {
	case "os", "net", "syscall", "golang.org/x/sys/unix", "os/exec", "os/user", "io", "io/fs", "bufio", "net/http", "crypto/tls":
		return !slices.Contains(harmless, f.Name())
	case "time":
		return f.Name() == "Sleep"
	case "sync":
		return f.Name() == "Wait"
	case "path/filepath":
		return slices.Contains([]string{"EvalSymlinks", "Abs", "Glob", "Walk", "WalkDir"}, f.Name())
	}
	return false
}

// A loopGraph knows which functions the loop calls: those of the root, and of the internal
// packages.
type loopGraph struct {
	info  *types.Info
	pkgs  map[*types.Package]bool
	decls map[*types.Func]*ast.FuncDecl
	seen  map[*types.Func]bool
	found map[string]bool
}

func TestLoopWaitsForNothing(t *testing.T) {
	g := loadLoopGraph(t)
	for _, decl := range g.decls {
		if decl.Name.Name == "loop" && decl.Recv != nil {
			g.walk(decl.Body, "loop")
		}
		ast.Inspect(decl, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && g.isPost(call) {
				if lit, ok := call.Args[0].(*ast.FuncLit); ok {
					g.walk(lit.Body, decl.Name.Name)
				} else {
					g.follow(call.Args[0], decl.Name.Name)
				}
			}
			return true
		})
	}
	if len(g.seen) < 100 {
		t.Errorf("the loop calls %d functions of this module, want at least 100: the test does not see them", len(g.seen))
	}
	for _, f := range slices.Sorted(maps.Keys(g.found)) {
		if loopMayCall[f] == "" {
			t.Errorf("the loop may wait: %s; let another goroutine do it (see outside.go), or say in loopMayCall why it does not wait", f)
		}
	}
	for f := range loopMayCall {
		if !g.found[f] {
			t.Errorf("loopMayCall has %q, which is not called", f)
		}
	}
}

// walk looks at what is called in n, a part of the function from, at once: not by
// another goroutine, nor later by a timer or by the code that a function is given to.
func (g *loopGraph) walk(n ast.Node, from string) {
	later := map[ast.Node]bool{}
	postpone := func(all ...ast.Expr) {
		for _, e := range all {
			if lit, ok := e.(*ast.FuncLit); ok {
				later[lit] = true
			}
		}
	}
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			return false
		case *ast.SendStmt:
			postpone(n.Value)
		case *ast.ReturnStmt:
			postpone(n.Results...)
		case *ast.FuncLit:
			return !later[n]
		case *ast.CallExpr:
			if f := g.callee(n.Fun); f != nil && (f.Name() == "AfterFunc" || g.pkgs[f.Pkg()] && slices.Contains(calledLater, f.Name())) {
				postpone(n.Args...)
			}
			if g.isPost(n) {
				g.found[from+" calls post"] = true // of the loop to itself: for ever
				return false
			}
			g.follow(n.Fun, from)
		}
		return true
	})
}

// follow looks at a function that is called.
func (g *loopGraph) follow(fun ast.Expr, from string) {
	f := g.callee(fun)
	if f == nil || f.Pkg() == nil {
		return
	}
	if !g.pkgs[f.Pkg()] {
		if whatWaits(f) {
			g.found[from+" calls "+shortName(f)] = true
		}
		return
	}
	for _, f := range g.behind(f) {
		if decl := g.decls[f]; decl != nil && !g.seen[f] {
			g.seen[f] = true
			g.walk(decl.Body, shortName(f))
		}
	}
}

const thisModule = "github.com/julofinance/grace/v3"

// shortName is the name of f without what all have in common, as control.Channel.Close.
func shortName(f *types.Func) string {
	return strings.NewReplacer(thisModule+"/internal/", "", thisModule+".", "", "golang.org/x/sys/", "", "(", "", ")", "", "*", "").Replace(f.FullName())
}

// behind gives f, or the methods of this module that a call of an interface's may be.
func (g *loopGraph) behind(f *types.Func) []*types.Func {
	recv := f.Signature().Recv()
	if recv == nil || !types.IsInterface(recv.Type()) {
		return []*types.Func{f.Origin()}
	}
	i := recv.Type().Underlying().(*types.Interface)
	var all []*types.Func
	for m := range g.decls {
		if r := m.Signature().Recv(); r != nil && m.Name() == f.Name() && types.Implements(r.Type(), i) {
			all = append(all, m)
		}
	}
	return all
}

func (g *loopGraph) callee(fun ast.Expr) *types.Func {
	switch e := ast.Unparen(fun).(type) {
	case *ast.Ident:
		f, _ := g.info.Uses[e].(*types.Func)
		return f
	case *ast.SelectorExpr:
		f, _ := g.info.Uses[e.Sel].(*types.Func)
		return f
	case *ast.IndexExpr:
		return g.callee(e.X)
	}
	return nil
}

func (g *loopGraph) isPost(call *ast.CallExpr) bool {
	f := g.callee(call.Fun)
	return f != nil && g.pkgs[f.Pkg()] && f.Name() == "post" && len(call.Args) == 1
}

// loadLoopGraph type-checks this module's packages from source, and takes the others from
// their export data.
func loadLoopGraph(t *testing.T) *loopGraph {
	list := exec.Command("go", "list", "-export", "-deps", "-f", `{{.ImportPath}}|{{.Export}}|{{.Dir}}|{{join .GoFiles "|"}}`, ".")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	g := &loopGraph{
		info: &types.Info{Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}},
		pkgs: map[*types.Package]bool{}, decls: map[*types.Func]*ast.FuncDecl{}, seen: map[*types.Func]bool{}, found: map[string]bool{},
	}
	exports, fset := map[string]string{}, token.NewFileSet()
	imports := moduleImporter{own: map[string]*types.Package{}, others: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		b, err := os.ReadFile(cmp.Or(exports[path], "no export data of "+path))
		return io.NopCloser(bytes.NewReader(b)), err
	})}
	for line := range strings.Lines(string(out)) { // what a package imports comes before it
		part := strings.Split(strings.TrimSpace(line), "|")
		path, dir := part[0], part[2]
		if exports[path] = part[1]; path != thisModule && !strings.HasPrefix(path, thisModule+"/") {
			continue
		}
		files := []*ast.File{}
		for _, name := range part[3:] {
			f, err := parser.ParseFile(fset, overlaid(t, filepath.Join(dir, name)), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		conf := types.Config{Importer: imports}
		pkg, err := conf.Check(path, fset, files, g.info)
		if err != nil {
			t.Fatal(fmt.Errorf("type-check: %w", err))
		}
		imports.own[path], g.pkgs[pkg] = pkg, true
		for _, f := range files {
			for _, d := range f.Decls {
				if decl, ok := d.(*ast.FuncDecl); ok && decl.Body != nil {
					g.decls[g.info.Defs[decl.Name].(*types.Func)] = decl
				}
			}
		}
	}
	return g
}

// A moduleImporter gives the packages of this module that were checked from source, and
// others.
type moduleImporter struct {
	own    map[string]*types.Package
	others types.Importer
}

func (m moduleImporter) Import(path string) (*types.Package, error) {
	if pkg := m.own[path]; pkg != nil {
		return pkg, nil
	}
	return m.others.Import(path)
}

// overlaid gives the file that the go command takes in the place of name.
func overlaid(t *testing.T, name string) string {
	for _, f := range strings.Fields(os.Getenv("GOFLAGS")) {
		path, ok := strings.CutPrefix(f, "-overlay=")
		if !ok {
			continue
		}
		b, err := os.ReadFile(path)
		var overlay struct{ Replace map[string]string }
		if err == nil {
			err = json.Unmarshal(b, &overlay)
		}
		if err != nil {
			t.Fatal(err)
		}
		for of, by := range overlay.Replace {
			if filepath.Clean(of) == filepath.Clean(sockets.Absolute(name)) {
				return by
			}
		}
	}
	return name
}
