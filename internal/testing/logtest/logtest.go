// Package logtest has log handlers for tests: one that can be read while it is written,
// and one that blocks or fails as the test says.
package logtest

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
)

// A Buffer may be written and read by several goroutines at once. mu guards buf.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// Reset empties the buffer.
func (b *Buffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Reset()
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// Lines returns the lines written so far.
func (b *Buffer) Lines() []string { return strings.Split(strings.TrimSpace(b.String()), "\n") }

// A Handler keeps the lines as text, without the time. It calls Before for each line
// before it keeps it.
type Handler struct {
	slog.Handler
	Buffer *Buffer
	Before func(slog.Record)
}

// New returns a Handler that calls before.
func New(before func(slog.Record)) *Handler {
	b := &Buffer{}
	return &Handler{Buffer: b, Before: before, Handler: slog.NewTextHandler(b, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})}
}

func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	h.Before(r)
	return h.Handler.Handle(ctx, r)
}

// Lines returns the lines kept so far.
func (h *Handler) Lines() []string { return h.Buffer.Lines() }

// Blocked returns a Handler that takes no line before release is called, or the test ends.
func Blocked(t testing.TB) (h *Handler, release func()) {
	c := make(chan struct{})
	release = sync.OnceFunc(func() { close(c) })
	t.Cleanup(release)
	return New(func(slog.Record) { <-c }), release
}
