package grace

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/proc"
)

// A pidFile names the process that serves. It is replaced by rename, so that a
// reader sees one whole pid or the other. The proof that a process of ours lives
// is the lock of another file beside it, see pidfile_lock.go. All generations
// share that lock, from the first start to the last stop: the old process passes
// its open file to the new one, as it passes sockets. So when the new process
// dies no third process can come in before the old one has put its pid back.
//
// Beside app.pid there are .app.pid.lock, as long as the service runs, and
// .app.pid.PID, in the moment in which the two trade their names, see swap. One that
// was left by a process that was killed in that moment is removed when the file
// changes hands next.
//
// While this process is the one to be named, keep looks every few seconds whether
// it is: a cleaner of temporary files, or another program that was given the path
// by mistake, may have removed the files.
//
// All methods may be called from any goroutine. They wait for the disk.
type pidFile struct {
	path     string // absolute
	lockPath string
	log      *slog.Logger
	// master is "" or names the one that has started us. Its children overlap
	// without knowing of each other, and the newest takes the lock from the others.
	master string

	// wanted is true while the file is to name this process; between the start of
	// a new process and its failure the file is the new one's. wanted is changed
	// before mu is taken, so that the last one to change it is right.
	wanted atomic.Bool

	// mu guards what follows, and is held while this process changes the files.
	mu       sync.Mutex
	lock     *os.File    // locked, for reading only; nil: not ours, or none (see supported)
	written  fs.FileInfo // of the file that this process has put in place last
	prepared fs.FileInfo // of the one that is to be put in place next
	force    bool        // put ours in place whatever is there
	untidy   bool        // what was there before ours is still to be removed
	released bool
	kept     bool          // keep runs
	wake     chan struct{} // buffered 1: keep looks at once
	over     chan struct{} // closed when released
}

// How often the file is looked at, and how soon it is tried again when it could
// not be written.
const (
	pidFileEvery = 2 * time.Second
	pidFileRetry = 50 * time.Millisecond
)

func newPIDFile(path, dir string, log *slog.Logger) *pidFile {
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	path = filepath.Clean(path)
	return &pidFile{
		path: path, lockPath: fd.HiddenBeside(path, "lock"), log: log,
		wake: make(chan struct{}, 1), over: make(chan struct{}),
	}
}

// acquire takes the file at a first start, whatever it says. If a living process
// holds its lock the error is a *RunningError.
func (p *pidFile) acquire() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.mustBeRegular(); err != nil {
		return p.failed(err)
	}
	if err := p.takeLock(); err != nil {
		return p.failed(err)
	}
	err := p.write()
	if err != nil {
		p.dropLock(true, true)
		return p.failed(err)
	}
	p.nowOurs()
	return nil
}

// takeOver is acquire under a master: the lock may be a sibling's.
func (p *pidFile) takeOver() error { return p.acquire() }

// inherit takes the lock that the old process has passed, if it is the lock of
// this file, by whatever path the old process knows it. Otherwise it is closed.
func (p *pidFile) inherit(lock *os.File) bool {
	if lock == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !fd.PointsTo(p.lockPath, lock) {
		lock.Close()
		return false
	}
	p.lock = lock
	return true
}

// lend gives a descriptor of the lock, for a new process that is about to start.
// From here on the file may be the new process's, until retake.
func (p *pidFile) lend() ([]int, error) {
	p.wanted.Store(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !supported || p.released {
		return nil, nil
	}
	if err := p.reclaimLock(); err != nil {
		return nil, p.failed(err)
	}
	n, err := fd.Dup(p.lock)
	if err != nil {
		return nil, p.failed(fmt.Errorf("no descriptor to pass its lock to a new process: %w", err))
	}
	return []int{n}, nil
}

// prepare writes our pid beside the file: what can fail does so here, before the
// old process has stopped accepting. take or discard follows.
func (p *pidFile) prepare() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.mustBeRegular()
	if err == nil {
		err = p.writeBeside()
	}
	return p.failed(err)
}

// take puts the prepared file in place: the old process has agreed, or is dead.
// tidy follows, once this process accepts: a disk takes its time to remove a file.
func (p *pidFile) take() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.released {
		p.removePrepared()
		return p.failed(ErrStopped)
	}
	err := p.putInPlace()
	if errors.Is(err, os.ErrNotExist) { // the file beside it was removed: a cleaner of temporary files, say
		err = p.write()
	}
	if err != nil {
		return p.failed(err)
	}
	p.nowOurs()
	return nil
}

func (p *pidFile) discard() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removePrepared()
}

// retake names this process again, after a new one has died or given up. If that
// fails it is tried again until it is right.
func (p *pidFile) retake() error {
	p.wanted.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.released { // also after rest: a stop that has waited for the roll back comes at once
		return nil
	}
	p.force = true
	_, err := p.look()
	if err != nil {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	return p.failed(err)
}

// held reports whether this process has put its pid there, now or before.
func (p *pidFile) held() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.written != nil
}

// names reports whether the file is the one that this process has put there.
func (p *pidFile) names() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ours, _ := p.read()
	return ours
}

// rest leaves the file as it is from now on, until retake or release.
func (p *pidFile) rest() { p.wanted.Store(false) }

// release gives the file up. With remove, it goes if it still names this process,
// or one that is dead; without, the old process takes it back. A new process keeps it.
func (p *pidFile) release(remove bool) { p.giveUp(remove, false) }

// giveUp is release; last is true if no other process of the service has the
// lock.
func (p *pidFile) giveUp(remove, last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.released {
		return
	}
	p.released = true
	close(p.over)
	p.removePrepared()
	p.removeReplaced()
	ours, pid := p.read()
	dead := pid > 0 && !proc.IsAlive(pid)
	held := p.holdsLock()
	if remove && ours && !held {
		// An old process that ends at the same time has removed the lock's file, and
		// its PID file, just before this one put its own pid there.
		held = p.reclaimLock() == nil
	}
	if remove && (ours || dead) && held {
		os.Remove(p.path)
	}
	p.dropLock(remove && (ours || dead || p.wanted.Load()), last)
}

// nowOurs: the file names this process; from now on keep sees to it that it stays
// so.
func (p *pidFile) nowOurs() {
	p.wanted.Store(true)
	if !p.kept {
		p.kept = true
		go p.keep()
	}
}

// keep puts the file right while it is to name this process, until release.
func (p *pidFile) keep() {
	timer := time.NewTimer(pidFileEvery)
	defer timer.Stop()
	retry := pidFileRetry
	var said string // the last thing logged
	for {
		select {
		case <-p.over:
			return
		case <-p.wake:
		case <-timer.C:
		}
		done, err := p.lookAgain()
		wait := pidFileEvery
		switch {
		case err != nil:
			if said != err.Error() {
				p.log.Error("grace: the PID file is not right; it is tried again until it is", "err", p.failed(err))
				said = err.Error()
			}
			wait, retry = retry, min(2*retry, 10*time.Second)
		case done:
			p.log.Info("grace: the PID file names this process again", "path", p.path)
			fallthrough
		default:
			said, retry = "", pidFileRetry
		}
		timer.Reset(wait)
	}
}

func (p *pidFile) lookAgain() (done bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.released || !p.wanted.Load() {
		return false, nil
	}
	return p.look()
}

// look puts right what is wrong. If the file names another living process,
// another program has put it there: that is reported, and the file is left,
// unless force is set.
func (p *pidFile) look() (done bool, err error) {
	if err := p.reclaimLock(); errors.Is(err, fd.ErrLocked) && p.master != "" {
		return false, nil // a newer sibling has it
	} else if err != nil {
		return false, err
	}
	ours, pid := p.read()
	if !ours {
		if err := p.mustBeRegular(); err != nil {
			return false, err
		}
		if proc.IsAlive(pid) && pid != os.Getpid() && !p.force && p.master == "" {
			return false, fmt.Errorf("another program has put the number of process %d there; give it a PID file of its own", pid)
		}
		if err := p.write(); err != nil {
			return false, err
		}
	}
	p.force = false
	p.removeLeftovers()
	return !ours, nil
}

// write puts our pid in place.
func (p *pidFile) write() error {
	if err := p.writeBeside(); err != nil {
		return err
	}
	err := p.putInPlace()
	p.removeReplaced()
	return err
}

func (p *pidFile) besides() string { return fd.HiddenBeside(p.path, strconv.Itoa(os.Getpid())) }

// writeBeside writes our pid into a file that is not in place yet.
func (p *pidFile) writeBeside() error {
	p.removeReplaced() // a replaced file may have this name
	name := p.besides()
	open := func() (*os.File, error) { return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) }
	f, err := open()
	if errors.Is(err, os.ErrExist) { // a process with our pid was killed right here
		os.Remove(name)
		f, err = open()
	}
	if err != nil {
		return err
	}
	f.Chmod(0o644) // whatever the umask; some file systems have no modes
	_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	if err == nil {
		p.prepared, err = f.Stat()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(name)
		p.prepared = nil
	}
	return err
}

func (p *pidFile) putInPlace() error {
	if p.prepared == nil {
		return errors.New("nothing is prepared")
	}
	err := swap(p.besides(), p.path)
	if err != nil {
		p.removePrepared()
		return err
	}
	p.written, p.prepared, p.untidy = p.prepared, nil, true
	return nil
}

// tidy removes what a change of hands has left.
func (p *pidFile) tidy() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeReplaced()
}

// removeReplaced is tidy; p.mu is held.
func (p *pidFile) removeReplaced() {
	if !p.untidy {
		return
	}
	p.untidy = false
	os.Remove(p.besides())
	p.removeLeftovers()
}

func (p *pidFile) removePrepared() {
	if p.prepared != nil {
		os.Remove(p.besides())
		p.prepared = nil
	}
}

// removeLeftovers removes what processes that were killed have left beside the file.
func (p *pidFile) removeLeftovers() {
	names, _ := os.ReadDir(filepath.Dir(p.path))
	prefix := "." + filepath.Base(p.path) + "."
	for _, e := range names {
		number, ok := strings.CutPrefix(e.Name(), prefix)
		pid, err := strconv.Atoi(strings.TrimPrefix(number, "lock."))
		if ok && err == nil && pid > 0 && pid != os.Getpid() && !proc.IsAlive(pid) && e.Type().IsRegular() {
			os.Remove(filepath.Join(filepath.Dir(p.path), e.Name()))
		}
	}
}

// read reports whether the file is the one that this process has put there, and
// gives the pid in it; 0 if it has none.
func (p *pidFile) read() (ours bool, pid int) {
	fi, err := os.Lstat(p.path)
	if err != nil || !fi.Mode().IsRegular() {
		return false, 0
	}
	f, err := os.Open(p.path)
	if err != nil {
		// There may be no descriptor for it now. The file that was put there, with
		// the time and size of then, is ours all the same.
		same := p.written != nil && os.SameFile(fi, p.written) && fi.Size() == p.written.Size() && fi.ModTime().Equal(p.written.ModTime())
		if same {
			return true, os.Getpid()
		}
		return false, 0
	}
	defer f.Close()
	pid = readPID(f)
	return pid == os.Getpid() && p.written != nil && os.SameFile(fi, p.written), pid
}

// mustBeRegular: a rename would replace a device or a socket without a word, and
// a link would be replaced, not followed.
func (p *pidFile) mustBeRegular() error {
	fi, err := os.Lstat(p.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	switch t := fi.Mode().Type(); {
	case t == 0:
		return nil
	case t&fs.ModeDir != 0:
		return fmt.Errorf("%w; name a file in it", syscall.EISDIR)
	case t&fs.ModeSymlink != 0:
		to, _ := os.Readlink(p.path)
		return fmt.Errorf("it is a symbolic link, to %s; name that file, or remove the link", to)
	default:
		return fmt.Errorf("it is no regular file (%v); use another path", fi.Mode())
	}
}

func (p *pidFile) failed(err error) error {
	var running *RunningError
	if err == nil || errors.As(err, &running) {
		return err
	}
	var hint string
	if errors.Is(err, os.ErrPermission) || errors.Is(err, errReadOnly) {
		hint = "; this process must be allowed to make, rename and remove files in its directory"
	}
	return fmt.Errorf("grace: PID file %s: %w%s", p.path, err, hint)
}

func readPID(f *os.File) int {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b[:n])))
	if err != nil || pid < 1 {
		return 0
	}
	return pid
}
