package mount

import (
	"os"
	"os/exec"
	"syscall"
)

// aloneEnv marks a process that has a mount namespace of its own.
const aloneEnv = "QRBD_TEST_MOUNTS"

// Alone starts this process again, in place, in a mount namespace of its own. It is
// called first thing by test programs that mount: whoever makes another namespace
// meanwhile (ip netns exec, unshare) takes a copy of every mount that it sees, and keeps
// the device busy after it was unmounted here. Without root it does nothing.
func Alone() {
	unshare, err := exec.LookPath("unshare")
	self, selfErr := os.Executable()
	if err != nil || selfErr != nil || os.Geteuid() != 0 || os.Getenv(aloneEnv) != "" {
		return
	}
	args := append([]string{"unshare", "--mount", "--propagation", "private", self}, os.Args[1:]...)
	_ = syscall.Exec(unshare, args, append(os.Environ(), aloneEnv+"=1")) // returns only if it failed: then as it was
}
