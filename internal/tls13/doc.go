// Package tls13 takes a TLS 1.3 connection of a server away from crypto/tls, carries it
// to another process as a [State], and serves it there by a record layer of its own.
//
//	old process                                   new process
//	Extract(*tls.Conn)  or  (*Conn).Extract
//	  State.Encode   -- bytes and descriptor -->  Decode
//	                                              Covers: would its configuration serve it?
//	                                              New: a *Conn
//
// Covers is a method of [Listener] where a listener of crypto/tls hides the configuration.
//
// The package knows nothing of sockets, processes or servers. It reads what crypto/tls
// keeps to itself by reflection, writes nothing there, and uses neither unsafe nor
// linkname. A crypto/tls that is not exactly as one of those that it knows is an error
// that wraps [ErrUnknown]: see [SelfCheck], which is to be called before the first
// Extract.
//
// # No sequence number is used twice
//
// AES-GCM loses its secrecy if two records are sealed with one key and one sequence
// number (RFC 8446, 5.3 and RFC 5116, 5.1.1). That this can't happen here rests on these
// steps:
//
//  1. Within one process, seal in keys.go is the only function that encrypts. It
//     counts the number up under the lock of the writing direction before the record
//     is written anywhere, also if the write fails; a new key starts at 0, and the last
//     number is never used.
//  2. (*Conn).Extract takes the keys out of the Conn, under both locks: seal fails from
//     then on, so that the Conn can't use the numbers that the State goes on with.
//  3. crypto/tls can't be stopped like this, as nothing is written there. So the caller
//     must let nothing through that crypto/tls writes after Extract: see the rules there.
//     A number is never lowered.
//  4. New empties the State that it is given. One State makes one Conn.
//  5. Between processes the rule is that of the descriptor: until the old process has
//     given its verdict, the new one neither reads nor writes, since a Read may have to
//     answer with a record; after it, the old one has no State any more. A Conn does nothing
//     by itself: what is never called writes nothing.
//
// The test TestNoNonceTwice opens every record that went over the wire with the
// secrets of the connection, and counts; so do the tests of package serve, of what their
// clients receive.
//
// # Locks
//
// Conn.in is locked before Conn.out, never the other way round: a Read may have to write,
// and Extract takes both. Either is held while the connection below is read or written, so
// what that locks comes after them. With Listener.mu no other is taken.
//
// # What is not moved
//
// TLS_CHACHA20_POLY1305_SHA256: the standard library has no cipher for it that can be
// given a key (crypto/internal and vendored packages can't be imported; crypto/hpke
// derives its own keys), and golang.org/x/crypto is no dependency of this module. If it
// becomes one, a row in suites is all that is needed. Go's server chooses this suite
// for clients that prefer it, and where the processor has no instructions for AES.
package tls13
