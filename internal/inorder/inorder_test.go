package inorder

import (
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestOrder: all values come, in order, though some calls panic, or end their goroutine.
func TestOrder(t *testing.T) {
	var got []int
	var panics []any
	q := New(func(v int) {
		got = append(got, v)
		switch {
		case v%10 == 3:
			panic(v)
		case v%10 == 7:
			runtime.Goexit()
		}
	}, func(p any) { panics = append(panics, p) })
	var want []int
	for v := range 100 {
		q.Add(v)
		want = append(want, v)
	}
	if !q.Flush(time.Minute) {
		t.Fatal("not all is delivered after a minute")
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if len(panics) != 10 || panics[0] != any(3) {
		t.Errorf("panics: %v, want 10, the first with 3", panics)
	}
}

// TestFlush: it waits as long as it may, and no longer; Add waits for nothing.
func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		var got int
		q := New(func(int) { <-hang; got++ }, nil)
		if begun := time.Now(); !q.Flush(time.Second) || time.Since(begun) != 0 {
			t.Error("Flush has waited for nothing")
		}
		for range 1000 {
			q.Add(0)
		}
		begun := time.Now()
		if q.Flush(time.Second) || time.Since(begun) != time.Second {
			t.Errorf("Flush has returned after %v, want false after 1s", time.Since(begun))
		}
		close(hang)
		if !q.Flush(time.Second) || got != 1000 {
			t.Errorf("%d values were delivered, want 1000", got)
		}
	})
}
