//go:build unix

// Worker does two things that must be done by one process at a time, and replaces itself
// meanwhile: a job that is due every so often, and a queue that is consumed. Messages come
// by HTTP, and wait in a directory.
//
//	go build -o worker ./example/worker && GRACE_PIDFILE=worker.pid ./worker
//	curl -d hello localhost:9008
//	kill -USR2 $(cat worker.pid)
//
// The process that has the lock of a file does the work. The old one gives it back when it
// begins to drain, as Draining tells it: when the new one has proven itself. The new one has waited
// for it, and goes on. If the upgrade is rolled back, in the drain even, the old one takes
// the lock again: the kernel has given it back when the new process died.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3"
)

func main() {
	addr := flag.String("addr", "localhost:9008", "`host:port` to listen on")
	dir := flag.String("queue", "queue", "`directory` in which messages wait")
	every := flag.Duration("every", time.Minute, "how often the job is due")
	probation := flag.Duration("probation", time.Second, "how long the old version stands by")
	flag.Parse()
	if err := os.MkdirAll(*dir, 0o700); err != nil {
		log.Fatal(err)
	}
	w := &worker{ready: make(chan struct{}), back: make(chan struct{}, 1)}
	u, err := grace.New(grace.Probation(*probation), grace.Events(w.event))
	if err != nil {
		log.Fatal(err)
	}
	if w.lock, err = os.OpenFile(filepath.Join(*dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening", ln.Addr())
	u.HTTP(&http.Server{Handler: put(*dir)}, ln)
	over := make(chan struct{})
	go func() {
		defer close(over)
		w.work(u, func(until <-chan struct{}) { repeat(*every, until) }, func(until <-chan struct{}) { consume(*dir, until) })
	}()
	err = u.Run(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	<-over // what has begun is finished
}

// A worker works while this process is the one that should.
type worker struct {
	lock  *os.File
	ready chan struct{} // closed when this process serves
	back  chan struct{} // has an element after a roll back
}

func (w *worker) event(e grace.Event) {
	switch e.Kind {
	case grace.EventReady:
		close(w.ready)
	case grace.EventRolledBack:
		select {
		case w.back <- struct{}{}:
		default:
		}
	}
}

// work does the jobs whenever it has the lock, until Done is closed.
func (w *worker) work(u *grace.Upgrader, jobs ...func(until <-chan struct{})) {
	select {
	case <-w.ready:
	case <-u.Done():
		return
	}
	for {
		if err := flock(w.lock, syscall.LOCK_EX); err != nil {
			log.Fatal(err) // it is a local file: this does not happen
		}
		if draining := u.Draining(); !isClosed(draining) {
			fmt.Println("begin", os.Getpid())
			var all sync.WaitGroup
			for _, job := range jobs {
				all.Go(func() { job(draining) })
			}
			all.Wait()
			fmt.Println("end", os.Getpid())
		}
		flock(w.lock, syscall.LOCK_UN)
		for isClosed(u.Draining()) { // another channel after a roll back, and that is open
			select {
			case <-w.back: // maybe of an upgrade before, which had not come to a drain
			case <-u.Done():
				return
			}
		}
	}
}

// flock waits for the lock, in a thread of its own.
func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); err != syscall.EINTR {
			return err
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// repeat is the job that is due every so often.
func repeat(every time.Duration, until <-chan struct{}) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			fmt.Println("job", os.Getpid())
		case <-until:
			return
		}
	}
}

// consume takes one message after the other. One that is in work when the process is
// killed comes again.
func consume(dir string, until <-chan struct{}) {
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		names, _ := filepath.Glob(filepath.Join(dir, "*.msg"))
		for _, name := range names {
			if isClosed(until) {
				return
			}
			if text, err := os.ReadFile(name); err == nil {
				fmt.Printf("message %d %q\n", os.Getpid(), text)
				os.Remove(name)
			}
		}
		select {
		case <-look.C:
		case <-until:
			return
		}
	}
}

// put queues the body of a request.
func put(dir string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			return
		}
		f, err := os.CreateTemp(dir, "new-")
		if err == nil {
			_, err = f.Write(text)
			f.Close()
		}
		if err == nil {
			err = os.Rename(f.Name(), f.Name()+".msg") // all of it is there at once
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}
