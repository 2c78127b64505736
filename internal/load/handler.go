package load

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Handler serves what the kinds ask for. Each answer has the header X-Pid.
func Handler() http.Handler {
	pid := strconv.Itoa(os.Getpid())
	mux := http.NewServeMux()
	mux.HandleFunc("POST /echo", echoHandler)
	mux.HandleFunc("POST /sum", sumHandler)
	mux.HandleFunc("GET /slow", slowHandler)
	mux.HandleFunc("GET /sized", sizedHandler)
	mux.HandleFunc("GET /chunked", chunkedHandler)
	mux.HandleFunc("GET /stream", streamHandler)
	mux.Handle("GET /together", &gathering{})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Pid", pid)
		mux.ServeHTTP(w, r)
	})
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return body, err == nil
}

func write(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body)
}

func echoHandler(w http.ResponseWriter, r *http.Request) {
	if body, ok := readBody(w, r); ok {
		write(w, body)
	}
}

func sumHandler(w http.ResponseWriter, r *http.Request) {
	if body, ok := readBody(w, r); ok {
		write(w, []byte(sum(body)))
	}
}

// slowHandler takes its time even if the client has closed its half, which
// ends the request's context.
func slowHandler(w http.ResponseWriter, r *http.Request) {
	ms, _ := strconv.Atoi(r.FormValue("ms"))
	time.Sleep(time.Duration(ms) * time.Millisecond)
	write(w, []byte(r.FormValue("say")))
}

func sizedHandler(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.FormValue("n"))
	if r.FormValue("hints") != "" {
		w.WriteHeader(http.StatusEarlyHints)
	}
	tag := fmt.Sprintf("%q", strconv.Itoa(n))
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	write(w, []byte(strings.Repeat(".", n)))
}

func chunkedHandler(w http.ResponseWriter, r *http.Request) {
	for range 5 {
		fmt.Fprintf(w, "%s\n", r.FormValue("say"))
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// streamHandler echoes lines until the client closes its half, and says how
// many there were.
func streamHandler(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotImplemented)
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Pid: %d\r\n\r\n", os.Getpid())
	for n := 0; ; n++ {
		line, err := rw.ReadString('\n')
		if err == io.EOF && line == "" {
			fmt.Fprintf(conn, "end %d\n", n)
			return
		}
		if err != nil {
			return
		}
		if _, err := io.WriteString(conn, line); err != nil {
			return
		}
	}
}

// A gathering lets n requests wait for each other, and answers when all are there: a proxy
// needs n connections for them.
type gathering struct {
	mu     sync.Mutex // guards what follows
	waits  int
	gather chan struct{} // closed when the last one has come; nil if none waits
}

func (g *gathering) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.FormValue("n"))
	g.mu.Lock()
	if g.gather == nil {
		g.gather = make(chan struct{})
	}
	all := g.gather
	if g.waits++; g.waits >= n {
		close(all)
		g.waits, g.gather = 0, nil
	}
	g.mu.Unlock()
	select {
	case <-all:
		write(w, []byte(r.FormValue("say")))
	case <-r.Context().Done():
	}
}
