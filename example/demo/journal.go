//go:build unix

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// An entry is one log line of one of the generations.
type entry struct {
	Time     time.Time
	Msg      string
	From     int // pid
	Pid      int
	New, Old int // pids
	Addr     string
	TLS      string // an address too
	Took     time.Duration
	Err      string
	Moved    int
	Finished int
	Waited   int
	Cut      int
}

// A journal keeps what all generations write, until the last one has ended.
type journal struct {
	verbose bool

	mu      sync.Mutex
	changed chan struct{} // closed when entries or ended change
	entries []entry
	next    int      // of entries: the first that was not looked at
	other   []string // lines that are no entries, panics say
	ended   bool
}

func newJournal(verbose bool) *journal {
	return &journal{verbose: verbose, changed: make(chan struct{})}
}

// read reads until all processes have closed the other end.
func (j *journal) read(r io.ReadCloser) {
	defer r.Close()
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line = strings.TrimSpace(line); line != "" {
			j.add(line)
		}
		if err != nil {
			j.change(func() { j.ended = true })
			return
		}
	}
}

func (j *journal) add(line string) {
	if j.verbose {
		fmt.Fprintln(os.Stderr, line)
	}
	var e entry
	isEntry := json.Unmarshal([]byte(line), &e) == nil && e.Msg != ""
	j.change(func() {
		if isEntry {
			j.entries = append(j.entries, e)
		} else if j.other = append(j.other, line); len(j.other) > 50 {
			j.other = j.other[1:]
		}
	})
}

func (j *journal) change(f func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f()
	close(j.changed)
	j.changed = make(chan struct{})
}

// each calls f for each entry that was not looked at yet, and for those to come,
// until it says that this is enough.
func (j *journal) each(limit time.Duration, f func(entry) (enough bool)) error {
	end := time.NewTimer(limit)
	defer end.Stop()
	for {
		j.mu.Lock()
		for j.next < len(j.entries) {
			e := j.entries[j.next]
			j.next++
			if f(e) {
				j.mu.Unlock()
				return nil
			}
		}
		changed, ended := j.changed, j.ended
		j.mu.Unlock()
		if ended {
			return fmt.Errorf("no server is left; the last words: %s", j.lastWords())
		}
		select {
		case <-changed:
		case <-end.C:
			return fmt.Errorf("nothing happened for %v; the last words: %s", limit, j.lastWords())
		}
	}
}

// waitEnd waits until no process is left that could write.
func (j *journal) waitEnd(limit time.Duration) bool {
	end := time.NewTimer(limit)
	defer end.Stop()
	for {
		j.mu.Lock()
		changed, ended := j.changed, j.ended
		j.mu.Unlock()
		if ended {
			return true
		}
		select {
		case <-changed:
		case <-end.C:
			return false
		}
	}
}

func (j *journal) lastWords() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var words []string
	for _, e := range j.entries[max(0, len(j.entries)-5):] {
		words = append(words, fmt.Sprintf("%d: %s %s", e.From, e.Msg, e.Err))
	}
	return strings.Join(append(words, j.other...), "\n  ")
}
