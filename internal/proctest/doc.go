// Package proctest runs programs that replace themselves, and leaves none of
// their generations behind.
//
// Every program is started in a process group of its own, which all that
// descend from it share. The test process is made a child subreaper, so that a
// generation whose parent has ended comes to it and is reaped. That needs
// Linux; elsewhere the package is empty.
//
// A test package calls [Main] from its TestMain.
package proctest
