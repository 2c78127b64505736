#include "textflag.h"

// What args and step look like: see spawn_linux.go.

// func clone(a *args) (ret uintptr)
//
// No frame, no call, no push: the child must not touch the stack of the thread
// that goes on here. Every signal is blocked from before the clone: the child
// has the runtime's handlers, and none may run there.
TEXT ·clone(SB), NOSPLIT|NOFRAME, $0-16
	MOVQ	a+0(FP), R12
	MOVQ	$0, DI		// SIG_BLOCK
	LEAQ	40(R12), SI	// args.all
	LEAQ	48(R12), DX	// args.mask
	MOVQ	$8, R10
	MOVQ	$14, AX		// rt_sigprocmask
	SYSCALL
	MOVQ	0(R12), DI	// args.flags
	MOVQ	8(R12), SI	// args.stack
	MOVQ	16(R12), DX	// args.pidfd
	MOVQ	$0, R10
	MOVQ	$0, R8
	MOVQ	$56, AX		// clone
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, R13
	MOVQ	$2, DI		// SIG_SETMASK
	LEAQ	48(R12), SI
	MOVQ	$0, DX
	MOVQ	$8, R10
	MOVQ	$14, AX		// rt_sigprocmask
	SYSCALL
	MOVQ	R13, ret+8(FP)
	RET

child:
	MOVQ	24(R12), R13	// args.steps
next:
	MOVQ	0(R13), AX
	MOVQ	8(R13), DI
	MOVQ	16(R13), SI
	MOVQ	24(R13), DX
	MOVQ	32(R13), R10
	MOVQ	40(R13), R8
	MOVQ	48(R13), R9
	SYSCALL
	CMPQ	AX, $0xfffffffffffff001
	JCS	passed
	MOVQ	56(R13), BX	// step.what
	TESTQ	BX, BX
	JEQ	passed		// may fail
	NEGQ	AX
	MOVQ	AX, 56(R12)	// args.failed
	MOVQ	BX, 64(R12)
	MOVQ	32(R12), DI	// args.result
	LEAQ	56(R12), SI
	MOVQ	$16, DX
	MOVQ	$1, AX		// write
	SYSCALL
exit:
	MOVQ	$127, DI
	MOVQ	$231, AX	// exit_group
	SYSCALL
	JMP	exit
passed:
	ADDQ	$64, R13
	JMP	next

// func syscall4(nr, a, b, c, d uintptr) (ret uintptr)
TEXT ·syscall4(SB), NOSPLIT|NOFRAME, $0-48
	MOVQ	nr+0(FP), AX
	MOVQ	a+8(FP), DI
	MOVQ	b+16(FP), SI
	MOVQ	c+24(FP), DX
	MOVQ	d+32(FP), R10
	SYSCALL
	MOVQ	AX, ret+40(FP)
	RET
