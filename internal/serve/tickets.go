package serve

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"go/version"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// A client that comes back with a session ticket saves itself and the server most of a
// handshake. crypto/tls encrypts tickets under keys that it makes at random, in each
// process others, so that after an upgrade all clients would pay for a full handshake at
// once. So the keys of a tls.Config that is ours to set come from secrets which go over to
// the new process, in the manifest, with the socket that they belong to.
//
// A ticket holds all that a resumed connection takes over unverified: the session's secret
// and what the client has proven of itself. So it must be accepted only where a full
// handshake would have come to the same:
//
//   - Each address has secrets of its own: what one server gives out another one, which
//     may have other certificates and trust other clients, can't read.
//   - The keys depend on the names in the server's certificates as well. A new version that
//     serves other names does not resume sessions of the old one.
//   - Client certificates are not asked for again. crypto/tls verifies those of the ticket
//     against the ClientCAs and the ClientAuth of now, from Go 1.25.7 on; before that, and if
//     the program verifies them by VerifyPeerCertificate, which is not called for a
//     resumed connection, no secret goes over: see mayResume.

// What crypto/tls does with the keys that it makes: a new one each day, and none is used
// for longer than a week after that. Its ticketKeyRotation and ticketKeyLifetime.
const (
	ticketRotation = 24 * time.Hour
	ticketLifetime = 7 * 24 * time.Hour
)

const (
	// ticketAhead is how long before its time a new secret is made if the secrets are
	// handed over just then: one that is made between that and the moment in which this
	// process stops accepting would be this process's alone.
	ticketAhead = time.Hour
	// maxTicketSecrets is how many there can be. With one each day, or one more for an
	// upgrade in the last hour of a day, there are at most nine.
	maxTicketSecrets = 16
)

// ticketSecrets are those of one address.
type ticketSecrets struct {
	now func() time.Time

	mu  sync.Mutex
	all []ticketSecret // newest first; guarded by mu; replaced, never changed
}

type ticketSecret struct {
	value [sha256.Size]byte
	made  time.Time
}

// current returns the secrets, after a new one was made if the newest is too old, or will
// be when ahead is over.
func (s *ticketSecrets) current(ahead time.Duration) []ticketSecret {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if len(s.all) > 0 && now.Sub(s.all[0].made) < ticketRotation-ahead {
		return s.all
	}
	next := ticketSecret{made: now}
	rand.Read(next.value[:])
	s.all = append([]ticketSecret{next}, s.valid(now)...)
	return s.all
}

// valid returns the secrets that are not too old, and leaves room for one more. mu is held.
func (s *ticketSecrets) valid(now time.Time) (valid []ticketSecret) {
	for _, secret := range s.all {
		if now.Sub(secret.made) < ticketLifetime && len(valid) < maxTicketSecrets-1 {
			valid = append(valid, secret)
		}
	}
	return valid
}

// encode writes the secrets for a new process: for each of them when it was made, in
// seconds since 1970, and its value.
func (s *ticketSecrets) encode() manifest.Secret {
	var b strings.Builder
	for i, secret := range s.current(ticketAhead) {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%d:%x", secret.made.Unix(), secret.value)
	}
	return manifest.Secret(b.String())
}

// decode takes what encode has written. From another version something else may come: then
// there is nothing, and the first secret is made here. A time that is yet to come is taken
// for now: the clock was set back, or was wrong.
func (s *ticketSecrets) decode(text manifest.Secret) {
	if text == "" {
		return
	}
	now := s.now()
	var all []ticketSecret
	for _, field := range strings.SplitN(string(text), " ", maxTicketSecrets+1) {
		at, value, _ := strings.Cut(field, ":")
		seconds, err := strconv.ParseInt(at, 10, 64)
		if err != nil || len(value) != 2*sha256.Size || len(all) == maxTicketSecrets {
			return
		}
		// As a time of this process's own clock, so that it counts on if the other one is set.
		secret := ticketSecret{made: now.Add(-max(0, now.Sub(time.Unix(seconds, 0))))}
		if _, err := hex.Decode(secret.value[:], []byte(value)); err != nil {
			return
		}
		all = append(all, secret)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = all
	s.all = s.valid(now)
}

// sessionTickets sets the ticket keys of one tls.Config. It has no timer: the door calls
// renew for each connection, which is when crypto/tls itself looks at the age of its keys.
type sessionTickets struct {
	secrets *ticketSecrets
	config  *tls.Config
	names   string // in the certificates of config

	mu  sync.Mutex
	set *ticketSecret // the newest one of those that config has the keys of; guarded by mu
}

// tickets returns what sets the keys of config, a copy that is this package's own, for a
// server of own. It is nil if the keys are not ours: crypto/tls then does what it does with
// the config that the program has given.
func (h *Host) tickets(own []*sockets.Listener, config *tls.Config) *sessionTickets {
	if len(own) == 0 || keepsTickets(config) || !mayResume(config, runtime.Version()) {
		return nil
	}
	t := &sessionTickets{secrets: h.ticketSecrets(own), config: config, names: certificateNames(config)}
	if t.renew() != nil {
		return nil
	}
	return t
}

// ticketSecrets returns the secrets of the address that own listens on: several listeners,
// if they share it by SO_REUSEPORT, and a client does not know which one it comes to.
func (h *Host) ticketSecrets(own []*sockets.Listener) *ticketSecrets {
	h.ticketsMu.Lock()
	defer h.ticketsMu.Unlock()
	at := addressKey(own[0].Addr())
	s := h.secrets[at]
	if s == nil {
		s = &ticketSecrets{now: h.now}
		if s.now == nil {
			s.now = time.Now
		}
		for _, l := range own {
			if len(s.all) == 0 {
				s.decode(l.Sock.Tickets)
			}
		}
		if h.secrets == nil {
			h.secrets = map[string]*ticketSecrets{}
		}
		h.secrets[at] = s
	}
	return s
}

func addressKey(a net.Addr) string { return a.Network() + " " + a.String() }

// Tickets returns the secrets that a new process is to have with this socket: none if no
// server of this process uses them.
func (h *Host) Tickets(sock *sockets.Socket) manifest.Secret {
	if sock.Listener == nil {
		return ""
	}
	h.ticketsMu.Lock()
	s := h.secrets[addressKey(sock.Listener.Addr())]
	h.ticketsMu.Unlock()
	if s == nil {
		return ""
	}
	return s.encode()
}

// renew sets the keys again if the secrets have changed.
func (t *sessionTickets) renew() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	secrets := t.secrets.current(0)
	if t.set == &secrets[0] {
		return nil
	}
	keys := make([][32]byte, len(secrets))
	for i, secret := range secrets {
		key, err := hkdf.Expand(sha256.New, secret.value[:], "grace session ticket key\n"+t.names, len(keys[i]))
		if err != nil {
			return err
		}
		copy(keys[i][:], key)
	}
	t.config.SetSessionTicketKeys(keys)
	t.set = &secrets[0]
	return nil
}

// certificateNames returns the names in the certificates of config, those that
// GetCertificate may give not included: of them nothing is known before a client comes.
func certificateNames(config *tls.Config) string {
	var names []string
	for _, c := range config.Certificates {
		leaf := c.Leaf
		if leaf == nil && len(c.Certificate) > 0 {
			leaf, _ = x509.ParseCertificate(c.Certificate[0])
		}
		if leaf == nil {
			continue
		}
		names = append(append(names, leaf.Subject.CommonName), leaf.DNSNames...)
		for _, ip := range leaf.IPAddresses {
			names = append(names, ip.String())
		}
		for _, u := range leaf.URIs {
			names = append(names, u.String())
		}
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), "\n")
}

// keepsTickets reports whether the program has said itself what is to become of session
// tickets.
func keepsTickets(c *tls.Config) bool {
	//lint:ignore SA1019 what is deprecated may be used all the same
	key := c.SessionTicketKey
	// crypto/tls itself writes into a config that is used, and says so at the beginning:
	// see its deprecatedSessionTicketKey.
	set := key != [32]byte{} && !bytes.HasPrefix(key[:], []byte("DEPRECATED"))
	return set || hasTicketKeys(reflect.ValueOf(c).Elem()) || c.SessionTicketsDisabled || c.WrapSession != nil || c.UnwrapSession != nil
}

// hasTicketKeys reports whether SetSessionTicketKeys was called of this tls.Config, which
// crypto/tls does not make known. If it keeps the keys elsewhere one day, the answer is yes.
func hasTicketKeys(config reflect.Value) bool {
	keys := config.FieldByName("sessionTicketKeys")
	return keys.Kind() != reflect.Slice || keys.Len() > 0
}

// mayResume reports whether a session of an earlier process may be resumed with config as
// far as client certificates go, with this version of Go. Which ones are asked for may be
// known to GetConfigForClient only.
func mayResume(config *tls.Config, goVersion string) bool {
	asks := config.ClientAuth != tls.NoClientCert || config.GetConfigForClient != nil
	return !asks || config.VerifyPeerCertificate == nil && verifiesAgain(goVersion)
}

// verifiesAgain reports whether crypto/tls of this version of Go verifies the client
// certificates of a ticket anew: https://pkg.go.dev/vuln/GO-2026-4337. A version that is
// not a release does not count.
func verifiesAgain(goVersion string) bool {
	goVersion, _, _ = strings.Cut(goVersion, " ") // experiments come behind it
	return version.IsValid(goVersion) && version.Compare(goVersion, "go1.25.7") >= 0
}
