package manifest

import (
	"bytes"
	"strconv"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/sdnotify"
)

// A Manifest is all that the new process gets from the old one, besides the
// descriptors.
type Manifest struct {
	Version    int
	Pid        int
	Generation int    // of the new process
	Dir        string // working directory of the first start
	Path       string // binary of the first start
	Binary     string // where Path led to then
	Carries    bool   // the old process has state in memory that it saves for the new one
	// Systemd is there if it is to be told of what happens.
	Systemd *sdnotify.Manager
	// Sockets[i] has the descriptor handover.first+i.
	Sockets []Entry
}

// An Entry describes one descriptor that is handed over.
type Entry struct {
	Kind    Kind
	Network string
	Addr    string // what was asked for, or the name of a file or connection; a pid, see Leash
	Bound   string // what the kernel says
	V6Only  bool
	// Path, Dev and Ino are those of a unix socket's file, so that only the
	// file that we made is ever removed.
	Path string
	Dev  uint64
	Ino  uint64
	// Master is true if a master has passed the socket and keeps it: no process of
	// ours removes its path, and its queue is not ours to empty.
	Master bool
	// Name is the one that the master gave it.
	Name string
	// Tickets are the secrets of the TLS session tickets of a server on it: see
	// tickets.go of internal/serve.
	Tickets Secret
}

// A Secret is not to be seen in a log or in an error, however it gets there.
type Secret string

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(secret)"
}

func (s Secret) GoString() string { return strconv.Quote(s.String()) }

type Kind string

const (
	Listener Kind = "listener"
	Packet   Kind = "packet"
	File     Kind = "file"
	Conn     Kind = "conn"
	// Leash is this end of an old process that lingers, whose pid is Addr; the oldest
	// comes first, and all of them after the sockets.
	Leash Kind = "leash"
	// PIDLock is the locked file beside the PID file; it comes last.
	PIDLock Kind = "pidlock"
)

// Claims is what the new process reports before it is ready.
type Claims struct {
	Sockets []int // indexes into manifest.Sockets
	// Takes names for each of Sockets the protocol of which the new process takes
	// moved connections. What it comes to take later has a message of its own.
	Takes []string
	// Pongs is true if the new process answers when it is asked whether it is
	// well.
	Pongs bool
	// Probes is true if it takes connections that a health check is made over.
	Probes bool
	// Keeps is true if the new process keeps the leash of an old one that lingers.
	Keeps bool
	// Exclusive is true if the new process waits for exclusive state before it accepts.
	Exclusive bool
}

func (c *Claims) Add(socket int, takes string) {
	c.Sockets, c.Takes = append(c.Sockets, socket), append(c.Takes, takes)
}

// How the types are written as records: see control.Records.

func (m *Manifest) Encode(r *control.Records) {
	r.Grow(512 + 128*len(m.Sockets))
	r.Number("version", uint64(m.Version))
	r.Number("pid", uint64(m.Pid))
	r.Number("generation", uint64(m.Generation))
	r.Text("dir", m.Dir)
	r.Text("path", m.Path)
	r.Text("binary", m.Binary)
	r.Flag("carries", m.Carries)
	if s := m.Systemd; s != nil {
		r.Text("notify", s.Socket)
		r.Number("watchdog", uint64(s.Watchdog))
		r.Flag("child", s.Parent)
	}
	r.End()
	for i := range m.Sockets {
		e := &m.Sockets[i]
		r.Text("kind", string(e.Kind))
		r.Text("network", e.Network)
		r.Text("addr", e.Addr)
		r.Text("bound", e.Bound)
		r.Flag("v6only", e.V6Only)
		if e.Path != "" {
			r.Text("path", e.Path)
			r.Number("dev", e.Dev)
			r.Number("ino", e.Ino)
		}
		r.Flag("master", e.Master)
		r.Text("name", e.Name)
		r.Text("tickets", string(e.Tickets))
		r.End()
	}
}

func (m *Manifest) Decode(payload []byte) error {
	*m = Manifest{Sockets: make([]Entry, 0, bytes.Count(payload, []byte("\n")))}
	n := -1
	var e *Entry
	return control.ReadRecords(payload, func() {
		if n++; n > 0 {
			m.Sockets = append(m.Sockets, Entry{})
			e = &m.Sockets[n-1]
		}
	}, func(f *control.Field) {
		if n == 0 {
			m.field(f)
		} else {
			e.field(f)
		}
	})
}

func (m *Manifest) field(f *control.Field) {
	switch f.Key {
	case "version":
		m.Version = f.Int()
	case "pid":
		m.Pid = f.Int()
	case "generation":
		m.Generation = f.Int()
	case "dir":
		m.Dir = f.Value
	case "path":
		m.Path = f.Value
	case "binary":
		m.Binary = f.Value
	case "carries":
		m.Carries = f.Flag()
	case "notify":
		m.Systemd = &sdnotify.Manager{Socket: f.Value}
	case "watchdog":
		if m.Systemd != nil {
			m.Systemd.Watchdog = f.Duration()
		}
	case "child":
		if m.Systemd != nil {
			m.Systemd.Parent = f.Flag()
		}
	}
}

func (e *Entry) field(f *control.Field) {
	switch f.Key {
	case "kind":
		e.Kind = Kind(f.Value)
	case "network":
		e.Network = f.Value
	case "addr":
		e.Addr = f.Value
	case "bound":
		e.Bound = f.Value
	case "v6only":
		e.V6Only = f.Flag()
	case "path":
		e.Path = f.Value
	case "dev":
		e.Dev = f.Number()
	case "ino":
		e.Ino = f.Number()
	case "master":
		e.Master = f.Flag()
	case "name":
		e.Name = f.Value
	case "tickets":
		e.Tickets = Secret(f.Value)
	}
}

// Encode writes one record about all of the claims, and then one for each socket.
func (c *Claims) Encode(r *control.Records) {
	r.Flag("pongs", c.Pongs)
	r.Flag("probes", c.Probes)
	r.Flag("keeps", c.Keeps)
	r.Flag("exclusive", c.Exclusive)
	r.End()
	for i, socket := range c.Sockets {
		r.Number("socket", uint64(socket))
		r.Text("takes", c.Takes[i])
		r.End()
	}
}

func (c *Claims) Decode(payload []byte) error {
	*c = Claims{}
	n := -1
	return control.ReadRecords(payload, func() {
		if n++; n > 0 {
			c.Add(0, "")
		}
	}, func(f *control.Field) {
		switch {
		case n == 0 && f.Key == "pongs":
			c.Pongs = f.Flag()
		case n == 0 && f.Key == "probes":
			c.Probes = f.Flag()
		case n == 0 && f.Key == "keeps":
			c.Keeps = f.Flag()
		case n == 0 && f.Key == "exclusive":
			c.Exclusive = f.Flag()
		case n > 0 && f.Key == "socket":
			c.Sockets[n-1] = f.Int()
		case n > 0 && f.Key == "takes":
			c.Takes[n-1] = f.Value
		}
	})
}
