package main

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"time"
)

// streamHandlers are of streams that last until the client ends them.
func streamHandlers(mux *http.ServeMux) {
	mux.HandleFunc("/sse", sse)
	mux.HandleFunc("/websocket", websocket)
	mux.HandleFunc("/tunnel", tunnel)
	mux.HandleFunc("/garbage", garbage)
}

// sse sends events with the pid and a number that counts up.
func sse(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	for n := 1; r.Context().Err() == nil; n++ {
		fmt.Fprintf(w, "data: %d %d\n\n", os.Getpid(), n)
		if rc.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// websocket stands for one, as far as net/http knows of it: a hijacked connection. It
// answers each line with the pid and the line.
func websocket(w http.ResponseWriter, r *http.Request) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Pid: %d\r\n\r\n", os.Getpid())
	for lines := bufio.NewScanner(rw); lines.Scan(); {
		if _, err := fmt.Fprintf(c, "%d %s\n", os.Getpid(), lines.Text()); err != nil {
			return
		}
	}
}

// tunnel passes a request on to the address in to, and what the connection is upgraded
// to as well.
func tunnel(w http.ResponseWriter, r *http.Request) {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(&url.URL{Scheme: "http", Host: r.FormValue("to")}) },
		ModifyResponse: func(resp *http.Response) error {
			resp.Header.Set("X-Pid", strconv.Itoa(os.Getpid()))
			return nil
		},
	}
	proxy.ServeHTTP(w, r)
}

// garbage leaves so many MiB behind that were used once.
func garbage(w http.ResponseWriter, r *http.Request) {
	mib, _ := strconv.Atoi(r.FormValue("mib"))
	b := make([]byte, mib<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	fmt.Fprintln(w, os.Getpid(), len(b))
}
