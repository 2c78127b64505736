package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/integration_test/server/early"
)

// Flags of the tests of sockets, files and the environment.
var (
	firstOnly, laterOnly, onlyHTTP1, onlyHTTP2 addrs

	many         = flag.Int("many", 0, "so many more raw listeners on port 0")
	laterPackets = flag.Int("packet2", 0, "so many more sockets of later generations on the address of the first -packet")
	reusePort    = flag.Bool("reuseport", false, "open sockets with SO_REUSEPORT")
	chdir        = flag.String("chdir", "", "directory to change to once it serves")
	fileName     = flag.String("file", "", "file that the first generation opens and hands over; /file reads two bytes of it")
	connAddr     = flag.String("conn", "", "network=addr that the first generation dials and hands over; /conn writes its generation to it")
	laterPID     = flag.String("later-pidfile", "", "PID file of later generations; none: a single dash")
	blocking     = flag.Bool("blocking", false, "take copies of the descriptors of -raw and -packet sockets and of -rights connections by Fd, which makes them blocking")
	probe        = flag.Bool("probe", false, "print the environment and the descriptors of a child started before New")
)

func init() {
	flag.Var(&firstOnly, "raw1", "-raw of the first generation alone")
	flag.Var(&laterOnly, "raw2", "-raw of all later ones")
	flag.Var(&onlyHTTP1, "http1", "-http of the first generation alone")
	flag.Var(&onlyHTTP2, "http2", "-http of all later ones")
}

// socketOptions are those that these flags ask for.
func socketOptions() (opts []grace.Option) {
	if *probe {
		early.Probe()
	}
	if *reusePort {
		opts = append(opts, grace.ListenConfig(net.ListenConfig{Control: setReusePort}))
	}
	if *pidFile != "" { // else GRACE_PIDFILE counts
		opts = append(opts, grace.PIDFile(*pidFile))
	}
	switch {
	case *laterPID == "" || os.Getenv(generationVariable) == "":
	case *laterPID == "-":
		opts = append(opts, grace.PIDFile(""))
	default:
		opts = append(opts, grace.PIDFile(*laterPID))
	}
	os.Setenv(generationVariable, "later")
	return opts
}

// generationVariable is how a process knows before New that it is not the first.
const generationVariable = "TEST_LATER"

// listenMore changes what is listened on, and takes what was handed over.
func listenMore(u *grace.Upgrader) (others []func() error, err error) {
	if u.HasParent() {
		rawAddrs = append(rawAddrs, laterOnly...)
		httpAddrs = append(httpAddrs, onlyHTTP2...)
	} else {
		rawAddrs = append(rawAddrs, firstOnly...)
		httpAddrs = append(httpAddrs, onlyHTTP1...)
	}
	var listening []string
	for range *many {
		ln, err := u.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		listening = append(listening, ln.Addr().String())
		others = append(others, func() error { return serveRaw(u, ln) })
	}
	if *many > 0 {
		fmt.Printf("many pid=%d %s\n", os.Getpid(), strings.Join(listening, " "))
	}
	for _, listen := range listenElse {
		if err := listen(u); err != nil {
			return nil, err
		}
	}
	if err := takeExtras(u); err != nil {
		return nil, err
	}
	if *chdir != "" {
		return others, os.Chdir(*chdir)
	}
	return others, nil
}

// listenElse is for what only some systems have.
var listenElse []func(*grace.Upgrader) error

var (
	theFile *os.File
	theConn net.Conn
)

// makeBlocking takes a copy of the descriptor of s, and keeps it.
func makeBlocking(s any) error {
	if !*blocking {
		return nil
	}
	f, err := s.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return err
	}
	f.Fd()
	copies = append(copies, f)
	return nil
}

var copies []*os.File

func takeExtras(u *grace.Upgrader) (err error) {
	if *fileName != "" {
		if theFile, err = u.File("data"); err == nil && theFile == nil && !u.HasParent() {
			if theFile, err = os.Open(*fileName); err == nil {
				err = u.AddFile("data", theFile)
			}
		}
	}
	if err == nil && *connAddr != "" {
		if theConn, err = u.Conn("peer"); err == nil && theConn == nil && !u.HasParent() {
			network, addr, _ := strings.Cut(*connAddr, "=")
			if theConn, err = net.Dial(network, addr); err == nil {
				err = u.AddConn("peer", theConn)
			}
		}
	}
	return err
}

// socketHandlers serve what was handed over.
func socketHandlers(mux *http.ServeMux, u *grace.Upgrader) {
	var mu sync.Mutex
	mux.HandleFunc("/block", func(w http.ResponseWriter, r *http.Request) {
		for _, f := range copies { // again: the other generation has made them non-blocking
			f.Fd()
		}
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		b := make([]byte, 2)
		if theFile == nil {
			fmt.Fprintln(w, "no file")
		} else if _, err := io.ReadFull(theFile, b); err != nil {
			fmt.Fprintln(w, err)
		} else {
			fmt.Fprintf(w, "%s in generation %d\n", b, u.Generation())
		}
	})
	mux.HandleFunc("/conn", func(w http.ResponseWriter, r *http.Request) {
		if theConn == nil {
			fmt.Fprintln(w, "no connection")
			return
		}
		fmt.Fprintf(theConn, "generation %d\n", u.Generation())
	})
}
