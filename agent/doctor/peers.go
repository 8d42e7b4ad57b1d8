package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/agent/reach"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// peer examines the way to one peer, and what the agent knows of the way back.
func (e *exam) peer(ctx context.Context, p *config.Peer) []Finding {
	check := "peer " + p.Name
	out := e.way(ctx, check, p)
	if st := e.o.Status; st != nil {
		for i := range st.Links {
			if st.Links[i].Peer == p.Name {
				out = append(out, linkFindings(check, &st.Links[i])...)
			}
		}
	}
	for i := range e.o.Reach {
		if r := &e.o.Reach[i]; r.Peer == p.Name {
			out = append(out, e.wayBack(check, p, r)...)
		}
	}
	return out
}

// way says whether packets of the sizes that matter get to the peer and back.
func (e *exam) way(ctx context.Context, check string, p *config.Peer) []Finding {
	r, err := e.probe.Ask(ctx, p.Transport, p.Address)
	if err != nil {
		return []Finding{unreachable(check, p, err)}
	}
	out := []Finding{ok(check, "%s answers after %v", p.Address, r.RTT.Round(time.Microsecond))}
	switch {
	case r.Largest == 0: // TCP finds its sizes by itself
	case r.Largest >= reach.Enough:
		out = append(out, ok(check, "packets with %d bytes of payload pass: an MTU of 1500 at least", r.Largest))
	case r.TooBig != 0:
		out = append(out, Finding{Level: Note, Check: check, Text: fmt.Sprintf("this host cannot send packets with %d bytes of payload there, only %d: the MTU of its interface is below 1500", r.TooBig, r.Largest),
			Fix: "raise it (ip link set dev … mtu 1500) if the network allows; throughput is lower until then"})
	default:
		out = append(out, Finding{Level: Note, Check: check, Text: fmt.Sprintf("packets with %d bytes of payload do not get through, those with %d do: the MTU on the way is below 1500", reach.Enough, r.Largest),
			Fix: "QUIC finds the size that passes by itself; throughput is higher where 1500 passes (tunnels, VLANs)"})
	}
	return out
}

// wayBack is what the peer found out about its way to this node, and what it runs.
func (e *exam) wayBack(check string, p *config.Peer, r *control.PeerReach) []Finding {
	if r.Unasked != "" {
		return []Finding{{Level: Unknown, Check: check, Text: "whether it reaches this node is not known: " + r.Unasked}}
	}
	var out []Finding
	switch {
	case r.Reason != "":
		out = append(out, Finding{Level: Change, Check: check, Text: fmt.Sprintf("it does not reach this node at %s: %s. While the session lasts all is well; when it ends, only this node can begin another", r.Address, r.Reason),
			Fix: fmt.Sprintf("correct this node's address in the configuration of %s, or let %s pass to it in the firewalls", p.Name, network(p))})
	case r.Largest != 0 && r.Largest < reach.Enough:
		out = append(out, Finding{Level: Note, Check: check, Text: fmt.Sprintf("it reaches this node at %s after %v; packets with %d bytes of payload do not get through, those with %d do", r.Address, time.Duration(r.RTTMicros)*time.Microsecond, reach.Enough, r.Largest),
			Fix: "an MTU of 1500 all the way gives more throughput"})
	default:
		out = append(out, ok(check, "it reaches this node at %s after %v", r.Address, time.Duration(r.RTTMicros)*time.Microsecond))
	}
	if r.Build != e.o.Version {
		out = append(out, Finding{Level: Note, Check: check, Text: fmt.Sprintf("its agent is %s, this command is %s", r.Build, e.o.Version), Fix: "install the same version of qrbd on both nodes"})
	} else {
		out = append(out, ok(check, "its agent is of this version too"))
	}
	return out
}

// network is what has to pass to a peer's port.
func network(p *config.Peer) string {
	if p.Transport == session.TCP {
		return "TCP"
	}
	return "UDP"
}

// unreachable is the finding for a peer that did not answer.
func unreachable(check string, p *config.Peer, err error) Finding {
	f := Finding{Level: Change, Check: check, Text: fmt.Sprintf("%s: %v", p.Address, err),
		Fix: fmt.Sprintf("start the agent on %s; let %s pass to %s in the firewalls of both hosts and between them", p.Name, network(p), p.Address)}
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		f.Fix = "correct peer.address, or the name service"
	case errors.Is(err, reach.ErrRefused):
		f.Fix = fmt.Sprintf("start the agent on %s, and compare its node.listen with peer.address here", p.Name)
	}
	return f
}

// lossNote is the part of packets, in percent, above which losses are mentioned.
const lossNote = 1.0

// linkFindings are what the agent says of its session with the peer.
func linkFindings(check string, l *control.LinkStatus) []Finding {
	if !l.Up {
		f := Finding{Level: Change, Check: check, Text: "the agent has no session with it", Fix: "compare addresses and keys in the configurations of both nodes; run qrbd doctor on the other node too"}
		if l.Reason != "" {
			f.Text += ": " + l.Reason
		}
		return []Finding{f}
	}
	who := "the peer"
	if l.Dialled {
		who = "this node"
	}
	out := []Finding{ok(check, "there is a session over %s, which %s has opened, with a round trip of %v", l.Transport, who, time.Duration(l.RTTMicros)*time.Microsecond)}
	if mine := fmt.Sprintf("%d.%d", protocol.Major, protocol.Minor); l.Protocol != "" {
		if l.Protocol != mine {
			out = append(out, Finding{Level: Note, Check: check, Text: fmt.Sprintf("it speaks version %s of the protocol, this node %s", l.Protocol, mine), Fix: "install the same version of qrbd on both nodes"})
		} else {
			out = append(out, ok(check, "both speak version %s of the protocol", mine))
		}
	}
	if lost := 100 * float64(l.PacketsLost) / float64(max(l.PacketsSent, 1)); lost > lossNote && l.PacketsSent > 1000 {
		out = append(out, Finding{Level: Note, Check: check, Text: fmt.Sprintf("%.1f %% of the packets in this session were lost and sent again", lost), Fix: "look at UDP buffers on both hosts, then at the network between them"})
	}
	return out
}
