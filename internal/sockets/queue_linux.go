package sockets

import (
	"golang.org/x/sys/unix"
)

// A queue is that of a listening TCP socket which was full at some moment. An edge-triggered
// epoll tells whether a connection has come since: none can while it is full. So if none has
// come, and it is full, then nothing was accepted.
//
// The kernel tells the length of the queue as tcpi_unacked, and its limit as tcpi_sacked
// (tcp_get_info in net/ipv4/tcp.c); ss(8) shows the same as Recv-Q and Send-Q. It takes a
// connection as long as the length is not above the limit (sk_acceptq_is_full). Unix sockets
// have no such option.
type queue struct {
	sock          *Socket
	network, addr string
	length        uint32
	epoll         int
}

// fullQueue is nil if the queue is not full, or it is not known whether it is.
func fullQueue(sock *Socket) *queue {
	l := sock.Listener
	if l == nil || l.Addr().Network() != "tcp" {
		return nil
	}
	q := &queue{sock: sock, network: "tcp", addr: l.Addr().String(), epoll: -1}
	if !q.isFull() {
		return nil
	}
	var err error
	if q.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil
	}
	cerr := sock.Control(func(n uintptr) {
		err = unix.EpollCtl(q.epoll, unix.EPOLL_CTL_ADD, int(n), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET})
	})
	// The first event is that of what was there before.
	if cerr != nil || err != nil || !q.hasCome() || !q.isFull() {
		q.close()
		return nil
	}
	return q
}

// stands reports whether nothing was accepted since the last call, or since fullQueue.
func (q *queue) stands() bool { return q.isFull() && !q.hasCome() }

func (q *queue) isFull() bool {
	full := false
	q.sock.Control(func(n uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(n), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || info.State != tcpListen {
			return
		}
		q.length, full = info.Unacked, info.Unacked > info.Sacked
	})
	return full
}

const tcpListen = 10 // TCP_LISTEN of include/net/tcp_states.h

// hasCome reports whether a connection has come since the last call.
func (q *queue) hasCome() bool {
	var events [1]unix.EpollEvent
	for {
		n, err := unix.EpollWait(q.epoll, events[:], 0)
		if err != unix.EINTR {
			return n > 0 || err != nil
		}
	}
}

func (q *queue) close() {
	if q.epoll >= 0 {
		unix.Close(q.epoll)
	}
}
