package grace

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// A pidFile names the process that serves. It is replaced by rename, so that a
// reader sees one whole pid or the other, and held by a lock on the file that
// the name points to: the lock goes with the process, whatever ends it.
//
// At an upgrade new puts its own locked file in old's place. Old keeps its
// file, which has no name any more, and gets a copy of new's descriptor: so the
// name always points to a locked file, and if new dies no third process can
// take the place before old has put back its own.
type pidFile struct {
	path string
	// shared: siblings that know nothing of each other replace and remove it,
	// under a lock of the directory.
	shared bool

	mu       sync.Mutex
	file     *os.File // ours, locked
	peer     *os.File // the successor's, kept locked while we stand by
	released bool
}

// newPIDFile gives the PID file of path, which nobody holds yet.
func newPIDFile(path, dir string) *pidFile {
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	return &pidFile{path: path}
}

// acquire takes the file at a first start: one that does not exist, or that no
// living process holds. Otherwise the error is a *RunningError.
func (p *pidFile) acquire() error {
	tmp, err := p.prepare()
	if err != nil {
		return err
	}
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		placed, err := p.place(tmp)
		if placed {
			p.file = tmp
			return nil
		}
		// A lock whose holder is not the one that the file names is held by
		// somebody who replaces the file right now.
		var running *RunningError
		if err != nil && !(errors.As(err, &running) && !alive(running.Pid) && time.Now().Before(end)) {
			p.discard(tmp)
			return err
		}
	}
}

// place gives tmp the name, or neither that nor an error if the name has changed
// hands meanwhile. A file that bears the name already is locked first: only who
// holds the lock of the file that the name points to may replace it.
func (p *pidFile) place(tmp *os.File) (placed bool, err error) {
	old, err := os.OpenFile(p.path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		// link, not rename: of two that start at once, one finds the name taken.
		err = os.Link(tmp.Name(), p.path)
		if errors.Is(err, os.ErrExist) {
			return false, nil
		}
		if err != nil {
			return false, p.failed(err)
		}
		os.Remove(tmp.Name())
		return true, nil
	}
	if err != nil {
		return false, p.failed(err)
	}
	defer old.Close()
	if err := tryLock(old); errors.Is(err, errLocked) {
		return false, &RunningError{Path: p.path, Pid: readPID(old)}
	} else if err != nil {
		return false, p.failed(err)
	}
	if !p.names(old) {
		return false, nil
	}
	if err := p.rename(tmp); err != nil {
		return false, err
	}
	return true, nil
}

// prepare writes our pid into a locked file beside the PID file.
func (p *pidFile) prepare() (*os.File, error) {
	tmp, err := os.CreateTemp(filepath.Dir(p.path), "."+filepath.Base(p.path)+".")
	if err != nil {
		return nil, p.failed(err)
	}
	_, err = fmt.Fprintf(tmp, "%d\n", os.Getpid())
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	if err == nil {
		err = tryLock(tmp)
	}
	if err != nil {
		p.discard(tmp)
		return nil, p.failed(err)
	}
	return tmp, nil
}

// take puts a prepared file in place, whoever has it: the predecessor, who has
// agreed, or a successor that is dead.
func (p *pidFile) take(tmp *os.File) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.failed(ErrStopped)
	if !p.released {
		err = p.rename(tmp)
	}
	if err != nil {
		p.discard(tmp)
		return err
	}
	if p.file != nil {
		p.file.Close()
	}
	p.file = tmp
	return nil
}

// takeOver puts this process's own file in place of that of a sibling, which
// does not know of it: under a master siblings overlap by design.
func (p *pidFile) takeOver() error {
	tmp, err := p.prepare()
	if err != nil {
		return err
	}
	unlock, err := p.lockDir()
	if err != nil {
		p.discard(tmp)
		return p.failed(err)
	}
	defer unlock()
	return p.take(tmp)
}

// guard takes the file back if the sibling that has taken it over dies before it
// was our turn to end, until over is closed. Nobody tells us of either.
func (p *pidFile) guard(over <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return
		case <-tick.C:
			p.takeFromDead()
		}
	}
}

func (p *pidFile) takeFromDead() {
	p.mu.Lock()
	ours := p.file == nil || p.names(p.file)
	p.mu.Unlock()
	if ours {
		return
	}
	unlock, err := p.lockDir()
	if err != nil {
		return
	}
	defer unlock()
	if f, err := os.OpenFile(p.path, os.O_RDWR, 0); err == nil {
		defer f.Close()
		if tryLock(f) != nil {
			return // it lives
		}
	}
	if tmp, err := p.prepare(); err == nil {
		p.take(tmp)
	}
}

// lockDir lets only one sibling at a time replace or remove the file.
func (p *pidFile) lockDir() (unlock func(), err error) {
	dir, err := os.Open(filepath.Dir(p.path))
	if err != nil {
		return nil, err
	}
	if err := lockFor(dir, 5*time.Second); err != nil {
		dir.Close()
		return nil, err
	}
	return func() { dir.Close() }, nil
}

// retake names this process again after the successor has died, if it had put
// its own file in place.
func (p *pidFile) retake() error {
	p.mu.Lock()
	ours := p.file == nil || p.names(p.file)
	p.mu.Unlock()
	if ours {
		p.forgetPeer()
		return nil
	}
	tmp, err := p.prepare()
	if err == nil {
		err = p.take(tmp)
	}
	p.forgetPeer()
	return err
}

// held says whether this process has the file, or had.
func (p *pidFile) held() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file != nil
}

// keepPeer keeps the successor's file locked, should it die.
func (p *pidFile) keepPeer(fd int) {
	p.forgetPeer()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.peer = os.NewFile(uintptr(fd), p.path)
}

func (p *pidFile) forgetPeer() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.peer != nil {
		p.peer.Close()
		p.peer = nil
	}
}

// release gives up the lock. With remove, the file goes too if it is still ours;
// without, a predecessor takes it back.
func (p *pidFile) release(remove bool) {
	p.forgetPeer()
	if p.shared && p.held() { // before p.mu, as guard has it
		if unlock, err := p.lockDir(); err == nil {
			defer unlock()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.released = true
	if p.file == nil {
		return
	}
	if remove && p.names(p.file) {
		os.Remove(p.path)
	}
	p.file.Close()
	p.file = nil
}

// names says whether the name points to f.
func (p *pidFile) names(f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(p.path)
	return err == nil && os.SameFile(a, b)
}

func (p *pidFile) rename(tmp *os.File) error {
	if err := os.Rename(tmp.Name(), p.path); err != nil {
		return p.failed(err)
	}
	return nil
}

func (p *pidFile) discard(tmp *os.File) {
	os.Remove(tmp.Name())
	tmp.Close()
}

func (p *pidFile) failed(err error) error {
	return fmt.Errorf("grace: PID file %s: %w", p.path, err)
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
