package tls13

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// A transcript collects what a program prints.
type transcript struct {
	mu sync.Mutex
	b  bytes.Buffer
	up chan struct{} // has an element when there is more
}

func newTranscript() *transcript { return &transcript{up: make(chan struct{}, 1)} }

func (w *transcript) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b.Write(p)
	select {
	case w.up <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (w *transcript) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// await waits until the text was printed n times.
func (w *transcript) await(t *testing.T, text string, n int) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for strings.Count(w.String(), text) < n {
		select {
		case <-w.up:
		case <-limit.C:
			t.Fatalf("openssl has not printed %q %d times within %v:\n%s", text, n, patience, w)
		}
	}
}

// TestOpenSSL serves s_client, which changes its keys before and after each of ten moves,
// once by itself and once so that the server has to do the same.
func TestOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatalf("%v: this test needs the program openssl, of the package of that name", err)
	}
	for _, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"} {
		t.Run(suite, func(t *testing.T) {
			ln := get(net.Listen("tcp", "127.0.0.1:0"))(t)
			defer ln.Close()
			cmd := exec.Command(openssl, "s_client", "-connect", ln.Addr().String(), "-servername", testName, "-tls1_3", "-alpn", protoHTTP1, "-ciphersuites", suite, "-no_ign_eof")
			out := newTranscript()
			cmd.Stdout, cmd.Stderr = out, out
			in := get(cmd.StdinPipe())(t)
			check(t, cmd.Start())
			defer cmd.Wait()
			defer cmd.Process.Kill()

			raw := get(ln.Accept())(t)
			defer raw.Close()
			raw.SetDeadline(time.Now().Add(patience))
			below := &fence{Conn: raw}
			server := tls.Server(below, serverConfig())
			check(t, server.Handshake())
			out.await(t, "Verify return code", 1) // lines are read from now on
			if suite == "TLS_CHACHA20_POLY1305_SHA256" {
				if _, err := Extract(server); err == nil || !strings.Contains(err.Error(), "only those with AES-GCM can be moved") {
					t.Errorf("extracted with %s: %v", suite, err)
				}
				return
			}
			updates := 0
			line := func(c net.Conn, text string) {
				t.Helper()
				get(io.WriteString(in, text+"\n"))(t)
				got := get(bufio.NewReaderSize(c, len(text)+1).ReadString('\n'))(t)
				if got != text+"\n" {
					t.Fatalf("%q came, not %q", got, text)
				}
				get(fmt.Fprintf(c, "answer to %s.\n", text))(t)
				out.await(t, "answer to "+text+".", 1)
			}
			update := func(command string) {
				t.Helper()
				updates++
				get(io.WriteString(in, command+"\n"))(t)
				out.await(t, "KEYUPDATE", updates)
			}
			line(server, "first")
			update("K")
			update("k")
			line(server, "second")
			s := get(Extract(server))(t)
			below.shut.Store(true)
			if len(s.In.Secret) != 32 && suite == "TLS_AES_128_GCM_SHA256" || tls.CipherSuiteName(s.Suite) != suite {
				t.Errorf("%v was extracted", s)
			}
			c := resume(t, raw, s)
			for i := range 10 {
				line(c, fmt.Sprint("move ", i))
				if i%2 == 0 {
					update("K")
				} else {
					update("k")
				}
				line(c, fmt.Sprint("after ", i))
				if i%3 == 0 {
					check(t, c.updateKeys(i%2 == 0)) // openssl answers
					line(c, fmt.Sprint("ours ", i))
				}
				c = again(t, c)
			}
			get(io.WriteString(in, "Q\n"))(t)
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after openssl has closed: %v", err)
			}
			check(t, c.Close())
		})
	}
}
