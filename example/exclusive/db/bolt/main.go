// Bolt keeps what clients give it in a bbolt database, and replaces itself.
//
//	cd example/exclusive/db && go build -o ../bolt.app ./bolt
//	GRACE_PIDFILE=bolt.pid ../bolt.app
//	curl -d apples localhost:9000/add
//	kill -USR2 $(cat bolt.pid)
//	curl localhost:9000/all
//
// bbolt locks the file for one process: before the old one has closed it, Open waits.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/julofinance/grace/v3"
	"go.etcd.io/bbolt"
)

func main() {
	addr := flag.String("http", "localhost:9000", "`host:port` to listen on")
	s := &store{}
	flag.StringVar(&s.path, "file", "bolt.db", "the database's `file`")
	probation := flag.Duration("probation", time.Second, "how long the old version stands by")
	flag.Parse()
	u, err := grace.New(grace.Exclusive(s.open, s.close), grace.Probation(*probation))
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening", ln.Addr())
	u.HTTP(&http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}, ln)
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// broken is set by the tests, at the linker: how a new version fails.
var broken string

// A store is open from open to close. Handlers run in between only.
type store struct {
	path string
	db   *bbolt.DB
}

var bucket = []byte("entries")

func (s *store) open(ctx context.Context) error {
	end, _ := ctx.Deadline()
	db, err := bbolt.Open(s.path, 0o600, &bbolt.Options{Timeout: time.Until(end)})
	if err != nil {
		return err
	}
	switch broken {
	case "open":
		return errors.Join(errors.New("this version can't read the database"), db.Close())
	case "die":
		os.Exit(3)
	case "die later":
		time.AfterFunc(30*time.Millisecond, func() { os.Exit(3) })
	}
	s.db = db
	return db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	})
}

func (s *store) close(context.Context) error { return s.db.Close() }

// add returns nil when the entry is on the disk.
func (s *store) add(entry string) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).Put([]byte(entry), nil)
	})
}

func (s *store) all(w io.Writer) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(entry, _ []byte) error {
			_, err := fmt.Fprintf(w, "%s\n", entry)
			return err
		})
	})
}

func (s *store) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add", func(w http.ResponseWriter, r *http.Request) {
		entry, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1000))
		if err == nil {
			err = s.add(string(entry))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /all", func(w http.ResponseWriter, r *http.Request) {
		if err := s.all(w); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	return mux
}
