//go:build linux && (amd64 || arm64)

package spawn

import "unsafe"

// original is the limit of open files that this process was started with, and
// that what it starts is given, as package syscall does it.
var original = func() (l limit) {
	syscall4(sysPrlimit, 0, noFile, 0, uintptr(unsafe.Pointer(&l)))
	return l
}()

func (r *Running) add(what uint64, nr uintptr, args ...uintptr) {
	s := step{nr: nr, what: what}
	copy(s.args[:], args)
	r.steps = append(r.steps, s)
}

// write writes down what the new process does.
func (r *Running) write(p *Program) {
	r.steps = make([]step, 0, signals+2*len(p.Files)+len(p.Keep)+8)
	// Handled signals have their default action, as after exec; ignored ones
	// stay ignored. Then those that were blocked come through.
	for sig := uintptr(1); sig <= signals; sig++ {
		var old [4]uintptr
		if int(syscall4(sysSigaction, sig, 0, uintptr(unsafe.Pointer(&old)), 8)) == 0 && old[0] != sigIgnore {
			r.add(0, sysSigaction, sig, uintptr(unsafe.Pointer(&r.dfl)), 0, 8)
		}
	}
	r.add(0, sysSigprocmask, setMask, uintptr(unsafe.Pointer(&r.args.mask)), 0, 8)
	if p.Dir != "" {
		r.add(Dir, sysChdir, r.text(p.Dir))
	}
	r.files(p)
	var now limit
	syscall4(sysPrlimit, 0, noFile, 0, uintptr(unsafe.Pointer(&now)))
	if original.cur < original.max && now == (limit{original.max - 1, original.max}) {
		r.nofile = original
		r.add(0, sysPrlimit, 0, noFile, uintptr(unsafe.Pointer(&r.nofile)), 0)
	}
	r.add(Exec, sysExecve, r.text(p.Path), r.list(p.Argv), r.list(p.Env))
}

// files moves each descriptor to its number, and closes at exec what is not named.
func (r *Running) files(p *Program) {
	targets := make(map[int]bool, len(p.Files))
	top := p.Result
	for _, f := range p.Files {
		targets[f.To] = true
		top = max(top, f.From, f.To)
	}
	// One whose number another one is to have goes out of the way first.
	moves := append([]File(nil), p.Files...)
	for i, f := range moves {
		if f.From != f.To && targets[f.From] {
			top++
			r.add(Files, sysDup3, uintptr(f.From), uintptr(top), closeOnExec)
			moves[i].From = top
		}
	}
	last := 2
	for _, fd := range p.Keep {
		targets[fd] = true
	}
	for fd := range targets {
		last = max(last, fd)
	}
	// From here on only what is named stays open at exec; before the dups, which
	// clear the flag. A kernel without close_range(2) leaves what is open so.
	for from, fd := 3, 3; fd <= last+1; fd++ {
		if fd > last {
			r.add(0, sysCloseRange, uintptr(from), uintptr(^uint32(0)), rangeOnExec)
		} else if targets[fd] {
			if fd > from {
				r.add(0, sysCloseRange, uintptr(from), uintptr(fd-1), rangeOnExec)
			}
			from = fd + 1
		}
	}
	for _, f := range moves {
		if f.From == f.To { // dup3(2) refuses that
			r.add(Files, sysFcntl, uintptr(f.To), setFD, 0)
		} else {
			r.add(Files, sysDup3, uintptr(f.From), uintptr(f.To), 0)
		}
	}
}

// text is s as C has it. What these functions give the address of is kept on the heap.
func (r *Running) text(s string) uintptr {
	b := append([]byte(s), 0)
	r.keep = append(r.keep, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

func (r *Running) list(texts []string) uintptr {
	list := make([]uintptr, 0, len(texts)+1)
	for _, s := range texts {
		list = append(list, r.text(s))
	}
	list = append(list, 0)
	r.keep = append(r.keep, list)
	return uintptr(unsafe.Pointer(&list[0]))
}
