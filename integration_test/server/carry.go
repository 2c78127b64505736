package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/julofinance/grace/v3"
)

var (
	carry     = flag.Int("carry", -1, "carry the counter of /count over, and with it so many bytes that are made up")
	carryLess = flag.Bool("carryless", false, "go on without it if it can't be had whole")
)

// count is the state.
var count atomic.Uint64

// carryHandlers: /count counts, and says how far; /counted only says it.
func carryHandlers(mux *http.ServeMux) {
	mux.HandleFunc("/count", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, count.Add(1)) })
	mux.HandleFunc("/counted", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, count.Load()) })
}

// carryOptions are of a version that carries state. Restore has the step "restore", after the
// first bytes, and the mode "unreadable" of misbehave.go.
func carryOptions(m *misbehaviour) []grace.Option {
	if *carry < 0 {
		return nil
	}
	save := func(_ context.Context, w io.Writer) error {
		if err := binary.Write(w, binary.BigEndian, count.Load()); err != nil {
			return err
		}
		_, err := io.Copy(w, io.LimitReader(&pattern{}, int64(*carry)))
		return err
	}
	read := func(r io.Reader) error {
		var n uint64
		if err := binary.Read(r, binary.BigEndian, &n); err != nil {
			return err
		}
		m.at("restore")
		if m.mode == "unreadable" {
			return errors.New("saved by a later version")
		}
		total := 0
		got, want, p := make([]byte, 20<<10), make([]byte, 20<<10), pattern{}
		for {
			k, err := r.Read(got)
			p.Read(want[:k])
			if !bytes.Equal(got[:k], want[:k]) {
				return fmt.Errorf("other bytes after %d", total)
			}
			total += k
			if err == io.EOF && total == *carry {
				count.Store(n)
				return nil
			}
			if err != nil {
				return fmt.Errorf("after %d bytes: %w", total, err)
			}
		}
	}
	restore := func(_ context.Context, r io.Reader) error {
		err := read(r)
		if *carryLess && errors.Is(err, grace.ErrState) {
			fmt.Printf("goes on without state pid=%d: %v\n", os.Getpid(), err)
			return nil
		}
		return err
	}
	return []grace.Option{grace.CarryState(save, restore)}
}

// A pattern gives bytes that depend on where they are.
type pattern struct{ at uint32 }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.at * 2654435761 >> 24)
		p.at++
	}
	return len(b), nil
}
