// Package attach tests attached volumes as an administrator has them: a kernel block
// device under a mounted file system, with real agents that are killed, stopped,
// upgraded and replaced by their peer underneath. It takes root, FUSE and loop devices;
// where one is missing the tests are skipped and say so.
//
// QRBD_ATTACH_KILLS=n makes TestKilledUnderFileSystem kill the agent n times (3).
package attach
