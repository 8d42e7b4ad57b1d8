package sessiontest

import (
	"bufio"
	"crypto/ed25519"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qrbd/qrbd/protocol/session"
)

// quick are timeouts at a tenth of the defaults.
func quick(o *session.Options) {
	o.Heartbeat, o.PeerTimeout, o.BackoffMax = heartbeat/10, peerTimeout/10, backoffMax/10
}

const childEnv = "QRBD_SESSION_TEST_PEER" // "key of the parent, its address, seed file"

// runChild is a node in a process of its own, which ends with its stdin.
func (w With) runChild(t *testing.T, spec string) {
	part := strings.Split(spec, " ")
	key, err := session.ParseKey(part[0])
	if err != nil {
		t.Fatal(err)
	}
	id, err := session.LoadIdentity(part[2])
	if err != nil {
		t.Fatal(err)
	}
	beta := w.startNode(t, "beta", id, quick)
	if err := beta.AddPeer(session.Peer{Name: "alpha", Address: part[1], Keys: []ed25519.PublicKey{key}, Transport: w.Transport}); err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("listening " + beta.Addr().String() + "\n")
	io.Copy(io.Discard, os.Stdin)
}

// testStoppedProcess: a peer whose process is stopped is noticed in time; when
// it goes on there is a session again.
func (w With) testStoppedProcess(t *testing.T) {
	if spec := os.Getenv(childEnv); spec != "" {
		w.runChild(t, spec)
		return
	}
	dir := t.TempDir()
	id, err := session.LoadOrCreateIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	alpha := w.startNode(t, "alpha", newIdentity(t), quick)
	child := exec.Command(os.Args[0], "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
	child.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{alpha.id.PublicKey(), alpha.Addr().String(), dir}, " "))
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		child.Process.Signal(syscall.SIGCONT)
		in.Close()
		child.Wait()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	alpha.knowsAs("beta", strings.TrimSpace(strings.TrimPrefix(line, "listening ")), id)
	next(t, alpha.ups, "session")

	start := time.Now()
	child.Process.Signal(syscall.SIGSTOP)
	if err := next(t, alpha.downs, "down"); !errors.Is(err, session.ErrSilent) {
		t.Errorf("cause %v", err)
	}
	// Twice the promise, for a busy machine.
	if took, promise := time.Since(start), (peerTimeout+heartbeat)/10; took > 2*promise {
		t.Errorf("noticed after %v, promised %v", took, promise)
	}
	child.Process.Signal(syscall.SIGCONT)
	next(t, alpha.ups, "session after the pause")
}
