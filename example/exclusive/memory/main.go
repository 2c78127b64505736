// Memory counts words in memory, which it reads from a file when it starts to serve and
// writes when it ends, and replaces itself: no count is lost, and none is written twice.
//
// That holds for a process that ends in order. If one dies, what it has counted since it
// began to serve is lost, acknowledged or not. Where that must not be, write each word to
// the file before it is acknowledged, as the journal example does.
//
//	go build -o memory ./example/exclusive/memory && GRACE_PIDFILE=memory.pid ./memory
//	curl -d apples localhost:9000/add
//	kill -USR2 $(cat memory.pid)
//	curl localhost:9000/all
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/julofinance/grace/v3"
)

func main() {
	addr := flag.String("http", "localhost:9000", "`host:port` to listen on")
	w := &words{}
	flag.StringVar(&w.path, "file", "words.json", "where the words are kept, as `file`")
	probation := flag.Duration("probation", time.Second, "how long the old version stands by")
	flag.Parse()
	u, err := grace.New(grace.Exclusive(w.load, w.save), grace.Probation(*probation))
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening", ln.Addr())
	srv := &http.Server{Handler: w.handler(), ReadHeaderTimeout: 10 * time.Second}
	u.HTTP(srv, ln)
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// words belong to the process that serves. Between save and load they are in the file
// alone.
type words struct {
	path string
	mu   sync.Mutex
	m    map[string]int // nil: not loaded
}

// broken is set by the tests, at the linker: how a new version fails.
var broken string

func (w *words) load(context.Context) error {
	m := map[string]int{}
	b, err := os.ReadFile(w.path)
	if err == nil {
		err = json.Unmarshal(b, &m)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil // the first start
	}
	if err == nil && broken == "open" {
		err = errors.New("this version can't read the words")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.m = m
	}
	return err
}

func (w *words) save(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, err := json.Marshal(w.m)
	if err == nil {
		err = os.WriteFile(w.path+".new", b, 0o644)
	}
	if err == nil {
		err = os.Rename(w.path+".new", w.path)
	}
	w.m = nil
	return err
}

func (w *words) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add", func(rw http.ResponseWriter, r *http.Request) {
		word, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, 1000))
		w.mu.Lock()
		defer w.mu.Unlock()
		if err == nil && w.m == nil {
			err = errors.New("the words are not here")
		}
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		w.m[string(word)]++
		fmt.Fprintln(rw, "ok")
	})
	mux.HandleFunc("GET /all", func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for word, n := range w.m {
			for range n {
				fmt.Fprintln(rw, word)
			}
		}
	})
	return mux
}
