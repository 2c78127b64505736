package grace

// An Inherited is something that was handed over to this process.
type Inherited struct {
	// Kind is "listener", "packet", "file" or "conn": what Listen, ListenPacket,
	// File and Conn give.
	Kind string
	// Network and Addr are those by which the old process asked for a socket, or
	// what is bound if a master or systemd has passed it. Of a file and a
	// connection Addr is the name, and Network is empty.
	Network, Addr string
}

// Inherited lists what was handed over to this process, by the old process, a
// master or systemd, and what no Listen, ListenPacket, File or Conn has asked for
// yet. What is left of an old process's when [Upgrader.Ready] returns is that one's,
// and is listed no more.
func (u *Upgrader) Inherited() []Inherited {
	left := u.socks.Leftover()
	list := make([]Inherited, len(left))
	for i, in := range left {
		list[i] = Inherited{Kind: string(in.Kind), Network: in.Network, Addr: in.Addr}
		if in.Master && in.Addr == "" {
			list[i].Addr = in.Bound
		}
	}
	return list
}
