package grace

import (
	"bytes"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/sdnotify"
)

// How the manifest and the messages are written as records: see control.Records.

func (m *manifest) Encode(r *control.Records) {
	r.Grow(512 + 128*len(m.Sockets))
	r.Number("version", uint64(m.Version))
	r.Number("pid", uint64(m.Pid))
	r.Number("generation", uint64(m.Generation))
	r.Text("dir", m.Dir)
	r.Text("path", m.Path)
	r.Text("binary", m.Binary)
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
		r.End()
	}
}

func (m *manifest) Decode(payload []byte) error {
	*m = manifest{Sockets: make([]entry, 0, bytes.Count(payload, []byte("\n")))}
	n := -1
	var e *entry
	return control.ReadRecords(payload, func() {
		if n++; n > 0 {
			m.Sockets = append(m.Sockets, entry{})
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

func (m *manifest) field(f *control.Field) {
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

func (e *entry) field(f *control.Field) {
	switch f.Key {
	case "kind":
		e.Kind = kind(f.Value)
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
	}
}

// The first record of claims is about all of them, the others have a socket each.
func (c *claims) Encode(r *control.Records) {
	r.Flag("pongs", c.Pongs)
	r.End()
	for i, socket := range c.Sockets {
		r.Number("socket", uint64(socket))
		r.Text("takes", c.Takes[i])
		r.End()
	}
}

func (c *claims) Decode(payload []byte) error {
	*c = claims{}
	n := -1
	return control.ReadRecords(payload, func() {
		if n++; n > 0 {
			c.add(0, "")
		}
	}, func(f *control.Field) {
		switch {
		case n == 0 && f.Key == "pongs":
			c.Pongs = f.Flag()
		case n > 0 && f.Key == "socket":
			c.Sockets[n-1] = f.Int()
		case n > 0 && f.Key == "takes":
			c.Takes[n-1] = f.Value
		}
	})
}

func (s *stopMessage) Encode(r *control.Records) {
	r.Flag("now", s.Now)
	r.Flag("leave", s.Leave)
	r.Flag("early", s.Early)
	r.End()
}

func (s *stopMessage) Decode(payload []byte) error {
	*s = stopMessage{}
	return control.ReadRecords(payload, func() {}, func(f *control.Field) {
		switch f.Key {
		case "now":
			s.Now = f.Flag()
		case "leave":
			s.Leave = f.Flag()
		case "early":
			s.Early = f.Flag()
		}
	})
}
