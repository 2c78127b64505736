//go:build unix && !(linux && (amd64 || arm64))

package proc

import "context"

const canSpawn = false

func (c Program) spawn(ctx context.Context, files []Given, kept []int) (Process, error) {
	return c.fork(ctx, files, kept)
}
