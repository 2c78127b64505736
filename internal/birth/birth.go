// Package birth looks at what this process was born with, and hides it from what
// the program starts, before the program's own packages can have changed it or
// passed it on.
//
// Packages are initialised in the order of their import paths, as soon as all
// that they import is: see [the specification]. This one imports nothing but
// package syscall, so it comes before package os, and with that before whatever
// could start a process through os or os/exec in an init function. What remains
// before it are constructors of C libraries, and an init function that calls
// syscall.ForkExec in a package that imports as little and sorts before it.
//
// [the specification]: https://go.dev/ref/spec#Package_initialization
package birth

// Variable tells a new process which descriptors it was given.
const Variable = "GRACE_HANDOVER"

// A Handover is what the variable says.
type Handover struct {
	Value string
	Set   bool
	// Fields is how many of the following were read; what follows is zero.
	Fields  int
	Version int
	Parent  int    // for whose child it is meant
	Socket  uint64 // inode of the control channel
	Ready   int    // write end of the readiness pipe
	Control int
	First   int // of the sockets
	Count   int
	// Kept are descriptors that are not the library's: the first process was
	// given them, and so is every other.
	Kept []int
	// Ours reports whether this process has that control channel.
	Ours bool
	// Whole reports whether it has the sockets too, if it should.
	Whole bool
}

// A Descriptor is one that the process was born with and that is not the library's.
type Descriptor struct {
	FD       int
	Dev, Ino uint64
}

const most = 1<<31 - 1

// parse reads the variable. Every version begins with the first five fields.
func parse(value string) (h Handover) {
	h = Handover{Value: value, Set: true}
	for value != "" {
		var field string
		field, value = cut(value, ',')
		key, v := cut(field, '=')
		n, ok := number(v)
		if key != "socket" && n > most {
			ok = false
		}
		switch {
		case h.Fields == 7 && key == "keep":
			h.Kept = list(v)
			return h
		case h.Fields < 7 && ok && key == [...]string{"version", "parent", "socket", "ready", "control", "first", "count"}[h.Fields]:
			switch h.Fields {
			case 0:
				h.Version = int(n)
			case 1:
				h.Parent = int(n)
			case 2:
				h.Socket = n
			case 3:
				h.Ready = int(n)
			case 4:
				h.Control = int(n)
			case 5:
				h.First = int(n)
			case 6:
				h.Count = int(n)
			}
			h.Fields++
		default:
			return h
		}
	}
	return h
}

// list reads numbers with dots between them; at most as many as a process may
// have been given by hand.
func list(s string) (all []int) {
	for s != "" && len(all) < 1024 {
		var one string
		one, s = cut(s, '.')
		if n, ok := number(one); ok && n <= most {
			all = append(all, int(n))
		}
	}
	return all
}

// cut and number are those of packages that would be initialised before this one.
func cut(s string, sep byte) (before, after string) {
	for i := range len(s) {
		if s[i] == sep {
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

func number(s string) (n uint64, ok bool) {
	for i := range len(s) {
		d := s[i] - '0'
		if d > 9 || n > (1<<64-1-9)/10 {
			return 0, false
		}
		n = n*10 + uint64(d)
	}
	return n, s != ""
}
