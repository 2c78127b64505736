#include "textflag.h"

// The kernel calls it, on the stack for signals, and restores all registers after.
TEXT ·handler(SB), NOSPLIT|NOFRAME, $0-0
	MOVD	$1, R0
	MOVB	R0, ·seen(SB)
	RET

// func handlerPC() uintptr
TEXT ·handlerPC(SB), NOSPLIT, $0-8
	MOVD	$·handler(SB), R0
	MOVD	R0, ret+0(FP)
	RET
