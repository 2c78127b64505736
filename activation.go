//go:build unix

package grace

// systemdMaster: socket activation, see sd_listen_fds(3).
func systemdMaster() (*master, error) { return nil, nil }
