package spawn

const (
	sysDup3        = 24
	sysFcntl       = 25
	sysChdir       = 49
	sysExecve      = 221
	sysPrlimit     = 261
	sysSigaction   = 134
	sysSigprocmask = 135
)
