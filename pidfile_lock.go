package grace

import (
	"errors"
	"os"
	"strconv"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/proc"
)

// Which lock proves that a process of ours lives?
//
// One on the PID file itself does not: every user may read that file, and a
// process that has a descriptor of it, of any mode, may hold flock(2) on it, and
// so refuse a start after a crash, or make an upgrade fail in the moment before
// the lock is taken. A write lock of fcntl(2) needs a descriptor that is open for
// writing: only the owner gets one, but any user's read lock is in its way, and
// as long as it is open the file system can't be mounted read-only (mount(2),
// EBUSY); nor can it while a file is open that has no name any more. A unix
// socket that answers would prove it too, but of two processes that get no answer
// from it one has to remove it, which needs a lock.
//
// So the lock is flock(2) on a file of its own, .app.pid.lock, of mode 0600,
// which none but our own user, and root, can open; it is open for reading only.
// It is the open file that is locked, not the process: the old process passes the
// descriptor to the new one, the lock is free when the last of them is gone,
// whatever ends it, and neither has to be there when the other one changes the
// PID file. It is made by open, not by link: not every file system has hard
// links. On NFS, flock wants a descriptor that is open for writing; it gets one
// there.
//
// Only the process that holds the lock of the file that the name points to writes
// the PID file, and removes the two. So a lock is taken in this order: open,
// lock, check that the name still points to it.
//
// Children of a master overlap, and each has a lock of its own: the newest one
// that is ready renames its file over that of the one before, if that file names
// the same master, and is the holder from then on. If it dies, its lock is free,
// and the one before takes that.

// takeLock makes this process the holder; a *RunningError if another one is.
func (p *pidFile) takeLock() error {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		err := p.tryTakeLock()
		locked := errors.Is(err, fd.ErrLocked)
		if !locked && !errors.Is(err, errReader) {
			return err
		}
		if locked && p.master != "" && p.masterOfLock() == p.master {
			return p.replaceLock()
		}
		// One that has the lock may not have written its pid yet.
		_, pid := p.read()
		if locked && proc.IsAlive(pid) {
			return &RunningError{Path: p.path, Pid: pid}
		}
		if time.Now().After(end) {
			return &RunningError{Path: p.path}
		}
	}
}

// errReader: the lock is shared, held by a script that checks whether it is held.
var errReader = errors.New("its lock is held by a process that only reads it")

// tryTakeLock makes this process the holder if there is none: else fd.ErrLocked, or
// errReader.
func (p *pidFile) tryTakeLock() error {
	if !supported {
		return nil
	}
	for {
		f, err := fd.OpenLocked(p.lockPath)
		if f == nil {
			return err
		}
		if errors.Is(err, fd.ErrLocked) && fd.TryLockShared(f) == nil {
			err = errReader
		}
		if err == nil && !fd.PointsTo(p.lockPath, f) { // removed, or replaced, meanwhile
			f.Close()
			continue
		}
		if err == nil {
			err = p.nameMaster(p.lockPath)
		}
		if err != nil {
			f.Close()
			return err
		}
		p.setLock(f)
		return nil
	}
}

// reclaimLock makes this process the holder again, if the lock's file was removed
// or is a dead sibling's.
func (p *pidFile) reclaimLock() error {
	if p.holdsLock() {
		return nil
	}
	err := p.tryTakeLock()
	if errors.Is(err, fd.ErrLocked) {
		if p.master == "" {
			_, pid := p.read()
			return &RunningError{Path: p.path, Pid: pid}
		}
		p.setLock(nil) // the newer sibling's is the one that counts
	}
	return err
}

// replaceLock puts a lock of our own in place of a sibling's.
func (p *pidFile) replaceLock() error {
	name := fd.HiddenBeside(p.path, "lock."+strconv.Itoa(os.Getpid()))
	os.Remove(name) // a process with our pid was killed right here
	f, err := fd.OpenLocked(name)
	if f == nil {
		return err
	}
	if err == nil {
		err = p.nameMaster(name)
	}
	if err == nil {
		err = os.Rename(name, p.lockPath)
	}
	if err != nil {
		os.Remove(name)
		f.Close()
		return err
	}
	p.setLock(f)
	return nil
}

// holdsLock reports whether the lock's name points to the file that we have locked.
func (p *pidFile) holdsLock() bool {
	return !supported || p.lock != nil && fd.PointsTo(p.lockPath, p.lock)
}

func (p *pidFile) setLock(f *os.File) {
	if p.lock != nil {
		p.lock.Close()
	}
	p.lock = f
}

// dropLock gives the lock up, and with remove its file. With free the next
// process can take it, also if a child of ours has a copy of the open file.
func (p *pidFile) dropLock(remove, free bool) {
	if p.lock == nil {
		return
	}
	if remove && p.holdsLock() {
		os.Remove(p.lockPath)
	}
	if free {
		fd.Unlock(p.lock)
	}
	p.setLock(nil)
}

// nameMaster writes into a lock's file which master this process is a child of.
func (p *pidFile) nameMaster(name string) error {
	if b, err := os.ReadFile(name); err == nil && string(b) == p.master {
		return nil
	}
	return os.WriteFile(name, []byte(p.master), 0o600)
}

func (p *pidFile) masterOfLock() string {
	b, _ := os.ReadFile(p.lockPath)
	return string(b)
}
