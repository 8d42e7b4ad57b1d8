package nbd

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Magic numbers. All integers on the wire are big-endian.
const (
	MagicInit       = protocol.NEGOTIATION_MAGIC_OLDSTYLE // "NBDMAGIC"
	MagicOption     = protocol.NEGOTIATION_MAGIC_OPTION   // "IHAVEOPT"
	MagicOptReply   = protocol.NEGOTIATION_MAGIC_REPLY
	MagicRequest    = protocol.TRANSMISSION_MAGIC_REQUEST
	MagicReply      = protocol.TRANSMISSION_MAGIC_REPLY
	MagicStructured = uint32(0x668e33ef)
)

// Handshake flags, the server's and the client's.
const (
	FlagFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	FlagNoZeroes      = uint16(1 << 1)
)

// Options that a client may send in the handshake.
const (
	OptExportName      = uint32(1)
	OptAbort           = protocol.NEGOTIATION_ID_OPTION_ABORT
	OptList            = protocol.NEGOTIATION_ID_OPTION_LIST
	OptStartTLS        = uint32(5)
	OptInfo            = protocol.NEGOTIATION_ID_OPTION_INFO
	OptGo              = protocol.NEGOTIATION_ID_OPTION_GO
	OptStructuredReply = uint32(8)
	OptListMetaContext = uint32(9)
	OptSetMetaContext  = uint32(10)
	OptExtendedHeaders = uint32(11)
)

const repErr = uint32(1 << 31)

// Types of replies to options. Those with the top bit set are errors.
const (
	RepAck         = protocol.NEGOTIATION_TYPE_REPLY_ACK
	RepServer      = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	RepInfo        = protocol.NEGOTIATION_TYPE_REPLY_INFO
	RepMetaContext = uint32(4)

	RepErrUnsup      = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	RepErrPolicy     = repErr | 2
	RepErrInvalid    = repErr | 3
	RepErrPlatform   = repErr | 4
	RepErrTLSReqd    = repErr | 5
	RepErrUnknown    = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	RepErrShutdown   = repErr | 7
	RepErrBlockSize  = repErr | 8
	RepErrTooBig     = repErr | 9
	RepErrExtHeaders = repErr | 10
)

// Kinds of information in INFO and GO.
const (
	InfoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	InfoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	InfoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	InfoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Transmission flags: what an export can do.
const (
	TxHasFlags        = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	TxReadOnly        = uint16(1 << 1)
	TxSendFlush       = uint16(1 << 2)
	TxSendFUA         = uint16(1 << 3)
	TxRotational      = uint16(1 << 4)
	TxSendTrim        = uint16(1 << 5)
	TxSendWriteZeroes = uint16(1 << 6)
	TxSendDF          = uint16(1 << 7)
	TxCanMultiConn    = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	TxSendResize      = uint16(1 << 9)
	TxSendCache       = uint16(1 << 10)
	TxSendFastZero    = uint16(1 << 11)
)

// Commands of the transmission phase.
const (
	CmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	CmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	CmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	CmdFlush       = uint16(3)
	CmdTrim        = uint16(4)
	CmdCache       = uint16(5)
	CmdWriteZeroes = uint16(6)
	CmdBlockStatus = uint16(7)
)

// Flags of a command.
const (
	CmdFlagFUA      = uint16(1 << 0)
	CmdFlagNoHole   = uint16(1 << 1)
	CmdFlagDF       = uint16(1 << 2)
	CmdFlagReqOne   = uint16(1 << 3)
	CmdFlagFastZero = uint16(1 << 4)
)

// Structured replies: the flag of the last chunk and the types of chunks.
const (
	ChunkDone = uint16(1 << 0)

	ChunkNone        = uint16(0)
	ChunkOffsetData  = uint16(1)
	ChunkOffsetHole  = uint16(2)
	ChunkBlockStatus = uint16(5)
	ChunkError       = uint16(1<<15 | 1)
	ChunkErrorOffset = uint16(1<<15 | 2)
)

// States of an extent in base:allocation.
const (
	StateHole = uint32(1 << 0)
	StateZero = uint32(1 << 1)
)

// ContextBaseAllocation is the one metadata context served.
const ContextBaseAllocation = "base:allocation"

// Errno is an error number as it travels in a reply.
type Errno uint32

// The error numbers of the protocol. EOK is success.
const (
	EOK       = Errno(0)
	EPERM     = Errno(protocol.TRANSMISSION_ERROR_EPERM)
	EIO       = Errno(5)
	ENOMEM    = Errno(12)
	EINVAL    = Errno(protocol.TRANSMISSION_ERROR_EINVAL)
	ENOSPC    = Errno(28)
	EOVERFLOW = Errno(75)
	ENOTSUP   = Errno(95)
	ESHUTDOWN = Errno(108)
)

var errnoNames = map[Errno]string{
	EOK: "success", EPERM: "EPERM", EIO: "EIO", ENOMEM: "ENOMEM", EINVAL: "EINVAL", ENOSPC: "ENOSPC",
	EOVERFLOW: "EOVERFLOW", ENOTSUP: "ENOTSUP", ESHUTDOWN: "ESHUTDOWN",
}

// Error returns the number's name, so that an Errno serves as a client's error.
func (e Errno) Error() string {
	if s, ok := errnoNames[e]; ok {
		return "nbd: " + s
	}
	return fmt.Sprintf("nbd: error %d", uint32(e))
}

// As gives errors.As the system's error number, which is the same.
func (e Errno) As(target any) bool {
	p, ok := target.(*syscall.Errno)
	if ok {
		*p = syscall.Errno(e)
	}
	return ok
}

// Limits.
const (
	// MaxString is the longest string the protocol allows, in bytes.
	MaxString = 4096
	// MaxPayload is the most data a READ or WRITE may carry, in bytes: what a
	// client may expect without asking.
	MaxPayload = 32 << 20

	requestLen    = 28 // magic 4, flags 2, type 2, cookie 8, offset 8, length 4
	simpleLen     = 16 // magic 4, error 4, cookie 8
	chunkLen      = 20 // magic 4, flags 2, type 2, cookie 8, length 4
	exportZeroes  = 124
	optHeaderLen  = 16       // magic 8, option 4, length 4
	optionMax     = 64 << 10 // longest option data parsed; longer is refused unread
	optionsMax    = 1024     // options per handshake
	optionSumMax  = 4 << 20  // bytes of options per handshake
	errorTextMax  = 1024     // text in an error reply; client data is never echoed
	extentsMax    = 8192     // extents in one BLOCK_STATUS reply: 64 KiB
	allocationID  = uint32(1)
	minBlockMax   = 64 << 10 // largest minimum block the protocol allows
	preferredMin  = 512
	defaultPrefer = 4096
)

// RequestHeader is the header of a request; Handle is its cookie.
type RequestHeader = protocol.TransmissionRequestHeader

// DecodeRequest reads a request header from its 28 bytes.
func DecodeRequest(b *[requestLen]byte) RequestHeader {
	return RequestHeader{
		RequestMagic: binary.BigEndian.Uint32(b[0:]),
		CommandFlags: binary.BigEndian.Uint16(b[4:]),
		Type:         binary.BigEndian.Uint16(b[6:]),
		Handle:       binary.BigEndian.Uint64(b[8:]),
		Offset:       binary.BigEndian.Uint64(b[16:]),
		Length:       binary.BigEndian.Uint32(b[24:]),
	}
}

// AppendRequest appends the 28 bytes of a request header.
func AppendRequest(b []byte, h RequestHeader) []byte {
	b = binary.BigEndian.AppendUint32(b, h.RequestMagic)
	b = binary.BigEndian.AppendUint16(b, h.CommandFlags)
	b = binary.BigEndian.AppendUint16(b, h.Type)
	b = binary.BigEndian.AppendUint64(b, h.Handle)
	b = binary.BigEndian.AppendUint64(b, h.Offset)
	return binary.BigEndian.AppendUint32(b, h.Length)
}

// appendSimple appends a simple reply's header.
func appendSimple(b []byte, cookie uint64, e Errno) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicReply)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	return binary.BigEndian.AppendUint64(b, cookie)
}

// appendChunk appends the header of a structured reply's last chunk with n
// bytes of payload. This server sends one chunk per reply.
func appendChunk(b []byte, cookie uint64, kind uint16, n uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicStructured)
	b = binary.BigEndian.AppendUint16(b, ChunkDone)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, cookie)
	return binary.BigEndian.AppendUint32(b, n)
}

// appendWire appends one of go-nbd's fixed-size structs. For the handshake
// only: it uses reflection.
func appendWire(b []byte, v any) []byte {
	b, err := binary.Append(b, binary.BigEndian, v)
	if err != nil {
		panic(fmt.Sprintf("nbd: encoding %T: %v", v, err))
	}
	return b
}
