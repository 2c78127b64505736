package spawn

const (
	sysDup3        = 292
	sysFcntl       = 72
	sysChdir       = 80
	sysExecve      = 59
	sysPrlimit     = 302
	sysSigaction   = 13
	sysSigprocmask = 14
)
