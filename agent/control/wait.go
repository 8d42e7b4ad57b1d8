package control

import (
	"fmt"
	"strings"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// Valid says whether w is a state that can be waited for.
func (w WaitFor) Valid() bool {
	switch w {
	case WaitConnected, WaitUpToDate, WaitPrimary:
		return true
	}
	return false
}

// reached says in words what the volume still lacks of the state; "" when it is
// reached.
func reached(s NodeStatus, name string, what WaitFor) (string, error) {
	if !what.Valid() {
		return "", refuse(protocol.CodeProtocol, "%q cannot be waited for: use %s, %s or %s", what, WaitConnected, WaitUpToDate, WaitPrimary)
	}
	v := find(s, name)
	if v == nil {
		return "", refuse(protocol.CodeUnknownVolume, "volume %q is not configured on this node", name)
	}
	var missing []string
	switch what {
	case WaitPrimary:
		if v.Role != protocol.Primary.String() {
			missing = append(missing, "it is "+v.Role)
		}
	case WaitConnected:
		for _, p := range v.Peers {
			if p.Connection != protocol.Connected.String() {
				missing = append(missing, withReason(fmt.Sprintf("%s is %s", p.Name, p.Connection), p.Reason))
			}
		}
	case WaitUpToDate:
		for _, c := range causes(v) {
			missing = append(missing, c.Text)
		}
	}
	return strings.Join(missing, "; "), nil
}

func withReason(text, reason string) string {
	if reason == "" {
		return text
	}
	return text + " (" + reason + ")"
}

func find(s NodeStatus, name string) *volume.Status {
	for i := range s.Volumes {
		if s.Volumes[i].Name == name {
			return &s.Volumes[i]
		}
	}
	return nil
}
