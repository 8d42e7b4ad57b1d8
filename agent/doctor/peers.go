package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// peer examines the way to one peer, and what the agent knows of the way back.
func (e *exam) peer(ctx context.Context, p *config.Peer) []Finding {
	check := "peer " + p.Name
	var out []Finding
	if p.Transport == session.TCP {
		out = append(out, e.reachTCP(ctx, check, p))
	} else {
		out = append(out, e.reachQUIC(ctx, check, p)...)
	}
	if st := e.o.Status; st != nil {
		for i := range st.Links {
			if st.Links[i].Peer == p.Name {
				out = append(out, linkFindings(check, &st.Links[i])...)
			}
		}
	}
	return out
}

// reachQUIC says whether packets of the sizes that QUIC uses get there and back.
func (e *exam) reachQUIC(ctx context.Context, check string, p *config.Peer) []Finding {
	r, err := e.probe.quic(ctx, p.Address)
	if err != nil {
		return []Finding{unreachable(check, p, err, "UDP")}
	}
	out := []Finding{ok(check, "%s answers after %v", p.Address, r.rtt.Round(time.Microsecond))}
	switch {
	case r.largest >= 1452:
		out = append(out, ok(check, "packets with %d bytes of payload pass: an MTU of 1500 at least", r.largest))
	case r.tooBig != 0:
		out = append(out, Finding{Level: Note, Check: check, Text: fmt.Sprintf("this host cannot send packets with %d bytes of payload there, only %d: the MTU of its interface is below 1500", r.tooBig, r.largest),
			Fix: "raise it (ip link set dev … mtu 1500) if the network allows; throughput is lower until then"})
	default:
		out = append(out, Finding{Level: Note, Check: check, Text: fmt.Sprintf("packets with 1452 bytes of payload do not get through, those with %d do: the MTU on the way is below 1500", r.largest),
			Fix: "QUIC finds the size that passes by itself; throughput is higher where 1500 passes (tunnels, VLANs)"})
	}
	return out
}

// reachTCP only opens a connection: whoever does not present a key is dropped.
func (e *exam) reachTCP(ctx context.Context, check string, p *config.Peer) Finding {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(e.probe.tries)*e.probe.wait)
	defer cancel()
	began := time.Now()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", p.Address)
	if err != nil {
		return unreachable(check, p, err, "TCP")
	}
	rtt := time.Since(began)
	conn.Close()
	return ok(check, "%s takes connections after %v", p.Address, rtt.Round(time.Microsecond))
}

// unreachable is the finding for a peer that did not answer.
func unreachable(check string, p *config.Peer, err error, how string) Finding {
	f := Finding{Level: Change, Check: check, Text: fmt.Sprintf("%s: %v", p.Address, err),
		Fix: fmt.Sprintf("start the agent on %s; let %s pass to %s in the firewalls of both hosts and between them", p.Name, how, p.Address)}
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		f.Fix = "correct peer.address, or the name service"
	case errors.Is(err, errRefused):
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
	way := "the peer has opened it: packets pass both ways, whoever begins"
	if l.Dialled {
		way = "this node has opened it; whether the peer could, qrbd doctor on the peer says"
	}
	out := []Finding{ok(check, "there is a session (%s), round trip %v; %s", l.Transport, time.Duration(l.RTTMicros)*time.Microsecond, way)}
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
