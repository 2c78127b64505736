package sockets

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
)

// An Inherited socket is one of another process, of which this one has a copy that the
// program has not asked for yet.
type Inherited struct {
	manifest.Entry
	Index, FD int
	anew      bool // Listen binds its path anew: this one is not in the way
}

// CloseInherited closes this process's copies of dropped.
func CloseInherited(dropped []Inherited) {
	for _, in := range dropped {
		fd.CloseAll([]int{in.FD})
	}
}

// Unused returns those of dropped in whose place this process has bound no other.
func Unused(dropped []Inherited) []Inherited {
	return slices.DeleteFunc(slices.Clone(dropped), func(in Inherited) bool { return in.anew })
}

// Names returns the names of the first ten, for the log.
func Names(dropped []Inherited) string {
	var b strings.Builder
	for i, in := range dropped {
		if i == 10 {
			fmt.Fprintf(&b, " and %d more", len(dropped)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, strings.TrimSpace(cmp.Or(in.Network, string(in.Kind))+" "+cmp.Or(in.Bound, in.Addr)))
	}
	return b.String()
}
