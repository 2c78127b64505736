//go:build linux

package compat

import (
	"go/build"
	"go/importer"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	_ "github.com/cloudflare/tableflip/testing" // for go.mod: the tests read its source
)

// newImporter gives one that reads source. A type is the same only if it comes from the
// same importer.
func newImporter() types.ImporterFrom {
	build.Default.CgoEnabled = false // package net has Go code in place of C then
	return importer.ForCompiler(token.NewFileSet(), "source", nil).(types.ImporterFrom)
}

// TestTableflipAPI: every exported name of tableflip v1.2.3 is there, with the very
// type, and so is every field and method.
func TestTableflipAPI(t *testing.T) {
	const shim = "github.com/julofinance/grace/v3/compat/tableflip"
	imp := newImporter()
	for _, sub := range []string{"", "/testing"} {
		original, err := imp.ImportFrom("github.com/cloudflare/tableflip"+sub, ".", 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := imp.ImportFrom(shim+sub, ".", 0)
		if err != nil {
			t.Fatal(err)
		}
		want, got := exported(original), exported(ours)
		if len(want) < 10 {
			t.Errorf("tableflip%s has only %q", sub, want)
		}
		for name, is := range want {
			if got[name] != is {
				t.Errorf("%s%s: %s is %q, want %q", shim, sub, name, got[name], is)
			}
		}
	}
}

// TestAPI: every exported name of the other libraries is there, with the very type. The
// lists are in testdata/api: these modules have no go.mod, and no releases.
func TestAPI(t *testing.T) {
	imp := newImporter()
	for list, shim := range map[string]struct{ path, also string }{
		"v1":        {"github.com/julofinance/grace/compat/v1/fasthttp/v3", ""},
		"endless":   {"github.com/julofinance/grace/v3/compat/endless", "endlessServer"},
		"gracehttp": {"github.com/julofinance/grace/v3/compat/gracehttp", ""},
	} {
		t.Run(list, func(t *testing.T) {
			ours, err := imp.ImportFrom(shim.path, ".", 0)
			if err != nil {
				t.Fatal(err)
			}
			got := exported(ours, shim.also)
			for name, want := range listed(t, list) {
				if got[name] != want {
					t.Errorf("%s: %s is %q, want %q", shim.path, name, got[name], want)
				}
			}
		})
	}
	// compat/v1 itself has all but what needs fasthttp, and what is there is in the
	// module with fasthttp too.
	both := map[string]map[string]string{}
	for _, path := range []string{"github.com/julofinance/grace/v3/compat/v1", "github.com/julofinance/grace/compat/v1/fasthttp/v3"} {
		p, err := imp.ImportFrom(path, ".", 0)
		if err != nil {
			t.Fatal(err)
		}
		both[path] = exported(p)
	}
	without, with := both["github.com/julofinance/grace/v3/compat/v1"], both["github.com/julofinance/grace/compat/v1/fasthttp/v3"]
	for name, is := range with {
		if without[name] != is && name != "ServerFastHTTP" {
			t.Errorf("compat/v1: %s is %q, want %q", name, without[name], is)
		}
	}
	for name := range without {
		if with[name] == "" {
			t.Errorf("compat/v1/fasthttp has no %s", name)
		}
	}
}

// listed reads a list of testdata/api: a name, and its type as exported gives it.
func listed(t *testing.T, list string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "api", list+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if name, is, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			all[name] = strings.TrimSpace(is)
		}
	}
	if len(all) < 4 {
		t.Fatalf("%s has only %q", list, all)
	}
	return all
}

// exported gives the type of each exported name of a package, and of the fields and
// methods of its types; and of the types also, which are not exported. What a type of the
// standard library brings is left out: it is not the package's.
func exported(p *types.Package, also ...string) map[string]string {
	all := map[string]string{}
	short := func(q *types.Package) string {
		if q == p || strings.Contains(q.Path(), "tableflip") || strings.Contains(q.Path(), "compat/v1") {
			return q.Name()
		}
		return q.Path()
	}
	describe := func(t types.Type) string { return types.TypeString(unnamed(t), short) }
	for _, name := range p.Scope().Names() {
		obj := p.Scope().Lookup(name)
		if !obj.Exported() && !slices.Contains(also, name) {
			continue
		}
		named, isType := types.Unalias(obj.Type()).(*types.Named)
		if _, ok := obj.(*types.TypeName); !ok || !isType {
			all[name] = describe(obj.Type())
			if c, ok := obj.(*types.Const); ok {
				all[name] += " = " + c.Val().ExactString()
			}
			continue
		}
		switch u := named.Underlying().(type) {
		case *types.Struct:
			all[name] = "struct"
			for f := range u.Fields() {
				if f.Exported() {
					all[name+"."+f.Name()] = describe(f.Type())
				}
			}
		default:
			all[name] = describe(u)
		}
		methods := types.NewMethodSet(types.NewPointer(named))
		for m := range methods.Methods() {
			if m.Obj().Exported() && strings.Contains(m.Obj().Pkg().Path(), ".") {
				all[name+"."+m.Obj().Name()+"()"] = describe(m.Type())
			}
		}
	}
	return all
}

// unnamed gives a function's type without the names of what it takes and returns, which
// are no part of it.
func unnamed(t types.Type) types.Type {
	f, ok := t.(*types.Signature)
	if !ok {
		return t
	}
	strip := func(names *types.Tuple) *types.Tuple {
		var vars []*types.Var
		for v := range names.Variables() {
			vars = append(vars, types.NewParam(token.NoPos, nil, "", unnamed(v.Type())))
		}
		return types.NewTuple(vars...)
	}
	return types.NewSignatureType(nil, nil, nil, strip(f.Params()), strip(f.Results()), f.Variadic())
}
