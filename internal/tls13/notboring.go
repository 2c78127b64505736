//go:build !boringcrypto

package tls13

const boring = false
