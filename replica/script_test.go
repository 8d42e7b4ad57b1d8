package replica

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/protocol"
)

var update = flag.Bool("update", false, "rewrite the expected output of testdata/*.script")

// TestScripts runs testdata/*.script: lines beginning with "> " are commands, the
// lines after each are what it must print. Rewritten by -update, and reviewed.
//
//	nodes MODE NAME...     a world of brand-new replicas; NAME~A: protocol A with it; NAME+, the last: the others do not know it
//	add A NAME+            A knows it from now on
//	link A B / cut A B     connect; lose the connection
//	crash A / boot A       the node dies with its memory; starts from what is durable
//	promote A [force] [fenced], demote A, switchover A B, invalidate A
//	connect A B [discard], disconnect A B
//	write|zero|trim|fua A OFF LEN, read A OFF LEN, flush A
//	run                    deliver and execute until nothing moves
//	tick SECONDS           let time pass
//	hold|release A io|meta|sync  keep local I/O, metadata commits or syncs from A back
//	mute|unmute A B        keep the frames from A to B back
//	ids A CURRENT SLOT:ID... h:ID...   set ids by hand
//	ask A, allow A, refuse A  its owner is asked before it is overwritten; answers
//	policy A 0PRI 1PRI 2PRI   what to do about a split brain
//	fail A read|write|flush, mend A   every such operation of A's disk fails; none any more
//	replace A              its failed disk is replaced by an empty one
//	nodata A io-error|suspend-io, readerror A repair|detach, timeout A SECONDS
//	rot A OFF LEN, rotten A   blocks of A are not what they were; which are
//	restore A [crash]      what A gave up last is put back; A dies half-way
//	verify A B [OFF LEN], stop-verify A B, repair A B [from-peer]
//	quorum RULE [redundancy N] [io-error] [WITNESS]   before anything else: with votes; all start anew
//	fencing POLICY         before anything else: with fencing; all start anew
//	answer A B CODE        what A's fence-peer says of B: DRBD's exit code
//	outdate A              A's data are old
//	unlink A B             A loses the connection, B does not notice
//	stop A                 A leaves in order
//	pause A, wake A        A does nothing (time passes for it); does what waited for it
//	pullahead A BYTES      from its start on, A goes ahead of peers under A that lag so far behind
//	drop A sync            the next start of a sync or verify from A is forgotten
//	status [A...]
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.script")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".script"), func(t *testing.T) { runScript(t, f) })
	}
}

func runScript(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	var w *world
	for _, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "#") || line == "":
			got.WriteString(line + "\n")
		case strings.HasPrefix(line, "> "):
			got.WriteString(line + "\n")
			f := strings.Fields(line[2:])
			if f[0] == "nodes" {
				w = newWorld(map[string]protocol.Mode{"A": protocol.ModeA, "B": protocol.ModeB, "C": protocol.ModeC}[f[1]], f[2:])
			} else if err := w.command(f); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			got.WriteString(w.out.String())
			w.out.Reset()
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := strings.TrimRight(string(text), "\n") + "\n"; got.String() != want {
		t.Errorf("%s:\n%s", file, firstDifference(want, got.String()))
	}
}

func firstDifference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			other := "(nothing)"
			if i < len(b) {
				other = b[i]
			}
			return fmt.Sprintf("line %d\nwant %s\ngot  %s\n\nall of it:\n%s", i+1, a[i], other, got)
		}
	}
	return "more output than expected:\n" + got
}

func (w *world) command(f []string) error {
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	num := func(i int) int64 {
		n, _ := strconv.ParseInt(arg(i), 0, 64)
		return n
	}
	has := func(word string) bool {
		for _, a := range f[1:] {
			if a == word {
				return true
			}
		}
		return false
	}
	x := w.nodes[arg(1)]
	done := func(err error) { w.say("%s %s: %s", f[0], arg(1), okOr(err)) }
	switch f[0] {
	case "link":
		w.link(arg(1), arg(2))
	case "cut":
		w.cut(arg(1), arg(2))
	case "crash":
		w.crash(arg(1))
	case "boot":
		w.boot(x)
	case "promote":
		x.m.Promote(w.now, PromoteOptions{Force: has("force"), PeerFenced: has("fenced")}, done)
	case "demote":
		x.m.Demote(w.now, done)
	case "switchover":
		x.m.Switchover(w.now, x.peer(arg(2)), done)
	case "add":
		done(w.add(x, arg(2)))
	case "invalidate":
		x.m.Invalidate(w.now, done)
	case "connect":
		if err := x.m.Connect(w.now, x.peer(arg(2)), has("discard")); err != nil {
			done(err)
		}
	case "disconnect":
		x.m.Disconnect(w.now, x.peer(arg(2)))
	case "write", "fua", "zero", "trim", "read", "flush":
		op := map[string]Op{"write": Write, "fua": Write, "zero": Zero, "trim": Trim, "read": Read, "flush": Flush}[f[0]]
		x.m.Submit(w.now, &Request{Op: op, FUA: f[0] == "fua", Off: num(2), Len: num(3)})
	case "run":
		w.run()
	case "tick":
		for range num(1) * 4 {
			w.now += 250e6
			for _, n := range w.names {
				if w.nodes[n].up && !w.nodes[n].asleep {
					w.nodes[n].m.Tick(w.now)
					w.collect(w.nodes[n])
				}
			}
			w.run()
		}
	case "hold", "release":
		switch on := f[0] == "hold"; arg(2) {
		case "io":
			x.holdIO = on
		case "meta":
			x.noMeta = on
		case "sync":
			x.noSync = on
		}
	case "mute", "unmute":
		w.mute[arg(1)+">"+arg(2)] = f[0] == "mute"
	case "ids":
		x.m.current = protocol.Generation(num(2))
		x.m.volume = protocol.VolumeID{1}
		x.m.history = nil
		for _, s := range f[3:] {
			name, id, _ := strings.Cut(s, ":")
			n, _ := strconv.ParseUint(id, 0, 64)
			switch name {
			case "h":
				x.m.history = append(x.m.history, protocol.Generation(n))
			case "disk":
				x.m.disk = protocol.Disk(n)
			case "older":
				for _, p := range x.m.peers {
					p.older = n == 1
				}
			case "primary":
				x.m.role = protocol.Primary
			case "crashed":
				x.m.crashed = n == 1
			case "shaken":
				x.m.shaken = n == 1
			case "reconnect":
				for _, p := range x.m.peers {
					p.reconnect = n == 1
				}
			case "volume":
				x.m.volume = protocol.VolumeID{byte(n)}
			case "dirty":
				for _, p := range x.m.peers {
					p.dirty.Set(0, int64(n))
				}
			case "seq":
				x.m.seq, x.m.holds = n, n
			default:
				x.m.peers[x.peer(name)].slot = protocol.Generation(n)
			}
		}
		x.m.persist()
	case "ask":
		x.m.cfg.AskTarget = true
	case "allow":
		x.m.TargetAllowed(w.now, x.asked, x.token, nil)
	case "refuse":
		x.m.TargetAllowed(w.now, x.asked, x.token, fmt.Errorf("exit status 1"))
	case "policy":
		var err error
		set := func(i int) (a protocol.AfterSB) {
			if err == nil {
				a, _, err = protocol.ParseAfterSB(i, arg(2+i))
			}
			return a
		}
		x.policy = protocol.SplitPolicy{Pri0: set(0), Pri1: set(1), Pri2: set(2)}
		if x.policy.Pri0 == protocol.DiscardNode {
			x.policy.Node = strings.TrimPrefix(arg(2), "discard-node-")
		}
		x.m.cfg.Policy = x.policy
		return err
	case "quorum":
		w.setQuorum(f[1:])
	case "unlink":
		w.unlink(x, arg(2), fmt.Errorf("nothing heard"))
	case "stop":
		x.m.Leave(w.now, func(err error) {})
		w.collect(x)
		w.run()
		x.m.Stop(w.now)
		w.collect(x)
		w.run()
		x.m.MarkClean(w.now)
		w.commit(x)
		x.up = false
	case "pause", "wake":
		x.asleep = f[0] == "pause"
	case "pullahead":
		x.fill = num(2)
		w.boot(x)
	case "status":
		w.status(f[1:]...)
	case "fencing", "answer", "outdate":
		w.fenceCommand(x, f, done)
	default:
		if known, err := w.diskCommand(x, f); !known || err != nil {
			return fmt.Errorf("unknown command (%w)", err)
		}
	}
	for _, n := range w.names {
		if w.nodes[n].up {
			w.collect(w.nodes[n])
		}
	}
	return nil
}
