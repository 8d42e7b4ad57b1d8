package protocol

import "fmt"

// Decoder turns frames into messages. It keeps one struct of each type: the
// message returned by Decode, and its slices, are valid until the next Decode
// of the same Decoder. The zero value is ready. Not safe for concurrent use;
// a stream's reader owns one.
type Decoder struct {
	messages [len(known)]Message // made when first seen
	r        reader
}

// Decode verifies the digest of a frame and returns its message. head is the
// header's bytes (at least the first 8), body and payload have the lengths that h says;
// a payload that travelled compressed is given as it is, expanded to PlainLen bytes.
// Nothing of body or payload is kept. Errors: ErrCorrupt, ErrTooLarge,
// ErrMalformed, and ErrIgnored for a frame to be skipped. It does not allocate
// for types without strings once the type has been seen.
func (d *Decoder) Decode(h Header, head, body, payload []byte) (Message, error) {
	if len(head) < 8 || len(body) != h.BodyLen || !h.holds(len(payload)) {
		return nil, fmt.Errorf("%v: %d header, %d body, %d payload bytes for a frame of %d and %d: %w",
			h.Type, len(head), len(body), len(payload), h.BodyLen, h.PayloadLen, ErrMalformed)
	}
	if got := digest(head[:8], body, payload); got != h.Digest {
		return nil, fmt.Errorf("%v: %016x, header says %016x: %w", h.Type, got, h.Digest, ErrCorrupt)
	}
	if !h.Type.known() {
		return nil, fmt.Errorf("%v: %w", h.Type, ErrIgnored)
	}
	m := d.messages[h.Type]
	if m == nil {
		m = newMessage(h.Type)
		d.messages[h.Type] = m
	}
	d.r = reader{b: body}
	m.decode(&d.r)
	if d.r.err == nil && len(d.r.b) > 0 && h.flags&flagExtended == 0 {
		d.r.err = fmt.Errorf("%d bytes after the last field: %w", len(d.r.b), ErrMalformed)
	}
	err := d.r.err
	if err == nil {
		err = m.check(len(payload))
	}
	d.r = reader{}
	if err != nil {
		return nil, fmt.Errorf("%v: %w", h.Type, err)
	}
	return m, nil
}
