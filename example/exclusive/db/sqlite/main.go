// Sqlite keeps what clients give it in an SQLite database with a single writer, itself, and replaces itself.
//
//	cd example/exclusive/db && go build -o ../sqlite.app ./sqlite
//	GRACE_PIDFILE=sqlite.pid ../sqlite.app
//	curl -d apples localhost:9000/add
//	kill -USR2 $(cat sqlite.pid)
//	curl localhost:9000/all
//
// The connection holds SQLite's lock from open to close (locking_mode=EXCLUSIVE).
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/julofinance/grace/v3"
	_ "modernc.org/sqlite"
)

func main() {
	addr := flag.String("http", "localhost:9000", "`host:port` to listen on")
	s := &store{}
	flag.StringVar(&s.path, "file", "sqlite.db", "the database's `file`")
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
	db   *sql.DB
}

func (s *store) open(ctx context.Context) error {
	db, err := sql.Open("sqlite", "file:"+s.path+"?_pragma=busy_timeout(5000)&_pragma=locking_mode(EXCLUSIVE)")
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1) // one connection, which has the lock
	_, err = db.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS entries (entry TEXT NOT NULL); DELETE FROM entries WHERE false")
	switch broken {
	case "open":
		err = errors.Join(err, errors.New("this version can't read the database"))
	case "die":
		os.Exit(3)
	case "die later":
		time.AfterFunc(30*time.Millisecond, func() { os.Exit(3) })
	}
	if err != nil {
		return errors.Join(err, db.Close())
	}
	s.db = db
	return nil
}

func (s *store) close(context.Context) error { return s.db.Close() }

// add returns nil when the entry is on the disk.
func (s *store) add(entry string) error {
	_, err := s.db.Exec("INSERT INTO entries (entry) VALUES (?)", entry)
	return err
}

func (s *store) all(w io.Writer) error {
	rows, err := s.db.Query("SELECT entry FROM entries")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var entry string
		if err := rows.Scan(&entry); err != nil {
			return err
		}
		fmt.Fprintln(w, entry)
	}
	return rows.Err()
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
