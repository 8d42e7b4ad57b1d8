package kernel

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Family is the driver's name in generic netlink.
const Family = "nbd"

// answerTimeout bounds the wait for an answer of the driver. CONNECT and DISCONNECT
// wait for nothing but the driver's own locks.
const answerTimeout = 30 * time.Second

// Any asks for whichever device is free.
const Any = -1

// Errors that a caller tells apart.
var (
	// ErrNoDriver says that this kernel has no nbd driver, or that it is not loaded.
	ErrNoDriver = errors.New("the kernel has no nbd driver: run modprobe nbd, or attach with --method fuse")
	// ErrBusy says that the device is in use.
	ErrBusy = errors.New("the device is in use")
	// ErrNotConnected says that the device is not attached, or not to this backend.
	ErrNotConnected = errors.New("the device is not attached")
	// ErrNoFlush says that an export does not take flushes.
	ErrNoFlush = errors.New("the export does not offer flush: the kernel would never send one")
	// ErrNoSockets says that a device was to be given no sockets, or several for an
	// export whose flushes do not reach across connections.
	ErrNoSockets = errors.New("no usable set of connections")
)

// The commands and attributes of the family.
const (
	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdStatus      = 5

	attrIndex       = 1 // u32
	attrSize        = 2 // u64, bytes
	attrBlockSize   = 3 // u64, bytes
	attrTimeout     = 4 // u64, seconds
	attrServerFlags = 5 // u64, transmission flags
	attrClientFlags = 6 // u64
	attrSockets     = 7 // nested
	attrDeadTimeout = 8 // u64, seconds
	attrDevices     = 9 // nested
	attrBackend     = 10

	sockItem = 1 // nested in attrSockets
	sockFD   = 1 // u32

	deviceItem      = 1 // nested in attrDevices
	deviceIndex     = 1 // u32
	deviceConnected = 2 // u8

	version = 1
)

// Transmission flags that Connect looks at (the NBD protocol's).
const (
	flagSendFlush    = 1 << 2
	flagCanMultiConn = 1 << 8
)

// Settings describe a device.
type Settings struct {
	Index     int    // of /dev/nbdN; Any for one that is free
	Size      uint64 // bytes, a multiple of BlockSize
	BlockSize uint64 // bytes, a power of two from 512 to 4096
	Flags     uint16 // the export's transmission flags

	// Timeout is how long the kernel waits for an answer before it takes the
	// connection for dead and sends the request again on another; DeadTimeout, how
	// long requests wait when no connection is left before they fail. Whole seconds.
	Timeout, DeadTimeout time.Duration

	// Backend names what is behind the device (up to 255 bytes). Reconfigure
	// refuses a device that was attached with another name. Kernels before 5.14
	// do not know it.
	Backend string

	// Conns are connected stream sockets on which the handshake is over and simple
	// replies were agreed. The kernel keeps them; the caller may close its own.
	Conns []syscall.Conn
}

// Client speaks to the driver.
type Client struct {
	conn    *genetlink.Conn
	family  uint16
	bounded bool // the connection takes deadlines: all but a test's
}

// Dial reaches the driver. It needs CAP_SYS_ADMIN to be of use; ErrNoDriver says that
// there is none.
func Dial() (*Client, error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("generic netlink: %w", err)
	}
	c, err := newClient(conn)
	if err != nil {
		_ = conn.Close() // nothing was sent that could be lost
		return nil, err
	}
	c.bounded = true
	return c, nil
}

func newClient(conn *genetlink.Conn) (*Client, error) {
	f, err := conn.GetFamily(Family)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, ErrNoDriver
	case err != nil:
		return nil, fmt.Errorf("generic netlink family %s: %w", Family, err)
	}
	return &Client{conn: conn, family: f.ID}, nil
}

// Close ends the conversation. Devices stay as they are.
func (c *Client) Close() error { return c.conn.Close() }

// Connect makes a device of connections and returns its index.
//
// Errors: ErrNoFlush, ErrNoSockets before anything is sent; ErrBusy when the device is
// in use, or none is free.
func (c *Client) Connect(s Settings) (int, error) {
	if err := s.check(); err != nil {
		return 0, err
	}
	answers, err := c.ask(cmdConnect, s.Conns, func(ae *netlink.AttributeEncoder) {
		if s.Index != Any {
			ae.Uint32(attrIndex, uint32(s.Index))
		}
		s.encode(ae)
	})
	if err != nil {
		return 0, s.explain("attaching", err)
	}
	for _, m := range answers {
		ad, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return 0, fmt.Errorf("the driver's answer: %w", err)
		}
		for ad.Next() {
			if ad.Type() == attrIndex {
				return int(ad.Uint32()), nil
			}
		}
		if err := ad.Err(); err != nil {
			return 0, fmt.Errorf("the driver's answer: %w", err)
		}
	}
	return 0, errors.New("the driver does not say which device it took")
}

// Reconfigure gives an attached device new connections for those that have died.
//
// The driver takes a new connection only for one that it knows is dead, and says
// nothing when there is none: who replaces a server closes the old connections first,
// and asks again until requests are answered.
//
// Errors: ErrNotConnected when the device is not attached, or to another backend.
func (c *Client) Reconfigure(s Settings) error {
	if err := s.check(); err != nil {
		return err
	}
	if s.Index == Any {
		return fmt.Errorf("%w: no device was named", ErrNotConnected)
	}
	_, err := c.ask(cmdReconfigure, s.Conns, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(attrIndex, uint32(s.Index))
		s.encode(ae)
	})
	return s.explain("reconnecting", err)
}

// Resize gives an attached device another size, in bytes, a multiple of its block size.
// Whoever has it open sees the new one.
//
// Errors: ErrNotConnected when the device is not attached, or to another backend.
func (c *Client) Resize(index int, size uint64, backend string) error {
	_, err := c.ask(cmdReconfigure, nil, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(attrIndex, uint32(index))
		ae.Uint64(attrSize, size)
		if backend != "" {
			ae.String(attrBackend, backend)
		}
	})
	return Settings{Index: index}.explain("resizing", err)
}

// Disconnect takes a device down. Requests under way are finished or fail: whoever
// uses the device must have let go of it.
func (c *Client) Disconnect(index int) error {
	_, err := c.ask(cmdDisconnect, nil, func(ae *netlink.AttributeEncoder) { ae.Uint32(attrIndex, uint32(index)) })
	return Settings{Index: index}.explain("detaching", err)
}

// Connected tells which devices are attached, by index. Devices that the driver does
// not know of are left out.
func (c *Client) Connected() (map[int]bool, error) {
	answers, err := c.ask(cmdStatus, nil, func(*netlink.AttributeEncoder) {})
	if err != nil {
		return nil, fmt.Errorf("asking the nbd driver: %w", err)
	}
	devices := map[int]bool{}
	for _, m := range answers {
		ad, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return nil, fmt.Errorf("the driver's answer: %w", err)
		}
		for ad.Next() {
			if ad.Type() == attrDevices {
				ad.Nested(func(list *netlink.AttributeDecoder) error { return decodeDevices(list, devices) })
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("the driver's answer: %w", err)
		}
	}
	return devices, nil
}

func decodeDevices(list *netlink.AttributeDecoder, devices map[int]bool) error {
	for list.Next() {
		if list.Type() != deviceItem {
			continue
		}
		list.Nested(func(d *netlink.AttributeDecoder) error {
			index, connected := -1, false
			for d.Next() {
				switch d.Type() {
				case deviceIndex:
					index = int(d.Uint32())
				case deviceConnected:
					connected = d.Uint8() != 0
				}
			}
			if index >= 0 {
				devices[index] = connected
			}
			return d.Err()
		})
	}
	return list.Err()
}

// check refuses what the driver would take and do badly with.
func (s Settings) check() error {
	switch {
	case len(s.Conns) == 0:
		return fmt.Errorf("%w: none was given", ErrNoSockets)
	case len(s.Conns) > 1 && s.Flags&flagCanMultiConn == 0:
		return fmt.Errorf("%w: %d, and a flush on one of them does not reach what was written on another", ErrNoSockets, len(s.Conns))
	case s.Flags&flagSendFlush == 0:
		return ErrNoFlush
	case s.BlockSize < 512 || s.BlockSize > 4096 || s.BlockSize&(s.BlockSize-1) != 0:
		return fmt.Errorf("block size %d: the kernel takes powers of two from 512 to 4096", s.BlockSize)
	case s.Size == 0 || s.Size%s.BlockSize != 0:
		return fmt.Errorf("size %d is no multiple of the block size %d: the kernel would cut off its end", s.Size, s.BlockSize)
	case s.Timeout%time.Second != 0 || s.DeadTimeout%time.Second != 0 || s.DeadTimeout <= 0:
		return fmt.Errorf("timeouts %v and %v: whole seconds, and the dead time above 0: else a restart of the agent is an I/O error", s.Timeout, s.DeadTimeout)
	case len(s.Backend) > 255 || strings.ContainsRune(s.Backend, 0):
		return fmt.Errorf("backend %q: at most 255 bytes, none of them 0", s.Backend)
	}
	return nil
}

// encode writes everything but the index and the sockets.
func (s Settings) encode(ae *netlink.AttributeEncoder) {
	ae.Uint64(attrSize, s.Size)
	ae.Uint64(attrBlockSize, s.BlockSize)
	ae.Uint64(attrTimeout, uint64(s.Timeout/time.Second))
	ae.Uint64(attrServerFlags, uint64(s.Flags))
	ae.Uint64(attrClientFlags, 0)
	ae.Uint64(attrDeadTimeout, uint64(s.DeadTimeout/time.Second))
	if s.Backend != "" {
		ae.String(attrBackend, s.Backend)
	}
}

// explain names the device in an error of the driver's, and what the number means
// there.
func (s Settings) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	name := "an nbd device"
	if s.Index != Any {
		name = fmt.Sprintf("/dev/nbd%d", s.Index)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		err = ErrBusy
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOTCONN):
		err = ErrNotConnected
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("%w: the nbd driver needs root (CAP_SYS_ADMIN)", os.ErrPermission)
	case errors.Is(err, unix.EINVAL) && what != "attaching":
		err = fmt.Errorf("%w, or to another volume", ErrNotConnected)
	}
	return fmt.Errorf("%s %s: %w", what, name, err)
}

// ask sends a command, with sockets, and returns the answers. The sockets' numbers are
// held until the driver has taken them.
func (c *Client) ask(command uint8, conns []syscall.Conn, attributes func(*netlink.AttributeEncoder)) ([]genetlink.Message, error) {
	if c.bounded {
		if err := c.conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
			return nil, fmt.Errorf("generic netlink: %w", err)
		}
	}
	var answers []genetlink.Message
	err := withFDs(conns, nil, func(fds []uintptr) error {
		ae := netlink.NewAttributeEncoder()
		attributes(ae)
		if len(fds) > 0 {
			ae.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
				for _, fd := range fds {
					list.Nested(sockItem, func(item *netlink.AttributeEncoder) error {
						item.Uint32(sockFD, uint32(fd))
						return nil
					})
				}
				return nil
			})
		}
		data, err := ae.Encode()
		if err != nil {
			return fmt.Errorf("encoding: %w", err)
		}
		flags := netlink.Request | netlink.Acknowledge
		if command == cmdStatus || command == cmdConnect { // the answer is enough, and the driver sends no more
			flags = netlink.Request
		}
		answers, err = c.conn.Execute(genetlink.Message{Header: genetlink.Header{Command: command, Version: version}, Data: data}, c.family, flags)
		return err
	})
	return answers, err
}

// withFDs calls f with the numbers of the sockets, each kept open meanwhile.
func withFDs(conns []syscall.Conn, fds []uintptr, f func([]uintptr) error) error {
	if len(conns) == 0 {
		return f(fds)
	}
	raw, err := conns[0].SyscallConn()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoSockets, err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = withFDs(conns[1:], append(fds, fd), f) }); err != nil {
		return fmt.Errorf("%w: %w", ErrNoSockets, err)
	}
	return inner
}
