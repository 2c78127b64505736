//go:build unix

package grace_test

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3"
)

// BenchmarkPackets: packets per second that a wildcard socket echoes to several clients,
// ours divided by that of a plain net.UDPConn of the same seconds: short slices take
// turns, and ratio is the median of the slices' own. Ours answers from the address that
// was asked, which costs two longer system calls and a look into a table.
func BenchmarkPackets(b *testing.B) {
	u, err := grace.New(grace.NoSignals(), grace.Logger(nil), grace.PIDFile(""))
	if err == nil {
		err = u.Ready()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { u.Close() })
	plain, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		b.Fatal(err)
	}
	ours, err := u.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		b.Fatal(err)
	}
	ofPlain, ofOurs := echoSlices(b, plain), echoSlices(b, ours)
	ofPlain()
	ofOurs() // warm
	b.ResetTimer()
	var ratios, base []float64
	for turn := range 200 {
		var p, o float64
		if turn%2 == 0 {
			p, o = ofPlain(), ofOurs()
		} else {
			o, p = ofOurs(), ofPlain()
		}
		if p > 0 { // else the machine had no time for it
			ratios, base = append(ratios, o/p), append(base, p)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(middle(ratios), "ratio")
	b.ReportMetric(middle(base), "plain-packets/s")
}

func middle(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(v))[len(v)/2]
}

// echoSlices echoes what pc gets, and gives what measures a slice of that.
func echoSlices(b *testing.B, pc net.PacketConn) (perSecond func() float64) {
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:n], from) // an error is the client's to notice
		}
	}()
	b.Cleanup(func() { pc.Close() })
	clients := make([]net.Conn, 4)
	for i := range clients {
		c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: pc.LocalAddr().(*net.UDPAddr).Port})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		clients[i] = c
	}
	return func() float64 {
		var echoed atomic.Int64
		var all sync.WaitGroup
		begun := time.Now()
		for _, c := range clients {
			all.Go(func() {
				var buf [64]byte
				for time.Since(begun) < 20*time.Millisecond {
					if _, err := c.Write(buf[:]); err != nil {
						b.Error(err)
						return
					}
					if _, err := c.Read(buf[:]); err != nil {
						b.Error(err)
						return
					}
					echoed.Add(1)
				}
			})
		}
		all.Wait()
		return float64(echoed.Load()) / time.Since(begun).Seconds()
	}
}
