// Package tableflip has the names of github.com/cloudflare/tableflip v1.2.3 over
// [github.com/julofinance/grace/v3]: a program comes over by changing the import
// path.
//
//	upg, err := tableflip.New(tableflip.Options{PIDFile: "app.pid"})
//	…
//	defer upg.Stop()
//	go func() {
//		sig := make(chan os.Signal, 1)
//		signal.Notify(sig, syscall.SIGHUP)
//		for range sig {
//			upg.Upgrade()
//		}
//	}()
//	ln, err := upg.Listen("tcp", "localhost:8080")
//	…
//	go http.Serve(ln, handler)
//	if err := upg.Ready(); err != nil {
//		…
//	}
//	<-upg.Exit()
//
// What grace does better stays: a new process accepts nothing before it is ready,
// so that one that fails loses nothing; one that dies right after it was ready is
// rolled back; systemd is told. docs/compat.md lists what behaves otherwise, and
// what to change next so that idle keep-alive connections are not lost either.
//
// As with the original, nothing works on Windows, and New returns
// [ErrNotSupported] there; package
// [github.com/julofinance/grace/v3/compat/tableflip/testing] has a stand-in.
package tableflip
