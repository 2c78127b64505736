package tls13

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"testing"
	"time"
)

// BenchmarkRecordLayer compares our record layer with that of crypto/tls, in turns within
// one run: the same records with the same keys, without a network. ratio is our
// throughput divided by that of crypto/tls.
//
//	go test -run - -bench RecordLayer ./internal/tls13
func BenchmarkRecordLayer(b *testing.B) {
	const batch = 64
	for _, c := range []struct {
		name string
		size int
	}{{"1KB", 1 << 10}, {"16KB", maxPlaintext}} {
		data := make([]byte, c.size)
		b.Run("write/"+c.name, func(b *testing.B) {
			sc := newScene(b)
			write := func(w io.Writer, wire *script) func() {
				return func() {
					for range batch {
						get(w.Write(data))(b)
					}
					wire.out.Reset()
				}
			}
			contest(b, batch*c.size, nil, write(sc.oracle, sc.oracleWire), write(sc.ours, sc.oursWire))
		})
		b.Run("read/"+c.name, func(b *testing.B) {
			sc := newScene(b)
			buf := make([]byte, c.size)
			read := func(r io.Reader) func() {
				return func() {
					for range batch {
						get(io.ReadFull(r, buf))(b)
					}
				}
			}
			contest(b, batch*c.size, func() {
				for range batch {
					sc.feed(sc.client.record(b, recordData, data, 0))
				}
			}, read(sc.oracle), read(sc.ours))
		})
	}
}

// BenchmarkTCP is the same over TCP, with a client in crypto/tls: a request of 1 KB and a
// response of 8 KB, as with keep-alive, and a stream.
func BenchmarkTCP(b *testing.B) {
	for _, c := range []struct {
		name        string
		ask, answer int
		rounds      int
	}{{"keep-alive", 1 << 10, 8 << 10, 100}, {"stream", 1, 8 << 20, 1}} {
		b.Run(c.name, func(b *testing.B) {
			run := func(client, server net.Conn) func() {
				asked, answered := make([]byte, c.ask), make([]byte, c.answer)
				buf := make([]byte, 32<<10)
				return func() {
					done := make(chan error, 1)
					go func() {
						for range c.rounds {
							if _, err := io.ReadFull(server, buf[:c.ask]); err != nil {
								done <- err
								return
							}
							if _, err := server.Write(answered); err != nil {
								done <- err
								return
							}
						}
						done <- nil
					}()
					for range c.rounds {
						get(client.Write(asked))(b)
						get(io.CopyN(io.Discard, client, int64(c.answer)))(b)
					}
					check(b, <-done)
				}
			}
			oracle, ours := connect(b, clientConfig(), serverConfig()), connect(b, clientConfig(), serverConfig())
			moved := resume(b, ours.fence.Conn, ours.extract(b))
			// Neither end has the recorder of the tests below it.
			oracle.fence.Conn, moved.conn = oracle.below.Conn, ours.below.Conn
			for _, p := range []*couple{oracle, ours} {
				p.below.Conn.SetDeadline(time.Time{})
				p.client.SetDeadline(time.Time{})
			}
			contest(b, c.rounds*(c.ask+c.answer), nil, run(oracle.client, oracle.server), run(ours.client, moved))
		})
	}
}

// contest runs both in turns and compares the medians, so that what else the machine does
// is in neither.
func contest(b *testing.B, bytes int, before, oracle, ours func()) {
	runs := [2]func(){oracle, ours}
	var spent [2][]time.Duration
	b.ResetTimer()
	for i := range b.N {
		if before != nil {
			b.StopTimer()
			before()
			b.StartTimer()
		}
		for j := range runs {
			k := (i + j) % 2
			start := time.Now()
			runs[k]()
			spent[k] = append(spent[k], time.Since(start))
		}
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return d[len(d)/2].Seconds()
	}
	theirs, mine := median(spent[0]), median(spent[1])
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(bytes)/1e6/theirs, "crypto/tls-MB/s")
	b.ReportMetric(float64(bytes)/1e6/mine, "ours-MB/s")
	b.ReportMetric(theirs/mine, "ratio")
}

// BenchmarkMove is all that moving a connection takes in both processes, without the
// descriptor: out of crypto/tls and out of our record layer.
func BenchmarkMove(b *testing.B) {
	over := func(b *testing.B, s State) *Conn {
		encoded := get(s.Encode())(b)
		s.Wipe()
		o := get(Decode(encoded))(b)
		clear(encoded)
		cs := get(o.ConnectionState())(b)
		return get(New(&script{}, &o, cs))(b)
	}
	perSecond := func(b *testing.B) { b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "moves/s") }
	b.Run("crypto/tls", func(b *testing.B) {
		p := connect(b, clientConfig(), serverConfig())
		b.ReportAllocs()
		for b.Loop() {
			over(b, get(Extract(p.server))(b))
		}
		perSecond(b)
	})
	b.Run("again", func(b *testing.B) {
		c := connect(b, clientConfig(), serverConfig()).move(b)
		b.ReportAllocs()
		for b.Loop() {
			c = over(b, get(c.Extract())(b))
		}
		perSecond(b)
	})
}

// BenchmarkCovers is the check of the process that takes a connection.
func BenchmarkCovers(b *testing.B) {
	cert := worldCert()
	parsed := cert
	parsed.Leaf = parse(b, cert.Certificate[0])
	for name, config := range map[string]*tls.Config{
		"one certificate": {Certificates: []tls.Certificate{parsed}},
		"function":        {GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &parsed, nil }},
	} {
		b.Run(name, func(b *testing.B) {
			s := plainState()
			for b.Loop() {
				_, err := Covers(context.Background(), &script{}, &s, config)
				check(b, err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "checks/s")
		})
	}
}

// TestMoveCopiesLittle bounds what a plain connection costs to move.
func TestMoveCopiesLittle(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	s := get(Extract(p.server))(t)
	encoded := get(s.Encode())(t)
	if len(encoded) > 204 || !bytes.HasPrefix(encoded, []byte{stateVersion}) {
		t.Errorf("a plain connection is %d bytes", len(encoded))
	}
}
