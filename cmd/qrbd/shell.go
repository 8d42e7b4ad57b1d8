package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/attach"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// Values of QRBD_AGENT.
const (
	agentUp   = "up"
	agentDown = "down" // nobody listens: the process is not there
	agentHung = "hung" // it is, and does not answer
)

// runStatusShell prints a volume's state as assignments that a POSIX shell can evaluate.
// That the agent is not there is part of the answer: whoever asks has to tell it from one
// that hangs. The exit code is then 1 all the same.
func runStatusShell(c call, client *control.Client) error {
	name := c.volumeName()
	if name == "" {
		return usage("status: --shell is about one volume: qrbd status VOLUME --shell")
	}
	cfg, err := c.config()
	if err != nil {
		return err
	}
	known, err := deviceOf(cfg.Node.State, name)
	if err != nil {
		return err
	}
	if v := cfg.Volume(name); v != nil {
		known = append(known, shellVar{"FAILOVER", yesNo(v.Failover != nil && v.Failover.Enabled)})
	}
	st, err := fetchStatus(c.Context.Context, client, name)
	var refused *volume.Error
	switch {
	case errors.Is(err, control.ErrNotRunning):
		writeShell(c.t.out, append(known, shellVar{"AGENT", agentDown}))
		return err
	case errors.As(err, &refused) && refused.Code == protocol.CodeUnknownVolume:
		writeShell(c.t.out, append(known, shellVar{"AGENT", agentUp}))
		return err
	case err != nil:
		writeShell(c.t.out, append(known, shellVar{"AGENT", agentHung}))
		return err
	}
	writeShell(c.t.out, append(known, shellState(st.Node, st.Volumes[0])...))
	return nil
}

// shellVar is a variable without its prefix, QRBD_.
type shellVar struct{ name, value string }

// shellVars are all that a script gets; those that are not known are set, too, to "".
var shellVars = []string{"AGENT", "NODE", "ROLE", "DISK", "PRIMARY", "CLIENTS", "WITNESS", "MAY_PROMOTE", "QUORATE", "SERVING", "MISSING", "STANDALONE", "IN_SYNC", "FAILOVER",
	"SCORE", "SCORE_REASON", "DEVICE", "DEVICE_LINK", "DEVICE_STATE", "DEVICE_USE"}

// shellState is what the agent says.
func shellState(node string, v volume.Status) []shellVar {
	score, why := promotionScore(v)
	set := []shellVar{{"AGENT", agentUp}, {"NODE", node}, {"ROLE", v.Role}, {"DISK", v.Disk}, {"PRIMARY", v.Primary}, {"CLIENTS", strconv.Itoa(v.Clients)},
		{"WITNESS", yesNo(v.Witness)}, {"MAY_PROMOTE", yesNo(v.MayPromote)}, {"SCORE", strconv.Itoa(score)}, {"SCORE_REASON", why}}
	if v.Quorum != nil {
		set = append(set, shellVar{"QUORATE", yesNo(v.Quorum.Quorate)})
	}
	serving := v.Role == protocol.Primary.String() && v.Frozen == "" && (v.Quorum == nil || v.Quorum.Serving)
	var missing, standalone, inSync []string
	for _, p := range v.Peers {
		if p.Connection != protocol.Connected.String() {
			missing = append(missing, p.Name)
		}
		if p.Connection == protocol.Standalone.String() {
			standalone = append(standalone, p.Name)
		}
		if p.Replication == protocol.Established.String() && p.Disk == protocol.UpToDate.String() && p.OutOfSync == 0 {
			inSync = append(inSync, p.Name)
		}
	}
	return append(set, shellVar{"SERVING", yesNo(serving)}, shellVar{"MISSING", strings.Join(missing, " ")}, shellVar{"STANDALONE", strings.Join(standalone, " ")},
		shellVar{"IN_SYNC", strings.Join(inSync, " ")})
}

// deviceOf is what is known of the volume's block device without the agent.
func deviceOf(state, name string) ([]shellVar, error) {
	list, err := attach.List(state)
	for _, i := range list {
		if i.Volume != name {
			continue
		}
		use := ""
		if i.Use.Any() {
			use = i.Use.String()
		}
		return []shellVar{{"DEVICE", i.Device}, {"DEVICE_LINK", i.Link}, {"DEVICE_STATE", i.State}, {"DEVICE_USE", use}}, nil
	}
	return nil, err
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// writeShell prints every variable, in a fixed order, quoted.
func writeShell(w io.Writer, set []shellVar) {
	values := map[string]string{}
	for _, v := range set {
		values[v.name] = v.value
	}
	for _, name := range shellVars {
		fmt.Fprintf(w, "QRBD_%s=%s\n", name, shellQuote(values[name]))
	}
}

// shellQuote makes one word of s, whatever it holds.
func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(strings.ReplaceAll(s, "\x00", ""), "'", `'\''`) + "'"
}

// Scores of a promotion, for a cluster manager: the node with the highest is promoted.
// The steps are DRBD's, so that location constraints made for one fit the other.
const (
	scoreNone = 0     // must not be promoted
	scorePoor = 10    // better than nobody: a cluster should move away
	scoreGood = 1000  // good data; whether a node that is not there has newer ones is for quorum or fencing to find out
	scoreBest = 10000 // good data, and every replica is there
)

// promotionScore says how good a primary this node would be, and why. A peer that is
// primary does not lower it: it may be dead a moment later.
func promotionScore(v volume.Status) (score int, why string) {
	upToDate := v.Disk == protocol.UpToDate.String()
	switch {
	case v.Witness:
		return scoreNone, "a witness holds no data"
	case v.Quorum != nil && !v.Quorum.Quorate:
		return scoreNone, "no quorum; " + v.Quorum.Missing
	case !upToDate && v.Role == protocol.Primary.String():
		return scorePoor, "primary through its peers: its own disk is " + v.Disk
	case v.Disk == protocol.Consistent.String():
		return scorePoor, "its data have not been compared with those of the others since the primary was lost"
	case !upToDate:
		return scoreNone, "its disk is " + v.Disk
	}
	for _, p := range v.Peers {
		if p.Replication == protocol.SyncTarget.String() || p.Replication == protocol.Behind.String() {
			return scoreNone, "it is behind " + p.Name
		}
	}
	for _, p := range v.Peers {
		switch {
		case p.Connection == protocol.Connected.String() || p.Witness:
		case v.Role == protocol.Primary.String() || p.Fenced || p.Disk == protocol.Outdated.String() || p.Disk == protocol.Inconsistent.String():
			// What is missing is known to be older.
		case v.Quorum == nil && v.Fencing == "":
			return scoreNone, p.Name + " cannot be reached and may be primary: without quorum or fencing nobody knows"
		default:
			return scoreGood, p.Name + " is not there"
		}
	}
	return scoreBest, "up-to-date"
}
