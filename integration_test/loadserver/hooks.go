package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/load"
)

type key string

// begun counts the requests for /sized that this process has begun. A client
// that was told that its request was not begun can be believed if the counts of
// all processes add up to what clients got answers to.
var begun atomic.Int64

func insistent(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "keep-alive")
		h.ServeHTTP(w, r)
	})
}

// hooked makes a server that writes down how net/http's hooks are called. For
// /hooks it answers with what BaseContext and ConnContext have put into the
// request's context, and what ConnState was told of the connection until then.
func hooked(name string) *http.Server {
	var mu sync.Mutex
	states := map[net.Conn][]string{}
	mux := http.NewServeMux()
	all := load.Handler()
	if *insist {
		all = insistent(all)
	}
	mux.Handle("/", all)
	mux.HandleFunc("/sized", func(w http.ResponseWriter, r *http.Request) {
		begun.Add(1)
		all.ServeHTTP(w, r)
	})
	mux.HandleFunc("/readyz", grace.Readiness)
	mux.HandleFunc("/hooks", func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		conn, _ := ctx.Value(key("conn")).(net.Conn)
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(w, "pid=%d base=%v conn=%v states=%s\n", os.Getpid(), ctx.Value(key("base")), conn.RemoteAddr(), strings.Join(states[conn], ","))
	})
	srv := &http.Server{
		Handler: sickHandler(mux),
		BaseContext: func(ln net.Listener) context.Context {
			return context.WithValue(context.Background(), key("base"), ln.Addr())
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, key("conn"), c)
		},
		ConnState: func(c net.Conn, s http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			states[c] = append(states[c], s.String())
			if s == http.StateClosed || s == http.StateHijacked {
				if os.Getenv("LOADSERVER_STATES") != "" {
					fmt.Printf("conn %s pid=%d %v %s\n", name, os.Getpid(), c.RemoteAddr(), strings.Join(states[c], ","))
				}
				delete(states, c)
			}
		},
	}
	srv.RegisterOnShutdown(func() { fmt.Printf("shutdown %s pid=%d\n", name, os.Getpid()) })
	return srv
}
