package nbd

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/qrbd/qrbd/blockdev"
)

// errProtocol: the client broke the protocol in a way that has no reply. The
// connection ends.
var errProtocol = errors.New("protocol violation")

// errAborted: the client ended the handshake with ABORT.
var errAborted = errors.New("the client aborted the handshake")

// handshake is the state of a connection before its transmission phase. Owner:
// the reader goroutine.
type handshake struct {
	c  *conn
	br *bufio.Reader
	// caller has the certificate once TLS is in use.
	caller Caller
	// What the client agreed to in its flags.
	fixed, noZeroes bool
	structured      bool
	// The set of metadata contexts: selected for one export, or none.
	allocation       bool
	allocationExport string

	options  int   // options so far
	bytes    int64 // bytes of option data so far
	entered  bool  // GO or EXPORT_NAME succeeded: transmission comes next
	response []byte
}

// haggle runs the handshake. On nil the transmission phase begins with what br
// has buffered.
func (h *handshake) haggle() error {
	hello := appendWire(nil, protocol.NegotiationNewstyleHeader{
		OldstyleMagic:  MagicInit,
		OptionMagic:    MagicOption,
		HandshakeFlags: FlagFixedNewstyle | FlagNoZeroes,
	})
	if _, err := h.c.rw.Write(hello); err != nil {
		return err
	}
	var b [4]byte
	if _, err := io.ReadFull(h.br, b[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(b[:])
	if flags&^uint32(FlagFixedNewstyle|FlagNoZeroes) != 0 {
		return fmt.Errorf("%w: client flags %#x", errProtocol, flags)
	}
	h.fixed = flags&uint32(FlagFixedNewstyle) != 0
	h.noZeroes = flags&uint32(FlagNoZeroes) != 0
	for !h.entered {
		if err := h.option(); err != nil {
			return err
		}
	}
	return nil
}

// option reads one option and answers it. Whatever it is, exactly its length is
// consumed.
func (h *handshake) option() error {
	var b [optHeaderLen]byte
	if _, err := io.ReadFull(h.br, b[:]); err != nil {
		return err
	}
	if m := binary.BigEndian.Uint64(b[:]); m != MagicOption {
		return fmt.Errorf("%w: option magic %#x", errProtocol, m)
	}
	id, n := binary.BigEndian.Uint32(b[8:]), int64(binary.BigEndian.Uint32(b[12:]))
	if !h.fixed && id != OptExportName {
		return fmt.Errorf("%w: option %d from a client that is not fixed newstyle", errProtocol, id)
	}
	h.options++
	if left := optionSumMax - h.bytes; h.options > optionsMax || n > left {
		if id != OptExportName {
			// Answer, then take what the budget leaves, so that the answer is not
			// lost to a reset.
			answer := &optionError{RepErrTooBig, "too much option data"}
			if h.plain() {
				answer = tlsRequired
			}
			if err := h.refuse(id, answer); err != nil {
				return err
			}
			io.CopyN(io.Discard, h.br, left)
		}
		return fmt.Errorf("%w: option %d of %d bytes, number %d", errProtocol, id, n, h.options)
	}
	h.bytes += n
	h.response = h.response[:0]

	switch id {
	case OptAbort:
		if err := h.discard(n); err != nil {
			return err
		}
		h.send(h.reply(id, RepAck, nil)) // the client may be gone already
		return errAborted
	case OptExportName, OptList, OptInfo, OptGo, OptStructuredReply, OptListMetaContext, OptSetMetaContext:
		if !h.plain() {
			return h.known(id, n)
		}
	}
	if h.plain() {
		return h.plainOption(id, n)
	}
	if err := h.discard(n); err != nil {
		return err
	}
	if id == OptStartTLS && h.c.tls != nil {
		return h.refuse(id, invalid("TLS is in use already"))
	}
	// Extended headers among them, and STARTTLS where there is no TLS.
	return h.refuse(id, &optionError{RepErrUnsup, "option not supported"})
}

// plain says whether the client has yet to start the TLS that is demanded.
func (h *handshake) plain() bool { return h.c.srv.opt.TLS != nil && h.c.tls == nil }

// known answers an option that has data to look at.
func (h *handshake) known(id uint32, n int64) error {
	if id == OptExportName && n > MaxString {
		return fmt.Errorf("%w: export name of %d bytes", errProtocol, n)
	}
	if id == OptSetMetaContext {
		h.allocation, h.allocationExport = false, "" // replaced even by a failure
	}
	if n > optionMax {
		if err := h.discard(n); err != nil {
			return err
		}
		return h.refuse(id, &optionError{RepErrTooBig, "option longer than 64 KiB"})
	}
	var data bytes.Buffer // grows with what arrives, not with what is claimed
	if _, err := io.CopyN(&data, h.br, n); err != nil {
		return err
	}
	if id == OptExportName {
		return h.exportName(data.Bytes())
	}
	if h.c.srv.draining.Load() {
		return h.refuse(id, blockdev.ErrShutdown)
	}
	switch id {
	case OptList:
		return h.list(data.Bytes())
	case OptInfo, OptGo:
		return h.info(id, data.Bytes())
	case OptStructuredReply:
		if data.Len() != 0 {
			return h.refuse(id, invalid("option takes no data"))
		}
		h.structured = true
		return h.send(h.reply(id, RepAck, nil))
	default:
		return h.contexts(id, data.Bytes())
	}
}

// list answers LIST: one reply per export.
func (h *handshake) list(data []byte) error {
	if len(data) != 0 {
		return h.refuse(OptList, invalid("option takes no data"))
	}
	for _, name := range h.c.srv.opt.Exports.List(h.caller) {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
		h.reply(OptList, RepServer, append(b, name...))
	}
	return h.send(h.reply(OptList, RepAck, nil))
}

// info answers INFO and GO, and after a successful GO ends the handshake.
func (h *handshake) info(id uint32, data []byte) error {
	o, bad := parseInfo(data)
	if bad != nil {
		return h.refuse(id, bad)
	}
	e, err := h.open(o.name, id == OptGo)
	if err != nil {
		return h.refuse(id, err)
	}
	h.reply(id, RepInfo, appendWire(nil, protocol.NegotiationReplyInfo{
		Type: InfoExport, Size: uint64(e.Device.Size()), TransmissionFlags: txFlags(e, h.structured),
	}))
	if o.wantName {
		b := appendWire(nil, protocol.NegotiationReplyNameHeader{Type: InfoName})
		h.reply(id, RepInfo, append(b, e.Name...))
	}
	if o.wantDesc && e.Description != "" {
		b := appendWire(nil, protocol.NegotiationReplyDescriptionHeader{Type: InfoDescription})
		h.reply(id, RepInfo, append(b, e.Description...))
	}
	if o.wantSize {
		minimum, preferred := e.blocks()
		h.reply(id, RepInfo, appendWire(nil, protocol.NegotiationReplyBlockSize{
			Type: InfoBlockSize, MinimumBlockSize: minimum, PreferredBlockSize: preferred, MaximumBlockSize: MaxPayload,
		}))
	}
	if id == OptGo {
		h.enter(e, o.wantSize)
	}
	return h.send(h.reply(id, RepAck, nil))
}

// exportName answers EXPORT_NAME, which has no way to report an error.
func (h *handshake) exportName(data []byte) error {
	if bad := checkString(data); bad != nil {
		return fmt.Errorf("%w: export name: %w", errProtocol, bad)
	}
	e, err := h.open(string(data), true)
	if err != nil {
		return fmt.Errorf("export name: %w", err)
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(e.Device.Size()))
	b = binary.BigEndian.AppendUint16(b, txFlags(e, h.structured))
	if !h.noZeroes {
		b = append(b, make([]byte, exportZeroes)...)
	}
	h.enter(e, false)
	return h.send(b)
}

// open returns the export; with enter the connection is its client from here on.
func (h *handshake) open(name string, enter bool) (*Export, error) {
	for {
		e, mark, err := h.c.srv.open(name, h.caller)
		var denied *DeniedError
		if errors.As(err, &denied) {
			h.c.srv.complain(h.c.nc, "NBD client refused", "certificate", h.caller.Names(), "why", denied.Text)
		}
		if err != nil || !enter {
			return e, err
		}
		again, err := h.c.srv.enter(h.c, h.caller, e, mark)
		if !again {
			if err == nil {
				h.c.srv.settle(e.Name)
			}
			return e, err
		}
	}
}

// enter settles the terms of the transmission phase.
func (h *handshake) enter(e *Export, blockSizeTold bool) {
	h.entered = true
	h.c.structured = h.structured
	h.c.allocation = h.allocation && h.allocationExport == e.Name
	h.c.align = 1
	if blockSizeTold {
		h.c.align, _ = e.blocks()
	}
}

// contexts answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (h *handshake) contexts(id uint32, data []byte) error {
	if !h.structured {
		return h.refuse(id, invalid("structured replies were not negotiated"))
	}
	o, bad := parseContexts(data, id == OptListMetaContext)
	if bad != nil {
		return h.refuse(id, bad)
	}
	e, err := h.open(o.name, false)
	if err != nil {
		return h.refuse(id, err)
	}
	if o.allocation {
		context := uint32(0) // reserved in a list
		if id == OptSetMetaContext {
			context = allocationID
			h.allocation, h.allocationExport = true, e.Name
		}
		b := binary.BigEndian.AppendUint32(nil, context)
		h.reply(id, RepMetaContext, append(b, ContextBaseAllocation...))
	}
	return h.send(h.reply(id, RepAck, nil))
}

// discard consumes n bytes of an option.
func (h *handshake) discard(n int64) error {
	_, err := io.CopyN(io.Discard, h.br, n)
	return err
}

// reply appends a reply to the response and returns the response.
func (h *handshake) reply(id, kind uint32, data []byte) []byte {
	h.response = appendWire(h.response, protocol.NegotiationReplyHeader{
		ReplyMagic: MagicOptReply, ID: id, Type: kind, Length: uint32(len(data)),
	})
	h.response = append(h.response, data...)
	return h.response
}

func (h *handshake) send(b []byte) error {
	_, err := h.c.rw.Write(b)
	return err
}

// refuse answers an option with the error reply for err.
func (h *handshake) refuse(id uint32, err error) error {
	h.response = h.response[:0]
	var (
		bad    *optionError
		policy *PolicyError
		denied *DeniedError
		kind   uint32
		text   string
	)
	switch {
	case errors.As(err, &bad):
		kind, text = bad.rep, bad.text
	case errors.As(err, &policy):
		kind, text = RepErrPolicy, policy.Text
	case errors.As(err, &denied):
		kind, text = RepErrPolicy, denied.Text
	case errors.Is(err, blockdev.ErrShutdown):
		kind, text = RepErrShutdown, "the server is shutting down"
	case errors.Is(err, ErrUnknownExport):
		kind, text = RepErrUnknown, "no such export"
	default:
		h.c.srv.opt.Log.Warn("an NBD export cannot be opened", "client", h.c.name, "error", err)
		kind, text = RepErrUnknown, "the export cannot be opened"
	}
	return h.send(h.reply(id, kind, []byte(text[:min(len(text), errorTextMax)])))
}

// txFlags returns what the export offers to a connection.
//
// CAN_MULTI_CONN holds because all connections share one Submitter, whose flush
// covers every operation completed before it, whoever sent it.
func txFlags(e *Export, structured bool) uint16 {
	f := TxHasFlags | TxSendFlush | TxSendFUA | TxCanMultiConn | TxSendCache
	if e.ReadOnly {
		f |= TxReadOnly
	} else {
		f |= TxSendTrim | TxSendWriteZeroes | TxSendFastZero
	}
	if e.Rotational {
		f |= TxRotational
	}
	if structured {
		f |= TxSendDF
	}
	return f
}
