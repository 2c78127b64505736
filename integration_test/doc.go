// Package integration runs upgrades of real processes over real sockets, on Linux. The
// root's own tests run whole upgrades too, several generations in one process: they are
// faster and reach states that no signal reaches. What is here needs processes: what the
// kernel hands on and forgets, which of them are dead, what other programs see.
//
// # Where a behaviour is proven
//
//	a request or a connection is lost    loss_*, upgrade, accept, drain, move, move_tls, move_full, socket
//	an upgrade that fails                broken, start, slow_exec, fault, enfile, inflight
//	a new process that dies or hangs     rollback, rollback_matrix, fault, stuck
//	a new process that does not work     sick
//	what the program is told of it       events
//	an old process that lingers          linger, linger_exclusive, systemd_linger, supervisors_linger
//	state in memory that goes over       carry
//	state that one process may have      exclusive, linger_exclusive
//	an old process that dies             killed, steps, last_stop
//	signals, and stops                   signals, group, hangup, steps, last_stop, lameduck
//	sockets that come, go and change     socket, socket_change, socket_binary, packet, nonblock, blocking
//	what a new process inherits          env, start, socket_binary, rights
//	the PID file                         pidfile, pidfile_fault
//	supervisors and scripts              supervisors, supervisors_linger, scripts, group
//	systemd                              systemd_*
//	socketmaster, einhorn, start_server  master_*
//	programs written for others          original (grace.v1), gracehttp, endless, tableflip, tableflip_*, compat/
//	what the README and docs/ say        readme, readme_links, systemd_docs, scripts
//	nothing piles up                     thousand
//	sendfile and splice still work       copy
//	TLS sessions are resumed             tickets
//	32 bit                               bits32
//	the cost of an upgrade               bench
//
// Each stands for the file of that name, with _test.go. docs/code.md says which file of the
// library a symptom comes from.
//
// What needs modules that the library does not is a module of its own: quic (quic-go), rpc
// (grpc-go and cmux), xnet (HTTP/2 of golang.org/x/net), h2spec (its cases, compared with
// net/http), dns (miekg/dns, and the source of UDP answers), exporter (Prometheus'
// exporter-toolkit, which serves by itself), graceprom (what Prometheus is told of upgrades),
// caddy (Caddy as a library) and compat (what the packages of compat/ stand in for, and fasthttp).
//
// # Programs
//
//	server        what most tests run: its flags say what it serves, a file how it misbehaves
//	loadserver    what the loss_* tests put under load, in every way that net/http serves
//	moveserver    connections of other protocols, which move
//	clients       clients of HTTPS in Node and Python, for loss_tls_clients
//	benchserver   what the benchmarks of an upgrade replace
//	ledger        has exclusive state and five kinds of listeners, or is the one-liner
//	badchild      a new process that breaks the protocol
//	inflight      uses up what the kernel allows of descriptors under way
//	original      a program as it was written for grace.v1
//	gracehttp     a program of compat/gracehttp
//	endless       a program of compat/endless
//	tableflip     a program of compat/tableflip, told what to do
//	einhorn       stands in for the master of that name
//	socketmaster  stands in for the two masters of that name
//
// # Helpers
//
// The files helpers_* hold no test:
//
//	helpers_server   starts server and asks for upgrades
//	helpers_loss     starts loadserver
//	helpers_clients  lets clients of others ask it again and again, through a relay each
//	helpers_front    starts proxies of others before it
//	helpers_tap      counts what clients of HTTP/2 send
//	helpers_master   runs server under a master
//	helpers_move     compares sockets
//	helpers_linger   opens long streams and sees that they live
//	helpers_systemd  boots a systemd in namespaces of its own
//
// Package internal/proctest starts programs, waits for their lines, and sees that no process
// is left; internal/load makes requests and counts what was lost; internal/testing/netns runs
// a test in a network of its own; internal/testing/lingertest paces upgrades under long streams; metricstest upgrades a
// program that counts its events.
package integration
