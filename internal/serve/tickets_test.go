//go:build unix

package serve

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A returning client keeps its sessions.
func returning(trust *tls.Config, version uint16) *tls.Config {
	c := trust.Clone()
	c.ServerName = "example.com" // of tlstest's certificate
	c.MinVersion, c.MaxVersion = version, version
	c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	return c
}

// resumes makes a connection, and reports whether that resumes a session. Whether or not,
// the client has a new ticket then.
func resumes(t *testing.T, server, client *tls.Config) bool {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", server) // both sides may write at once: net.Pipe would not do
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(wait.Limit))
		c.Write([]byte("x"))
		io.Copy(io.Discard, c)
	}()
	defer wait.For(t, ended, "the server's side to end")
	defer ln.Close()
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: wait.Limit}, Config: client}
	conn, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := conn.(*tls.Conn)
	c.SetDeadline(time.Now().Add(wait.Limit))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState().DidResume
}

// TestTicketsDoNotWaitForTheHost: the manifest is written with a lock of the sockets held, and
// they may be closed by code that Host.mu waits for.
func TestTicketsDoNotWaitForTheHost(t *testing.T) {
	u, ln := newProcess(t)
	u.mu.Lock()
	defer u.mu.Unlock()
	given := make(chan manifest.Secret, 1)
	go func() { given <- u.Tickets(ln.(*sockets.Listener).Sock) }()
	wait.For(t, given, "the secrets, Host.mu held")
}

// A ticketed is a process whose tls.Config has ticket keys of ours, or not.
type ticketed struct {
	*solo
	l       *sockets.Listener
	config  *tls.Config
	tickets *sessionTickets
}

// newTicketed gives a process that was handed these secrets.
func newTicketed(t testing.TB, config *tls.Config, handed manifest.Secret, settings ...setting) *ticketed {
	t.Helper()
	u, ln := newProcess(t, settings...)
	p := &ticketed{solo: u, l: ln.(*sockets.Listener), config: config.Clone()}
	t.Cleanup(u.Socks.Close)
	p.l.Sock.Tickets = handed
	p.tickets = u.tickets([]*sockets.Listener{p.l}, p.config)
	return p
}

func (p *ticketed) handOver() manifest.Secret { return p.Tickets(p.l.Sock) }

func versions(t *testing.T, f func(t *testing.T, version uint16)) {
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(v), func(t *testing.T) { f(t, v) })
	}
}

// A ticket is good for all processes that the secrets have come to, and for no other.
func TestTicketsOutliveTheProcess(t *testing.T) {
	cert, trust := tlstest.Certificate(t)
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	versions(t, func(t *testing.T, version uint16) {
		client := returning(trust, version)
		p := newTicketed(t, config, "")
		if resumes(t, p.config, client) {
			t.Fatal("the first connection resumes a session")
		}
		for n := range 3 {
			next := newTicketed(t, config, p.handOver())
			if !resumes(t, next.config, client) {
				t.Errorf("the ticket of process %d is not good in the next one", n+1)
			}
			if !resumes(t, p.config, client) {
				t.Errorf("the ticket of process %d is not good in the one before, which a roll back needs", n+2)
			}
			p = next
		}
		if resumes(t, newTicketed(t, config, "").config, client) {
			t.Error("a process that was handed nothing resumes the session")
		}
	})
}

// Two sockets of one process have different keys.
func TestTicketsOfAnotherSocket(t *testing.T) {
	cert, trust := tlstest.Certificate(t)
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	versions(t, func(t *testing.T, version uint16) {
		p := newTicketed(t, config, "")
		ln, err := p.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, other := ln.(*sockets.Listener), config.Clone()
		if p.Host.tickets([]*sockets.Listener{l}, other) == nil {
			t.Fatal("the second socket has no keys")
		}
		if p.handOver() == p.Tickets(l.Sock) {
			t.Error("both sockets have the same secrets")
		}
		client := returning(trust, version)
		resumes(t, p.config, client)
		if resumes(t, other, client) {
			t.Error("the other socket takes the ticket")
		}
	})
	if unused, _ := newProcess(t); unused.Tickets(&sockets.Socket{}) != "" {
		t.Error("a socket that is no listener has secrets")
	}
}

// There is a new key each day, and none is used for longer than a week after that.
func TestTicketKeysRotate(t *testing.T) {
	cert, trust := tlstest.Certificate(t)
	now := time.Now()
	p := newTicketed(t, &tls.Config{Certificates: []tls.Certificate{cert}}, "", func(a *solo) { a.now = func() time.Time { return now } })
	first := p.tickets.set
	client := returning(trust, tls.VersionTLS13)
	resumes(t, p.config, client)
	again := func() bool { // with the ticket of the first day, which is not replaced
		c := client.Clone()
		c.ClientSessionCache = keepsFirst{client.ClientSessionCache}
		return resumes(t, p.config, c)
	}
	pass := func(d time.Duration) {
		now = now.Add(d)
		if err := p.tickets.renew(); err != nil {
			t.Fatal(err)
		}
	}
	if pass(ticketRotation - 1); p.tickets.set != first {
		t.Error("the key was replaced before a day was over")
	}
	for day := 1; day <= 20; day++ {
		before := p.tickets.set
		if pass(ticketRotation); p.tickets.set.value == before.value {
			t.Fatalf("after day %d the key is the same", day)
		}
		if got, want := again(), day < 7; got != want {
			t.Errorf("after day %d the ticket of the first is good: %v, want %v", day, got, want)
		}
		if got, want := len(p.tickets.secrets.all), min(day, 7)+1; day < 7 && got != want || got > 8 {
			t.Errorf("after day %d there are %d secrets, want %d", day, got, want)
		}
	}
	if pass(100 * ticketRotation); len(p.tickets.secrets.all) != 1 {
		t.Errorf("after a pause there are %d secrets, want 1", len(p.tickets.secrets.all))
	}
}

// keepsFirst is a cache that takes nothing more.
type keepsFirst struct{ tls.ClientSessionCache }

func (keepsFirst) Put(string, *tls.ClientSessionState) {}

// A key whose time is nearly over when the secrets go over is replaced before: the next one
// would be this process's alone.
func TestTicketKeysRotateBeforeTheHandOver(t *testing.T) {
	cert, trust := tlstest.Certificate(t)
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	for age, want := range map[time.Duration]int{ticketRotation - ticketAhead - 1: 1, ticketRotation - ticketAhead: 2} {
		now := time.Now()
		clock := func(a *solo) { a.now = func() time.Time { return now } }
		p := newTicketed(t, config, "", clock)
		now = now.Add(age)
		handed := p.handOver()
		if got := strings.Count(string(handed), ":"); got != want {
			t.Errorf("after %v %d secrets go over, want %d", age, got, want)
		}
		now = now.Add(ticketAhead)
		p.tickets.renew()
		client := returning(trust, tls.VersionTLS13)
		resumes(t, p.config, client)
		if !resumes(t, newTicketed(t, config, handed, clock).config, client) {
			t.Errorf("after %v the secrets go over, and a ticket that the old process gives %v later is not good in the new one", age, ticketAhead)
		}
	}
}

// The door sees to the rotation: no timer does.
func TestTicketKeysRotateAtAConnection(t *testing.T) {
	cert, trust := tlstest.Certificate(t)
	now := make(chan time.Time, 1)
	now <- time.Now()
	u, ln := newProcess(t, func(a *solo) {
		a.now = func() time.Time { at := <-now; now <- at; return at }
	})
	srv := &http.Server{TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, Handler: http.NotFoundHandler()}
	serve := u.HTTPS(srv, ln, "", "")
	served := make(chan error, 1)
	go func() { served <- serve() }()
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	ask := func(client *tls.Config) bool {
		t.Helper()
		c, err := tls.Dial("tcp", ln.Addr().String(), client)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(wait.Limit))
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n")
		if _, err := io.ReadAll(c); err != nil {
			t.Fatal(err)
		}
		return c.ConnectionState().DidResume
	}
	client := returning(trust, tls.VersionTLS13)
	ask(client)
	sock := ln.(*sockets.Listener).Sock
	before := u.Tickets(sock)
	now <- (<-now).Add(ticketRotation)
	if !ask(client) {
		t.Error("the ticket of the day before is not good")
	}
	s := u.ticketSecrets([]*sockets.Listener{ln.(*sockets.Listener)})
	s.mu.Lock()
	n := len(s.all)
	s.mu.Unlock()
	if n != 2 {
		t.Errorf("after a day and a connection there are %d secrets, want 2", n)
	}
	// The second ticket is one of the new key: the secrets of before don't do for it.
	other := newTicketed(t, srv.TLSConfig, before)
	if resumes(t, other.config, client) {
		t.Error("the ticket of the second day is one of the first day's key")
	}
	u.askStop()
	wait.For(t, u.Done(), "the end")
	if err := wait.For(t, served, "the server to end"); err != nil {
		t.Error(err)
	}
}

// What the program has set itself counts.
func TestTicketsOfTheProgramItself(t *testing.T) {
	cert, trust := tlstest.Certificate(t)
	base := &tls.Config{Certificates: []tls.Certificate{cert}}
	used := base.Clone()
	resumes(t, used, returning(trust, tls.VersionTLS13))
	for _, c := range []struct {
		name string
		set  func(*tls.Config)
		ours bool
	}{
		{"nothing", func(*tls.Config) {}, true},
		{"a config that is in use elsewhere", func(c *tls.Config) {
			//lint:ignore SA1019 crypto/tls has written into it
			c.SessionTicketKey = used.SessionTicketKey
		}, true},
		{"SetSessionTicketKeys", func(c *tls.Config) { c.SetSessionTicketKeys([][32]byte{{1}}) }, false},
		{"SessionTicketKey", func(c *tls.Config) {
			//lint:ignore SA1019 this is what is tested
			c.SessionTicketKey = [32]byte{1}
		}, false},
		{"SessionTicketsDisabled", func(c *tls.Config) { c.SessionTicketsDisabled = true }, false},
		{"WrapSession", func(c *tls.Config) { c.WrapSession = base.EncryptTicket }, false},
		{"UnwrapSession", func(c *tls.Config) { c.UnwrapSession = base.DecryptTicket }, false},
	} {
		config := base.Clone()
		c.set(config)
		was := reflect.ValueOf(config).Elem().FieldByName("sessionTicketKeys").Len()
		p := newTicketed(t, config, newTicketed(t, base, "").handOver())
		if got := p.tickets != nil; got != c.ours {
			t.Errorf("%s: the keys are ours: %v, want %v", c.name, got, c.ours)
		}
		if got := reflect.ValueOf(p.config).Elem().FieldByName("sessionTicketKeys").Len(); !c.ours && got != was {
			t.Errorf("%s: the config has %d keys, had %d", c.name, got, was)
		}
		if got := p.handOver() != ""; got != c.ours {
			t.Errorf("%s: secrets go over: %v, want %v", c.name, got, c.ours)
		}
	}
	// The program's key is the one that counts on the wire as well.
	versions(t, func(t *testing.T, version uint16) {
		own := base.Clone()
		own.SetSessionTicketKeys([][32]byte{{1}})
		client := returning(trust, version)
		resumes(t, own, client)
		if !resumes(t, newTicketed(t, own, "").config, client) {
			t.Error("a ticket of the program's own key is not good")
		}
	})
}

// If crypto/tls keeps the keys elsewhere one day, they count as the program's.
func TestTicketKeysThatCannotBeSeen(t *testing.T) {
	for _, c := range []any{struct{}{}, struct{ sessionTicketKeys map[int]int }{}, struct{ sessionTicketKeys any }{}} {
		if !hasTicketKeys(reflect.ValueOf(c)) {
			t.Errorf("%T: there are no keys of the program's, it says", c)
		}
	}
}

// What comes from another version, or is no secret at all, is no reason to fail, and never
// more than there may be.
func TestTicketSecretsOfAnotherVersion(t *testing.T) {
	now := time.Now()
	key := strings.Repeat("0f", 32)
	at := func(ago time.Duration) string { return fmt.Sprintf("%d:%s", now.Add(-ago).Unix(), key) }
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"nothing":       {"", 0},
		"one":           {at(time.Hour), 1},
		"two":           {at(time.Hour) + " " + at(25*time.Hour), 2},
		"the limit":     {strings.Repeat(at(time.Hour)+" ", maxTicketSecrets-2) + at(0), maxTicketSecrets - 1},
		"too many":      {strings.Repeat(at(time.Hour)+" ", maxTicketSecrets) + at(0), 0},
		"far too many":  {strings.Repeat(at(time.Hour)+" ", 1000) + at(0), 0},
		"one too old":   {at(time.Hour) + " " + at(ticketLifetime), 1},
		"all too old":   {at(ticketLifetime) + " " + at(2*ticketLifetime), 0},
		"of the future": {at(-100 * time.Hour), 1},
		"too short":     {at(time.Hour)[:40], 0},
		"too long":      {at(time.Hour) + "0f", 0},
		"no hex":        {fmt.Sprintf("%d:%s", now.Unix(), strings.Repeat("x", 64)), 0},
		"no time":       {"x:" + key, 0},
		"no colon":      {key, 0},
		"a huge time":   {"99999999999999999999:" + key, 0},
		"spaces":        {"   ", 0},
		"something new": {"v2 " + at(time.Hour), 0},
	} {
		s := &ticketSecrets{now: func() time.Time { return now }}
		s.decode(manifest.Secret(c.text))
		if len(s.all) != c.want {
			t.Errorf("%s: %d secrets, want %d", name, len(s.all), c.want)
		}
		for _, secret := range s.all {
			if age := now.Sub(secret.made); age < 0 || age >= ticketLifetime {
				t.Errorf("%s: a secret is %v old", name, age)
			}
		}
	}
}

func FuzzTicketSecrets(f *testing.F) {
	f.Add("1:" + strings.Repeat("0f", 32) + " 2:" + strings.Repeat("0f", 32))
	f.Add(": :  -1:")
	now := time.Unix(1e9, 0)
	f.Fuzz(func(t *testing.T, text string) {
		s := &ticketSecrets{now: func() time.Time { return now }}
		s.decode(manifest.Secret(text))
		again := &ticketSecrets{now: s.now}
		again.decode(s.encode())
		if len(s.all) == 0 || len(s.all) > maxTicketSecrets || len(again.all) == 0 || again.all[0].value != s.all[0].value {
			t.Errorf("%d secrets, and then %d", len(s.all), len(again.all))
		}
	})
}
