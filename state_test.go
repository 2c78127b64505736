//go:build unix

package grace

import "testing"

// TestStateIsPublic: each state of the machine is shown, those that accept as serving or
// upgrading.
func TestStateIsPublic(t *testing.T) {
	for s, want := range map[state]string{
		starting: "starting", serving: "serving", upgrading: "upgrading", standingBy: "standing by",
		draining: "draining", resuming: "serving", lingering: "lingering", holding: "draining", stopped: "stopped",
	} {
		if got := s.public().String(); got != want {
			t.Errorf("%v is shown as %q, want %q", s, got, want)
		}
	}
	for _, s := range []State{-1, StateStopped + 1} {
		if got := s.String(); got != "unknown" {
			t.Errorf("State(%d) is %q", int(s), got)
		}
	}
}

// TestState: from the start to the end, as the program sees it.
func TestState(t *testing.T) {
	u, _ := newSolo(t)
	want := func(want State) {
		t.Helper()
		if got := u.State(); got != want {
			t.Errorf("the state is %q, want %q", got, want)
		}
	}
	want(StateStarting)
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	want(StateServing)
	u.Close()
	want(StateStopped)

	p := handsOver(t, standingBy)
	u = p.old.Upgrader
	want(StateStandingBy)
	u = p.new.Upgrader
	want(StateServing)
	p.new.die()
	p.old.await(serving)
	u = p.old.Upgrader
	want(StateServing)
}
