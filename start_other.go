//go:build unix && !(linux && (amd64 || arm64))

package grace

import "context"

const canSpawn = false

func (c command) spawn(ctx context.Context, files []given, kept []int) (process, error) {
	return c.fork(ctx, files, kept)
}
