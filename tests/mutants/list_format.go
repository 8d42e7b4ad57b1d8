package main

// ofFormats breaks what is on disk and on the wire.
var ofFormats = []Mutant{
	{
		Name:  "page-checksum-ignored",
		Why:   "a metadata page that was torn by a crash is believed",
		Edits: []Edit{{"volume/meta/page.go", "		c.condition = dated\n", "		c.condition = intact\n"}},
	},
	{
		Name:  "page-in-one-slot",
		Why:   "a metadata page is written over its only good copy: a crash leaves none",
		Edits: []Edit{{"volume/meta/file.go", "	if mirror {\n		f.toggle(id)\n", "	if mirror && f.seq == 0 {\n		f.toggle(id)\n"}},
	},
	{
		Name:  "older-page-believed",
		Why:   "of the two copies of a metadata page the older one is believed",
		Edits: []Edit{{"volume/meta/page.go", "		return a.seq > b.seq\n", "		return a.seq < b.seq\n"}},
	},
	{
		Name:  "applied-said-durable",
		Why:   "an acknowledgement says of what is applied that it is durable",
		Edits: []Edit{{"protocol/encoding_write.go", "	b = putU64(b, m.Applied)\n	return putU64(b, m.Durable)\n", "	b = putU64(b, m.Applied)\n	return putU64(b, m.Applied)\n"}},
	},
}
