#include "textflag.h"

// What args and step look like: see spawn_linux.go.

// func clone(a *args) (ret uintptr)
//
// No frame, no call, no push: the child must not touch the stack of the thread
// that goes on here. Every signal is blocked from before the clone: the child
// has the runtime's handlers, and none may run there.
TEXT ·clone(SB), NOSPLIT|NOFRAME, $0-16
	MOVD	a+0(FP), R19
	MOVD	$0, R0		// SIG_BLOCK
	ADD	$40, R19, R1	// args.all
	ADD	$48, R19, R2	// args.mask
	MOVD	$8, R3
	MOVD	$135, R8	// rt_sigprocmask
	SVC
	MOVD	0(R19), R0	// args.flags
	MOVD	8(R19), R1	// args.stack
	MOVD	16(R19), R2	// args.pidfd
	MOVD	$0, R3
	MOVD	$0, R4
	MOVD	$220, R8	// clone
	SVC
	CBZ	R0, child
	MOVD	R0, R20
	MOVD	$2, R0		// SIG_SETMASK
	ADD	$48, R19, R1
	MOVD	$0, R2
	MOVD	$8, R3
	MOVD	$135, R8	// rt_sigprocmask
	SVC
	MOVD	R20, ret+8(FP)
	RET

child:
	MOVD	24(R19), R20	// args.steps
next:
	MOVD	0(R20), R8
	MOVD	8(R20), R0
	MOVD	16(R20), R1
	MOVD	24(R20), R2
	MOVD	32(R20), R3
	MOVD	40(R20), R4
	MOVD	48(R20), R5
	SVC
	CMN	$4095, R0
	BCC	passed
	MOVD	56(R20), R21	// step.what
	CBZ	R21, passed	// may fail
	NEG	R0, R0
	MOVD	R0, 56(R19)	// args.failed
	MOVD	R21, 64(R19)
	MOVD	32(R19), R0	// args.result
	ADD	$56, R19, R1
	MOVD	$16, R2
	MOVD	$64, R8		// write
	SVC
exit:
	MOVD	$127, R0
	MOVD	$94, R8		// exit_group
	SVC
	B	exit
passed:
	ADD	$64, R20
	B	next

// func syscall4(nr, a, b, c, d uintptr) (ret uintptr)
TEXT ·syscall4(SB), NOSPLIT|NOFRAME, $0-48
	MOVD	nr+0(FP), R8
	MOVD	a+8(FP), R0
	MOVD	b+16(FP), R1
	MOVD	c+24(FP), R2
	MOVD	d+32(FP), R3
	SVC
	MOVD	R0, ret+40(FP)
	RET
