package hook

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Name says which event a command is for. The names are those of DRBD's handlers
// where the event is the same.
type Name string

// The events.
const (
	SplitBrain         Name = "split-brain"          // detected, and nothing settles it: the connection stands alone
	InitialSplitBrain  Name = "initial-split-brain"  // detected, before a policy or the operator's word is looked at
	PriLostAfterSB     Name = "pri-lost-after-sb"    // a policy would give up this node's data, which is primary
	PriOnInconDegr     Name = "pri-on-incon-degr"    // primary without a good disk, and no peer has good data
	LocalIOError       Name = "local-io-error"       // the local disk failed
	BeforeResyncTarget Name = "before-resync-target" // this node is about to be overwritten; a failure refuses
	AfterResyncTarget  Name = "after-resync-target"  // that sync has ended well
	OutOfSync          Name = "out-of-sync"          // verify found differences
	PeerLost           Name = "peer-lost"            // the connection to a peer has ended (qrbd's own)
	PeerConnected      Name = "peer-connected"       // the connection to a peer is established (qrbd's own)
	FencePeer          Name = "fence-peer"           // a peer that is out of reach must not take over: see to it; the exit status is the answer (fence.go)
	UnfencePeer        Name = "unfence-peer"         // it has come back and is in sync
)

// Names lists every event.
func Names() []Name {
	return []Name{SplitBrain, InitialSplitBrain, PriLostAfterSB, PriOnInconDegr, LocalIOError,
		BeforeResyncTarget, AfterResyncTarget, OutOfSync, PeerLost, PeerConnected, FencePeer, UnfencePeer}
}

// Limits and defaults.
const (
	DefaultTimeout = 60 * time.Second
	TimeoutMax     = 10 * time.Minute
	runningMax     = 4       // commands at a time, per node; as many again that are asked
	fencingMax     = 16      // fence-peer commands at a time, beside those
	queueMax       = 64      // events of a volume that wait
	outputMax      = 4 << 10 // bytes of a command's output that are logged: its end
	killDelay      = 2 * time.Second
)

// Command is what is run: a program and its arguments.
type Command []string

// Set is the configured commands of a volume. The zero Set has none.
type Set struct {
	Commands map[Name]Command
	Timeout  time.Duration // of each; zero: DefaultTimeout
}

// Has reports whether a command is configured for the event.
func (s Set) Has(n Name) bool { return len(s.Commands[n]) > 0 }

// Known reports whether there is an event of that name.
func Known(n string) bool { return slices.Contains(Names(), Name(n)) }

// Event is what a command is told, each field as a variable; empty ones are set too.
type Event struct {
	Name       Name
	Volume     string
	Node       string // this node
	Peer       string // "": no peer
	Role       string // of this node
	Disk       string // of this node
	Generation string
	Old, New   string // of the state that changed
	Reason     string // in words
	Config     string // path of the configuration, for `qrbd --config`
}

// environ returns the variables.
func (e *Event) environ() []string {
	list := [][2]string{{"EVENT", string(e.Name)}, {"VOLUME", e.Volume}, {"NODE", e.Node}, {"PEER", e.Peer}, {"ROLE", e.Role}, {"DISK", e.Disk},
		{"GENERATION", e.Generation}, {"OLD", e.Old}, {"NEW", e.New}, {"REASON", e.Reason}, {"CONFIG", e.Config}}
	var out []string
	for _, kv := range list {
		out = append(out, "QRBD_"+kv[0]+"="+strings.ReplaceAll(kv[1], "\x00", ""))
	}
	return out
}

// Split splits a line into words as a shell does: by blanks, with 'single' and
// "double" quotes and backslashes. Nothing is expanded.
func Split(line string) (Command, error) {
	var words Command
	var word strings.Builder
	inWord, quote := false, rune(0)
	runes := []rune(line)
	for i := 0; i < len(runes); i++ {
		c := runes[i]
		switch {
		case quote == '\'' && c != '\'':
			word.WriteRune(c)
		case c == '\\':
			if i++; i == len(runes) {
				return nil, fmt.Errorf("ends with a backslash")
			}
			if quote == '"' && !strings.ContainsRune(`"\$`+"`", runes[i]) {
				word.WriteRune(c)
			}
			word.WriteRune(runes[i])
			inWord = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '\'' || c == '"':
			quote, inWord = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(c)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote %c is not closed", quote)
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
