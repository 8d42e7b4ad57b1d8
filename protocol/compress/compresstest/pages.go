// Package compresstest makes data for tests and measurements of compression: the same for
// the same seed, of known kinds.
package compresstest

import (
	"encoding/binary"
	"math/rand/v2"
)

// PageSize is the size of one of Pages's pages, in bytes.
const PageSize = 8192

// words are what columns hold again and again.
var words = []string{"customer", "invoice", "2026-11-23 07:10:00", "Berlin", "Hamburg", "open", "paid", "EUR", "info@example.org", "+49 30 1234567"}

// Pages returns n bytes of what a database's pages look like: a header, a directory of
// offsets, some room, and rows of a number that rises, words of a small vocabulary, and a
// key of 12 bytes without any order. Payloads of some of them compress to about two fifths.
func Pages(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	out := make([]byte, 0, n+PageSize)
	for id := r.Uint64N(1 << 40); len(out) < n; {
		p := make([]byte, PageSize)
		binary.LittleEndian.PutUint64(p[4:], id)
		at := PageSize
		for slot := 24; slot+200 < at; slot += 4 {
			row := binary.LittleEndian.AppendUint64(nil, id)
			for range 5 {
				row = append(append(row, 7), words[r.IntN(len(words))]...)
			}
			row = binary.LittleEndian.AppendUint64(row, r.Uint64())
			row = binary.LittleEndian.AppendUint32(row, r.Uint32())
			at -= len(row)
			copy(p[at:], row)
			binary.LittleEndian.PutUint16(p[slot:], uint16(at))
			binary.LittleEndian.PutUint16(p[slot+2:], uint16(len(row)))
			id++
		}
		out = append(out, p...)
	}
	return out[:n]
}

// Noise returns n bytes that do not compress.
func Noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}
