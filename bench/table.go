//go:build linux

package main

import (
	"fmt"
	"io"
	"math"
	"slices"
)

// A table is printed row by row, as it is measured.
type table struct{ w io.Writer }

// none is a number that there is none of.
var none = math.NaN()

const rowFormat = "%-50s %9s %9s %9s\n"

func newTable(w io.Writer) *table { return &table{w} }

// head begins a part of the table.
func (t *table) head(title string) {
	fmt.Fprintf(t.w, "\n%s\n", title)
	fmt.Fprintf(t.w, rowFormat, "", plain, ours, tableflip)
}

// row prints a number for each kind.
func (t *table) row(name, format string, numbers ...float64) {
	texts := []any{name}
	for _, n := range numbers {
		text := ""
		if !math.IsNaN(n) {
			text = fmt.Sprintf(format, n)
		}
		texts = append(texts, text)
	}
	fmt.Fprintf(t.w, rowFormat, texts...)
}

// quantile is the smallest number that a share of v, from 0 to 1, is not above.
func quantile(v []float64, share float64) float64 {
	if len(v) == 0 {
		return none
	}
	v = slices.Sorted(slices.Values(v))
	return v[max(0, int(math.Ceil(share*float64(len(v))))-1)]
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, n := range v {
		sum += n
	}
	return sum / float64(len(v))
}

func least(v []float64) float64 { return slices.Min(v) }
func most(v []float64) float64  { return slices.Max(v) }
