//go:build !unix

package gracehttp

import "os"

var upgradeSignals []os.Signal // nothing can be upgraded there
