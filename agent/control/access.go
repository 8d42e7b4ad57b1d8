package control

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/protocol"
)

// Account is a user or a group of this host. The zero value is none.
type Account struct {
	Name string
	ID   int
}

func (a Account) given() bool { return a.Name != "" }

// Access says who may use the control socket, beside root and the agent's own
// user. The zero value: nobody else.
type Access struct {
	Owner   Account // a user who may do everything
	Group   Account // a group whose members may do everything
	Readers Account // a group whose members may look at states and events
}

// socket is the access to the socket file. Two groups cannot own one file: then
// everybody may connect, and the server alone decides, as it does in any case.
func (a Access) socket() nbd.Access {
	s := nbd.Private()
	if a.Owner.given() {
		s.UID = a.Owner.ID
	}
	switch {
	case a.Group.given() && a.Readers.given():
		s.GID, s.Mode = a.Group.ID, 0o666
	case a.Group.given():
		s.GID, s.Mode = a.Group.ID, 0o660
	case a.Readers.given():
		s.GID, s.Mode = a.Readers.ID, 0o660
	}
	return s
}

// right is what a caller may do.
type right uint8

const (
	nothing right = iota
	reading
	everything
)

// caller is who made a connection, as the kernel noted it then.
type caller struct {
	uid, pid int
	right    right
}

// user returns the user's name, or the number where there is none.
func (c caller) user() string {
	if u, err := user.LookupId(strconv.Itoa(c.uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(c.uid)
}

// attrs are the caller in a line of the log.
func (c caller) attrs() []any {
	return []any{slog.String("user", c.user()), slog.Int("uid", c.uid), slog.Int("pid", c.pid)}
}

// callerOf asks the kernel who is at the other end.
func (a Access) callerOf(c *net.UnixConn) (caller, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return caller{}, err
	}
	var cred *unix.Ucred
	var groups []int
	if e := raw.Control(func(fd uintptr) {
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			groups, err = peerGroups(fd)
		}
	}); e != nil {
		err = e
	}
	if err != nil {
		return caller{}, fmt.Errorf("credentials of a caller: %w", err)
	}
	who := caller{uid: int(cred.Uid), pid: int(cred.Pid)}
	who.right = a.rightOf(who.uid, append(groups, int(cred.Gid)))
	return who, nil
}

func (a Access) rightOf(uid int, groups []int) right {
	switch {
	case uid == 0, uid == os.Geteuid(), a.Owner.given() && uid == a.Owner.ID,
		a.Group.given() && slices.Contains(groups, a.Group.ID):
		return everything
	case a.Readers.given() && slices.Contains(groups, a.Readers.ID):
		return reading
	}
	return nothing
}

// peerGroups returns the supplementary groups that the other end had when it
// connected.
func peerGroups(fd uintptr) ([]int, error) {
	const groupsMax = 1 << 16 // the kernel's NGROUPS_MAX
	for ids := make([]uint32, 64); ; ids = make([]uint32, min(4*len(ids), groupsMax)) {
		n := uint32(4 * len(ids)) // bytes
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&ids[0])), uintptr(unsafe.Pointer(&n)), 0)
		switch {
		case e == unix.ERANGE && len(ids) < groupsMax:
			continue
		case e != 0:
			return nil, os.NewSyscallError("getsockopt SO_PEERGROUPS", e)
		}
		out := make([]int, n/4)
		for i := range out {
			out[i] = int(ids[i])
		}
		return out, nil
	}
}

// guestsMax bounds the connections of callers who may not do everything: the
// socket may be open to every user of the host.
const guestsMax = 64

// gate is the control socket's listener. It knows each connection's caller.
type gate struct {
	net.Listener
	access Access

	mu     sync.Mutex
	guests int // guarded by mu
}

// admitted is a connection with its caller.
type admitted struct {
	net.Conn
	caller caller
	leave  func()
}

// Close implements net.Conn.
func (c *admitted) Close() error {
	c.leave()
	return c.Conn.Close()
}

// Accept implements net.Listener. A caller who cannot be made out is one without
// rights.
func (g *gate) Accept() (net.Conn, error) {
	for {
		nc, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &admitted{Conn: nc, leave: func() {}, caller: caller{uid: -1}}
		if u, ok := nc.(*net.UnixConn); ok {
			if who, err := g.access.callerOf(u); err == nil {
				c.caller = who
			}
		}
		if c.caller.right == everything {
			return c, nil
		}
		if g.enter() {
			c.leave = sync.OnceFunc(g.left)
			return c, nil
		}
		nc.Close()
	}
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.guests >= guestsMax {
		return false
	}
	g.guests++
	return true
}

func (g *gate) left() {
	g.mu.Lock()
	g.guests--
	g.mu.Unlock()
}

type callerKey struct{}

// withCaller is the http.Server's ConnContext.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, callerKey{}, c.(*admitted).caller)
}

func callerFrom(r *http.Request) caller { return r.Context().Value(callerKey{}).(caller) }

// readable lists the routes that only look. Every other route, also one that is
// added some day, needs all rights.
var readable = []string{"GET /v1/status", "GET /v1/events", "GET /v1/volumes/{name}/explain"}

// guard refuses callers what they may not do, and logs who asks for a change.
func (s *Server) guard(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := callerFrom(r)
		_, pattern := mux.Handler(r)
		needs := everything
		if slices.Contains(readable, pattern) {
			needs = reading
		}
		volume, operation := asked(r)
		attrs := append([]any{"operation", operation, "volume", volume}, who.attrs()...)
		if who.right < needs {
			if who.right == reading {
				s.log.Info("operation refused: the user may only read", attrs...)
			} else {
				s.log.Debug("refused: the user may not use the control socket", attrs...) // anybody may cause it
			}
			w.Header().Set("Connection", "close")
			writeJSON(w, http.StatusForbidden, struct {
				Error *ErrorBody `json:"error"`
			}{bodyOf(s.access.refusal(who, operation))})
			return
		}
		if r.Method != http.MethodGet && !strings.HasSuffix(pattern, "/wait") {
			s.log.Info("operation asked for", attrs...)
		}
		mux.ServeHTTP(w, r)
	})
}

// asked returns what a request is about: /v1/volumes/NAME/…/OPERATION.
func asked(r *http.Request) (volume, operation string) {
	parts := strings.Split(r.URL.Path, "/")
	if len(parts) > 4 && parts[2] == "volumes" {
		volume = parts[3]
	}
	return volume, path.Base(r.URL.Path)
}

// refusal says what the caller lacks and whom to ask.
func (a Access) refusal(c caller, operation string) error {
	who := fmt.Sprintf("user %s (uid %d)", c.user(), c.uid)
	full := "root only (control_group in the configuration names a group that may too)"
	if a.Group.given() {
		full = fmt.Sprintf("root and members of the group %s (control_group)", a.Group.Name)
	}
	if c.right == reading {
		return refuse(protocol.CodeNotAllowed, "%s is for %s; %s is in the group %s (control_readers), which may read status, events and explain", operation, full, who, a.Readers.Name)
	}
	text := "this control socket is for " + full
	if a.Readers.given() {
		text += fmt.Sprintf("; members of the group %s (control_readers) may read status, events and explain", a.Readers.Name)
	}
	return refuse(protocol.CodeNotAllowed, "%s; %s is none of them (a new membership counts from the next login)", text, who)
}
