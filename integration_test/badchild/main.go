// Badchild is a program that is started as the new process of a hand-over and
// breaks its rules. BADCHILD says how.
package main

import (
	"fmt"
	"net"
	"os"
	"strings"
)

func main() {
	var ready, control int
	for _, field := range strings.Split(os.Getenv("GRACE_HANDOVER"), ",") {
		fmt.Sscanf(field, "ready=%d", &ready)
		fmt.Sscanf(field, "control=%d", &control)
	}
	if ready == 0 || control == 0 {
		fmt.Fprintln(os.Stderr, "badchild: no descriptors were passed")
		os.Exit(2)
	}
	pipe := os.NewFile(uintptr(ready), "readiness pipe")
	file := os.NewFile(uintptr(control), "control channel")
	channel, err := net.FileConn(file)
	if err != nil {
		fmt.Fprintln(os.Stderr, "badchild:", err)
		os.Exit(2)
	}
	file.Close()
	mode := os.Getenv("BADCHILD")
	fmt.Printf("badchild %s pid=%d\n", mode, os.Getpid())
	switch mode {
	case "garbage":
		pipe.WriteString("hello, world\n")
	case "endless-garbage": // without an end of line
		for {
			if _, err := pipe.Write(make([]byte, 4096)); err != nil {
				break
			}
		}
	case "half-line":
		pipe.WriteString("rea")
	case "other-version":
		pipe.WriteString("ready 99\n")
	case "close-pipe":
		pipe.Close()
	case "close-pipe-and-exit":
		pipe.Close()
		os.Exit(5)
	case "close-channel":
		channel.Close()
	case "ready-without-claims":
		pipe.WriteString("ready 1\n")
	case "ready-and-exit":
		pipe.WriteString("ready 1\n")
		os.Exit(6)
	case "garbage-on-channel":
		channel.Write([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	case "bad-claims":
		channel.Write(frame('R', "this is no JSON"))
	case "claims-out-of-range":
		channel.Write(frame('R', "\nsocket=1000000\nsocket=0\nsocket=0\n"))
	case "accepting-at-once": // before go was said
		channel.Write(frame('A', ""))
	case "unknown-message":
		channel.Write(frame('?', "what is this"))
	case "stop-at-once":
		channel.Write(frame('S', `{"now":true}`))
	default:
		fmt.Fprintf(os.Stderr, "badchild: BADCHILD=%q is unknown\n", mode)
		os.Exit(2)
	}
	<-make(chan struct{})
}

func frame(typ byte, payload string) []byte {
	n := len(payload)
	return append([]byte{typ, 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, payload...)
}
