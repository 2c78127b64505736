package grace

import "golang.org/x/sys/unix"

// pollHungUp is what poll(2) says of a listener that was shut down, besides POLLHUP.
const pollHungUp = unix.POLLRDHUP
