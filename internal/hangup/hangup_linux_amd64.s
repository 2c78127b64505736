#include "textflag.h"

// The kernel calls it, on the stack for signals: it uses no register of Go's.
TEXT ·handler(SB), NOSPLIT|NOFRAME, $0-0
	MOVB	$1, ·seen(SB)
	RET

// func handlerPC() uintptr
TEXT ·handlerPC(SB), NOSPLIT, $0-8
	LEAQ	·handler(SB), AX
	MOVQ	AX, ret+0(FP)
	RET
