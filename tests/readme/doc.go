// Package readme runs README.md's "Two hosts, step by step" word by word, so that
// it cannot rot:
//
//	README.md ──► steps: who, what kind of block, its text
//	                │ sh: fed to the host's shell      │ toml: appended to its configuration
//	                ▼                                  ▼
//	    alpha (10.0.0.1) ◄────────── veth ──────────► beta (10.0.0.2)
//
// The pages of docs/OPERATIONS.md that describe procedures are run likewise, side by side,
// each with hosts of its own and a volume that is written to.
//
// A host is a network, a mount and a process namespace of its own, with its own
// /etc/qrbd, /var/lib/qrbd, /run, /srv and /usr/local/bin, and one bash that lives
// as long as the host does. Its death is the death of the namespace's first process,
// which takes all others along; /etc/qrbd and /var/lib/qrbd outlive it.
//
// Invariant: nothing of it is left on the machine when the test has ended, however
// it ended; what a killed test process left, the next one removes.
package readme
