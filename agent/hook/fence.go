package hook

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Answer is what a fence-peer command says with its exit status. The numbers are
// DRBD's.
type Answer int

// The answers. Every other status, 0 among them, a signal, and the end of the time
// limit say that nothing is known.
const (
	PeerInconsistent Answer = 3 // the peer's disk is inconsistent: it cannot be promoted
	PeerOutdated     Answer = 4 // the peer knows, durably, that its data are old, or the cluster manager keeps it from being promoted
	PeerUnreachable  Answer = 5 // the peer cannot be reached in any way; it may be alive
	PeerPrimary      Answer = 6 // the peer is primary
	PeerStonithed    Answer = 7 // the peer was switched off since it was asked about
)

// Known reports whether the status is one of the answers.
func (a Answer) Known() bool { return a >= PeerInconsistent && a <= PeerStonithed }

// String returns the answer in words.
func (a Answer) String() string {
	switch a {
	case PeerInconsistent:
		return "3, the peer is inconsistent"
	case PeerOutdated:
		return "4, the peer is outdated"
	case PeerUnreachable:
		return "5, the peer is unreachable"
	case PeerPrimary:
		return "6, the peer is primary"
	case PeerStonithed:
		return "7, the peer was switched off"
	}
	return fmt.Sprintf("%d, which is no answer", int(a))
}

// AnswerOf returns the exit status behind what Ask returned; 0: it exited with 0, -1:
// it did not exit by itself, or was never started.
func AnswerOf(err error) Answer {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return Answer(exit.ExitCode())
	}
	return -1
}

// Executable says why a command could not be started on this host; nil: nothing is
// known against it.
func (c Command) Executable() error {
	if len(c) == 0 {
		return errors.New("there is no command")
	}
	info, err := os.Stat(c[0])
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no file", c[0])
	}
	if err := unix.Access(c[0], unix.X_OK); err != nil {
		return fmt.Errorf("%s cannot be executed by this user: %w; chmod +x %s", c[0], err, c[0])
	}
	return nil
}
