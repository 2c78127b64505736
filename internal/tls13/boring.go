//go:build boringcrypto

package tls13

import cryptoboring "crypto/boring"

// boring is true if BoringCrypto does the cryptography of this process.
var boring = cryptoboring.Enabled()
