//go:build unix

package grace

import (
	"context"
	"path/filepath"
	"testing"
	"time"
)

// TestExclusiveStopWhileAcquiring: a first process that is told to stop while it acquires
// gives back what it gets, before its PID file's lock is free, for which another start waits.
func TestExclusiveStopWhileAcquiring(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.pid")
	b := newBank(t, PIDFile(path))
	acquiring := make(chan *generation, 1)
	b.v.hang = func(ctx context.Context, call string) error {
		g := <-acquiring
		acquiring <- g
		if call == "1 release" {
			if other := newPIDFile(path, "", g.log); other.tryTakeLock() == nil {
				t.Error("the lock is free, and release was not called")
				other.release(false)
			}
			return nil
		}
		g.askStop()
		<-ctx.Done()
		select {
		case <-g.Done():
			t.Error("this process has ended, and acquires")
		case <-time.After(soon):
		}
		return nil
	}
	g := b.begin(system{})
	<-g.made
	acquiring <- g
	wantErr(t, b.next().err, ErrStopped)
	receive(t, g.Done(), "Done")
	b.v.want(t, "1 acquire", "1 release")
}
