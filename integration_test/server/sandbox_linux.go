package main

import (
	"flag"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

var inSandbox = flag.Bool("sandbox", false, "a sandbox refuses each clone(2) that is neither a thread's nor that of fork(2) and vfork(2)")

// sandbox makes the kernel one that knows no more, by seccomp(2).
func sandbox() {
	if !*inSandbox {
		return
	}
	const (
		flags       = unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_THREAD
		number      = 0  // offsets in struct seccomp_data
		firstArg    = 16 // its lower half
		load        = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal       = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		and         = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		answer      = unix.BPF_RET | unix.BPF_K
		allow       = 0x7fff0000 // SECCOMP_RET_ALLOW
		refuse      = 0x00050000 // SECCOMP_RET_ERRNO
		setFilter   = 1          // SECCOMP_SET_MODE_FILTER
		everyThread = 1          // SECCOMP_FILTER_FLAG_TSYNC
	)
	filter := []unix.SockFilter{
		{Code: load, K: number},
		{Code: equal, K: unix.SYS_CLONE, Jf: 3},
		{Code: load, K: firstArg},
		{Code: and, K: flags},
		{Code: equal, K: unix.CLONE_VM, Jt: 1},
		{Code: answer, K: allow},
		{Code: answer, K: refuse | uint32(unix.EPERM)},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err == nil {
		if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, setFilter, everyThread, uintptr(unsafe.Pointer(&prog))); errno != 0 {
			err = errno
		}
	}
	if err != nil {
		fmt.Println("no sandbox:", err)
		os.Exit(1)
	}
}
