package config

import "github.com/qrbd/qrbd/protocol"

// decodePolicy reads what to do about a split brain; by default nothing.
func decodePolicy(s *section) protocol.SplitPolicy {
	var p protocol.SplitPolicy
	after := func(key string, primaries int) protocol.AfterSB {
		return read(s, key, protocol.AfterSBDisconnect.String(), func(text string) (protocol.AfterSB, error) {
			a, node, err := protocol.ParseAfterSB(primaries, text)
			if node != "" {
				p.Node = node
			}
			return a, err
		})
	}
	p.Pri0 = after("after_sb_0pri", 0)
	p.Pri1 = after("after_sb_1pri", 1)
	p.Pri2 = after("after_sb_2pri", 2)
	switch p.Pri1 {
	case protocol.Consensus, protocol.CallPriLost:
		if p.Pri0 == protocol.AfterSBDisconnect {
			s.fault("after_sb_1pri", "%s follows after_sb_0pri, which decides nothing: set it too", p.Pri1)
		}
	default:
	}
	if p.Pri2 == protocol.CallPriLost && p.Pri0 == protocol.AfterSBDisconnect {
		s.fault("after_sb_2pri", "%s follows after_sb_0pri, which decides nothing: set it too", p.Pri2)
	}
	return p
}
