// Package config reads and checks a node's configuration file.
//
//	qrbd.toml ──► toml (syntax) ──► document: values by key, lines by key
//	                                   │
//	                                   ▼
//	              decode: each key by its own rule ──► check: names, references,
//	                                                   clashes between sections
//	                                   │
//	                                   ▼
//	              *Config, or *Error with every fault: file, line, key, text
//
// Invariant: Load returns a Config only when nothing at all is wrong with the
// file; an administrator never mends a file fault by fault, and an agent never
// runs on half of it. Keys that are not known are faults, so that a misspelt
// one is not silently a default.
//
// The package reads the file and follows the links of backing paths; it changes
// nothing and starts no goroutine.
package config
