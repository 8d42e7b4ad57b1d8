package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

// optionError is a refused option: the type of the error reply and the text for
// the client.
type optionError struct {
	rep  uint32
	text string
}

func (e *optionError) Error() string { return fmt.Sprintf("option refused (%#x): %s", e.rep, e.text) }

func invalid(text string) *optionError { return &optionError{RepErrInvalid, text} }

// checkString enforces what the protocol says of strings: UTF-8, no NUL, at most
// 4096 bytes.
func checkString(b []byte) *optionError {
	switch {
	case len(b) > MaxString:
		return &optionError{RepErrTooBig, "string longer than 4096 bytes"}
	case bytes.IndexByte(b, 0) >= 0:
		return invalid("string contains a NUL")
	case !utf8.Valid(b):
		return invalid("string is not UTF-8")
	}
	return nil
}

// infoOption is the data of INFO and GO.
type infoOption struct {
	name                         string
	wantName, wantDesc, wantSize bool
}

// parseInfo decodes the data of INFO and GO: name length 4, name, number of
// requests 2, requests 2 each. Unknown requests are ignored.
func parseInfo(b []byte) (infoOption, *optionError) {
	var o infoOption
	if len(b) < 6 {
		return o, invalid("option shorter than 6 bytes")
	}
	n := uint64(binary.BigEndian.Uint32(b))
	if n > uint64(len(b)-6) {
		return o, invalid("export name longer than the option")
	}
	name, b := b[4:4+n], b[4+n:]
	if e := checkString(name); e != nil {
		return o, e
	}
	count, b := int(binary.BigEndian.Uint16(b)), b[2:]
	if len(b) != 2*count {
		return o, invalid("number of information requests does not match the option's length")
	}
	o.name = string(name)
	for ; len(b) > 0; b = b[2:] {
		switch binary.BigEndian.Uint16(b) {
		case InfoName:
			o.wantName = true
		case InfoDescription:
			o.wantDesc = true
		case InfoBlockSize:
			o.wantSize = true
		}
	}
	return o, nil
}

// contextOption is the data of SET_META_CONTEXT and LIST_META_CONTEXT.
type contextOption struct {
	name       string
	allocation bool // base:allocation is selected
}

// parseContexts decodes the data of LIST_META_CONTEXT and SET_META_CONTEXT: name
// length 4, name, number of queries 4, then per query length 4 and text. In a
// list "base:" stands for all of its contexts and no query for all contexts.
func parseContexts(b []byte, list bool) (contextOption, *optionError) {
	var o contextOption
	if len(b) < 8 {
		return o, invalid("option shorter than 8 bytes")
	}
	n := uint64(binary.BigEndian.Uint32(b))
	if n > uint64(len(b)-8) {
		return o, invalid("export name longer than the option")
	}
	name, b := b[4:4+n], b[4+n:]
	if e := checkString(name); e != nil {
		return o, e
	}
	o.name = string(name)
	count, b := binary.BigEndian.Uint32(b), b[4:]
	o.allocation = list && count == 0
	for ; count > 0; count-- {
		if len(b) < 4 {
			return o, invalid("fewer queries than announced")
		}
		n := uint64(binary.BigEndian.Uint32(b))
		if n > uint64(len(b)-4) {
			return o, invalid("query longer than the option")
		}
		q := b[4 : 4+n]
		b = b[4+n:]
		if e := checkString(q); e != nil {
			return o, e
		}
		namespace, leaf, ok := strings.Cut(string(q), ":")
		if !ok || namespace == "" {
			return o, invalid("query without a namespace")
		}
		if string(q) == ContextBaseAllocation || list && namespace == "base" && leaf == "" {
			o.allocation = true
		}
	}
	if len(b) != 0 {
		return o, invalid("bytes after the last query")
	}
	return o, nil
}
