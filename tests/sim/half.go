package sim

import (
	"strings"

	"github.com/qrbd/qrbd/protocol"
)

// mendHalf gives up a replica that has half of newer data, the rest of which is nowhere
// any more, for one that is good.
func (w *World) mendHalf(net *net) bool {
	for _, pair := range [][2]*node{{net.a, net.b}, {net.b, net.a}} {
		lose, win := pair[0], pair[1]
		v := lose.view(win)
		if v.Conn == protocol.Connecting && strings.Contains(v.Reason, "run there qrbd connect") && strings.Contains(v.Reason, "give up what "+lose.name) {
			w.count("half a copy given up")
			lose.connect(win, true)
			return true
		}
	}
	return false
}
