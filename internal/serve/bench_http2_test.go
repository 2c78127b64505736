//go:build unix

package serve

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/http2test"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// BenchmarkHTTP2 prints how many answers a server of ours gives in a second, by HTTP/2,
// and the ratio of that to what net/http alone does, which takes turns with it: small
// answers, 16 at a time on a connection, and large ones. The client does as little as
// can be, and is in the same process.
func BenchmarkHTTP2(b *testing.B) {
	for _, overTLS := range []bool{false, true} {
		way := map[bool]string{false: "h2c", true: "TLS"}[overTLS]
		for _, size := range []int{100, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%d", way, size), func(b *testing.B) { benchHTTP2(b, overTLS, size) })
		}
	}
}

func benchHTTP2(b *testing.B, overTLS bool, size int) {
	cert, trust := tlstest.Certificate(b)
	body := bytes.Repeat([]byte("."), size)
	server := func() *http.Server {
		srv := &http.Server{
			Protocols: new(http.Protocols), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }),
		}
		srv.Protocols.SetHTTP2(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
		return srv
	}
	// Ours.
	u, ours := newProcess(b)
	srv := server()
	execute := u.HTTP(srv, ours)
	if overTLS {
		execute = u.HTTPS(srv, ours, "", "")
	}
	served := u.run(b, execute)
	defer wait.For(b, served, "execute")
	defer u.askStop()
	// net/http alone.
	plain := server()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	serve := plain.Serve
	if overTLS {
		serve = func(ln net.Listener) error { return plain.ServeTLS(ln, "", "") }
	}
	go serve(ln)
	defer plain.Close()

	const clients, turns, slice = 2, 31, 100 * time.Millisecond
	atOnce := 16
	if size > 10000 {
		atOnce = 1
	}
	dial := func(addr net.Addr) (all []*http2Asker) {
		for range clients {
			all = append(all, dialAsker(b, addr, overTLS, trust))
		}
		return all
	}
	sides := [2][]*http2Asker{dial(ours.Addr()), dial(ln.Addr())}
	perSecond := func(side []*http2Asker) float64 {
		var all sync.WaitGroup
		var n [clients]int
		begun := time.Now()
		for i, a := range side {
			all.Go(func() {
				for time.Since(begun) < slice {
					a.ask(atOnce)
					n[i] += atOnce
				}
			})
		}
		all.Wait()
		sum := 0
		for _, n := range n {
			sum += n
		}
		return float64(sum) / time.Since(begun).Seconds()
	}
	var rates, ratios []float64
	for range b.N {
		for turn := range turns {
			var rate [2]float64
			for i := range sides {
				side := (i + turn) % 2
				rate[side] = perSecond(sides[side])
			}
			if turn > 0 { // warm from here on
				rates, ratios = append(rates, rate[0]), append(ratios, rate[0]/rate[1])
			}
		}
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(rates), "answers/s")
	b.ReportMetric(median(ratios), "ratio")
}

// An http2Asker is a client that does as little as can be.
type http2Asker struct {
	b    *testing.B
	c    net.Conn
	in   *bufio.Reader
	next uint32 // stream
	owed int    // bytes that the server may send again
	out  []byte
}

func dialAsker(b *testing.B, addr net.Addr, overTLS bool, trust *tls.Config) *http2Asker {
	b.Helper()
	c, err := net.DialTimeout("tcp", addr.String(), wait.Limit)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	if overTLS {
		trust := trust.Clone()
		trust.ServerName, trust.NextProtos = "127.0.0.1", []string{"h2"}
		c = tls.Client(c, trust)
	}
	a := &http2Asker{b: b, c: c, in: bufio.NewReaderSize(c, 64<<10), next: 1}
	// Windows as large as can be, see http2test.
	a.out = http2test.AppendFrame([]byte(http2test.Preface), frameSettings, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff)
	a.out = http2test.AppendFrame(a.out, 8, 0, 0, 0x7f, 0xff, 0, 0)
	return a
}

// ask sends requests, and waits until all are answered. Settings are not acknowledged.
func (a *http2Asker) ask(n int) {
	const endStream, endHeaders = 1, 4
	for range n {
		// GET, https and / (RFC 7541, appendix A), and an authority.
		a.out = http2test.AppendFrame(a.out, 1, endStream|endHeaders, a.next, 0x82, 0x87, 0x84, 0x01, 1, 'a')
		a.next += 2
	}
	if a.owed > 1<<24 {
		a.out = http2test.AppendFrame(a.out, 8, 0, 0, binary.BigEndian.AppendUint32(nil, uint32(a.owed))...)
		a.owed = 0
	}
	if _, err := a.c.Write(a.out); err != nil {
		a.b.Error(err)
		return
	}
	a.out = a.out[:0]
	for n > 0 {
		head, err := a.in.Peek(9)
		if err != nil {
			a.b.Error(err)
			return
		}
		size, typ, flags := int(binary.BigEndian.Uint32(head)>>8), head[3], head[4]
		if typ == frameGoAway {
			a.b.Error("GOAWAY")
			return
		}
		if typ == 0 {
			a.owed += size
		}
		if typ <= 1 && flags&endStream != 0 {
			n--
		}
		if _, err := io.CopyN(io.Discard, a.in, int64(9+size)); err != nil {
			a.b.Error(err)
			return
		}
	}
}
