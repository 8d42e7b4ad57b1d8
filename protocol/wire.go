package protocol

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Encodings, all without padding: integers little-endian in their own size,
// bool one byte 0 or 1, a string two bytes of length and UTF-8, a list two
// bytes of count and its elements.

func putU16(b []byte, v uint16) []byte { return binary.LittleEndian.AppendUint16(b, v) }
func putU32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }
func putU64(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }
func putI64(b []byte, v int64) []byte  { return putU64(b, uint64(v)) }

func putBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func putName(b []byte, s string) []byte { return append(putU16(b, uint16(len(s))), s...) }

func putText(b []byte, s string) []byte { return putName(b, CleanText(s)) }

func putGenerations(b []byte, gs []Generation) []byte {
	b = putU16(b, uint16(len(gs)))
	for _, g := range gs {
		b = putU64(b, uint64(g))
	}
	return b
}

// CleanText makes any string fit for the wire: valid UTF-8, no control
// characters but newline and tab, at most TextMax bytes.
func CleanText(s string) string {
	if checkText(s) == nil {
		return s
	}
	s = strings.Map(func(r rune) rune {
		if isControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > TextMax {
		n := TextMax
		for !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	return s
}

func isControl(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 }

// checkText is what a receiver demands of a text for people.
func checkText(s string) error {
	if len(s) > TextMax {
		return fmt.Errorf("text of %d bytes: %w", len(s), ErrTooLarge)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, isControl) {
		return fmt.Errorf("text %q: %w", s, ErrMalformed)
	}
	return nil
}

// checkName is what a receiver demands of a node's or volume's name that must
// be there; checkNameOrNone allows "".
func checkName(s string) error {
	if s == "" {
		return fmt.Errorf("empty name: %w", ErrMalformed)
	}
	return checkNameOrNone(s)
}

func checkNameOrNone(s string) error {
	if len(s) > NameMax {
		return fmt.Errorf("name of %d bytes: %w", len(s), ErrTooLarge)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }) {
		return fmt.Errorf("name %q: %w", s, ErrMalformed)
	}
	return nil
}

func checkNames(names []string) error {
	if len(names) > PeersMax {
		return fmt.Errorf("%d names: %w", len(names), ErrTooLarge)
	}
	for _, n := range names {
		if err := checkName(n); err != nil {
			return err
		}
	}
	return nil
}

// checkRange refuses a range that is negative or ends beyond an int64.
func checkRange(off, n int64) error {
	if off < 0 || n < 0 || off+n < 0 {
		return fmt.Errorf("range of %d at %d: %w", n, off, ErrMalformed)
	}
	return nil
}

func checkEnum(what string, v, least, most uint8) error {
	if v < least || v > most {
		return fmt.Errorf("%s %d: %w", what, v, ErrMalformed)
	}
	return nil
}

func checkCount(what string, n, most int) error {
	if n > most {
		return fmt.Errorf("%d %s: %w", n, what, ErrTooLarge)
	}
	return nil
}

// reader takes fields off the front of a body. The first failure sticks and
// every later read returns zero.
type reader struct {
	b   []byte
	err error
}

var zeroes [8]byte

// take returns the next n bytes; n <= 8 always yields n bytes.
func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.fail(fmt.Errorf("body ends %d bytes early: %w", n-len(r.b), ErrMalformed))
		return zeroes[:min(n, len(zeroes))]
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.LittleEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.LittleEndian.Uint64(r.take(8)) }
func (r *reader) i64() int64  { return int64(r.u64()) }

func (r *reader) bool() bool {
	switch v := r.u8(); v {
	case 0:
		return false
	case 1:
		return true
	default:
		r.fail(fmt.Errorf("bool %d: %w", v, ErrMalformed))
		return false
	}
}

// count reads a list's count, checked against most before anything is
// allocated for it.
func (r *reader) count(what string, most int) int {
	n := int(r.u16())
	if err := checkCount(what, n, most); err != nil {
		r.fail(err)
		return 0
	}
	return n
}

// str reads a string of at most most bytes. old is returned when it is equal,
// so that a repeated message does not allocate.
func (r *reader) str(old string, most int) string {
	n := r.count("bytes of a string", most)
	if r.err != nil || n > len(r.b) {
		r.take(n)
		return ""
	}
	p := r.take(n)
	if string(p) == old {
		return old
	}
	return string(p)
}

func (r *reader) name(old string) string { return r.str(old, NameMax) }

// text is checked here and not in a message's check, since a sender mends it.
func (r *reader) text(old string) string {
	s := r.str(old, TextMax)
	if err := checkText(s); err != nil {
		r.fail(err)
	}
	return s
}

func (r *reader) generations(old []Generation) []Generation {
	n := r.count("generations", HistoryMax)
	gs := old[:0]
	for i := 0; i < n && r.err == nil; i++ {
		gs = append(gs, Generation(r.u64()))
	}
	return gs
}

// resize returns s with n elements, keeping old elements so that their strings
// can be reused.
func resize[T any](s []T, n int) []T {
	if n <= cap(s) {
		return s[:n]
	}
	return append(s[:cap(s)], make([]T, n-cap(s))...)
}
