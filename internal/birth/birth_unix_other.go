//go:build unix && !linux

package birth

// Descriptors are those that the user has passed down. Only Linux lists them;
// elsewhere they are not passed on from the first process to the next one.
var Descriptors = describe(Given.Kept)
