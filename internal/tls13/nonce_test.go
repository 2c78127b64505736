package tls13

import (
	"bytes"
	"strings"
	"testing"
)

// TestNoNonceTwice takes a connection through moves of all kinds, one that is refused, key
// updates, and writes where none should be. Then each record
// that was on the wire is opened, with each key and each number that may be its own: none
// may be there twice.
func TestNoNonceTwice(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	talk(t, p.client, p.server)
	first := get(Extract(p.server))(t) // its secrets are those of the test's own count
	s := p.extract(t)
	late := func() { // what is dead writes on
		p.server.Write([]byte("late"))
		p.server.CloseWrite()
		p.server.Close()
	}
	late()
	c := resume(t, p.below, s)
	talk(t, p.client, c)

	// A process gets the State and does not take the connection.
	s = get(c.Extract())(t)
	refused := get(Decode(get(s.Encode())(t)))(t)
	c = get(New(p.below, &s, c.ConnectionState()))(t)
	if second, err := New(p.below, &s, c.ConnectionState()); err == nil {
		t.Errorf("a second Conn was made of one State: %v", second)
	}
	refused.Wipe()
	talk(t, p.client, c)

	keys := 1
	for i := range 10 {
		dead := c
		c = again(t, c)
		dead.Write([]byte("late"))
		dead.updateKeys(true)
		dead.CloseWrite()
		dead.Close()
		late()
		if i%3 == 0 {
			check(t, c.updateKeys(i%2 == 0))
			keys++
		}
		talk(t, p.client, c)
		say(t, c, p.client, strings.Repeat("x", 3000*i))
	}
	c.out.limit = 3
	for range 10 {
		before := c.out.seq
		say(t, c, p.client, "x")
		if c.out.seq <= before {
			keys++
		}
	}
	check(t, c.Close())

	wire := p.below.written()
	type use struct{ key, number uint64 }
	used := map[use]int{}
	suite := get(suiteOf(first.Suite))(t)
	secrets := [][]byte{first.Out.Secret}
	for range keys {
		secrets = append(secrets, get(suite.expandLabel(secrets[len(secrets)-1], "traffic upd", suite.size))(t))
	}
	var records [][]byte
	for b := wire; len(b) > 0; {
		n := headerLen + (int(b[3])<<8 | int(b[4]))
		records, b = append(records, b[:n]), b[n:]
	}
	for i, r := range records {
		var found []use
		for key, secret := range secrets {
			h := half{suite: suite}
			check(t, h.set(secret, 0))
			for number := range uint64(len(records)) {
				h.seq = number
				if _, err := h.open(bytes.Clone(r)); err == nil {
					found = append(found, use{uint64(key), number})
				}
			}
		}
		switch {
		case len(found) == 0 && len(used) > 0:
			t.Errorf("record %d of %d was sealed with no key and number of this connection", i, len(records))
		case len(found) > 1:
			t.Errorf("record %d opens with all of %v", i, found)
		case len(found) == 1:
			if other, ok := used[found[0]]; ok {
				t.Errorf("records %d and %d were sealed with key %d and number %d", other, i, found[0].key, found[0].number)
			}
			used[found[0]] = i
		}
	}
	last := map[uint64]uint64{}
	for u := range used {
		last[u.key] = max(last[u.key], u.number)
	}
	total := 0
	for _, n := range last {
		total += int(n) + 1
	}
	if total != len(used) || len(last) < keys {
		t.Errorf("%d records with %d keys; by their numbers there should be %d, and %d keys", len(used), len(last), total, keys)
	}
	t.Logf("%d records with %d keys, each number once", len(used), len(last))
}
