//go:build unix

package grace_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"

	"github.com/julofinance/grace/v3"
)

// A server of packets, by the methods of a net.UDPConn that it calls.
func ExampleUpgrader_ListenPacket() {
	u, err := grace.New(quiet)
	if err != nil {
		log.Fatal(err)
	}
	pc, err := u.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	conn := pc.(interface {
		ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
		WriteToUDPAddrPort(b []byte, addr netip.AddrPort) (int, error)
	})
	served := make(chan struct{})
	go func() {
		defer close(served)
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b) // waits until Ready
			if errors.Is(err, net.ErrClosed) {
				return // this process has handed over, or was stopped
			}
			if err != nil {
				log.Print(err)
				continue
			}
			conn.WriteToUDPAddrPort(append([]byte("you said "), b[:n]...), from)
		}
	}()

	// Elsewhere: a client, then the stop that SIGTERM would ask for.
	go func() {
		c, err := net.Dial("udp", pc.LocalAddr().String())
		if err != nil {
			log.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "hello")
		answer := make([]byte, 1500)
		n, _ := c.Read(answer)
		fmt.Println(string(answer[:n]))
		u.Shutdown(context.Background())
	}()

	err = u.Run(context.Background())
	<-served
	fmt.Println("ended:", err)
	// Output:
	// you said hello
	// ended: <nil>
}
