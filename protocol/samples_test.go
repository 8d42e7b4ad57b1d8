package protocol

import "bytes"

// sample is one frame of the golden table and of the fuzz seeds.
type sample struct {
	name    string
	m       Message
	payload []byte
}

// samples has at least one frame of every type; no field is zero where it may
// be otherwise, so that a swapped or forgotten field shows.
func samples() []sample {
	return []sample{
		{"node-hello", &NodeHello{Major: 1, Minor: 2, Features: 0x0102030405060708, Name: "alpha", Instance: 9}, nil},
		{"ping", &Ping{ID: 1, Time: -2}, nil},
		{"pong", &Pong{ID: 3, Time: 4}, nil},
		{"stream-open", &StreamOpen{Kind: StreamBulk, Volume: "crm", Attempt: 5}, nil},
		{"connect-ask", &ConnectAsk{Volume: "crm"}, nil},
		{"reach-ask", &ReachAsk{ID: 6}, nil},
		{"reach-answer", &ReachAnswer{ID: 6, RTT: 7, Largest: 1452, Address: "10.0.0.1:7790", Build: "1.2.3", Reason: "no answer"}, nil},
		{"failover", &Failover{Volume: "crm", Standing: StandingRunning, Paused: true, Move: true, Change: 8, Vote: 9, By: "beta", Reason: "drill"}, nil},
		{"close", &Close{Code: CodeShutdown, Text: "alpha is stopping"}, nil},
		{"join", &Join{Ticket: [JoinTicketLen]byte{1, 2, 3, 31: 32}}, nil},
		{"hello", &Hello{
			Volume: VolumeID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
			Size:   10 << 30, Block: 4096, Attempt: 6, Instance: 7,
			Role: Secondary, Disk: Outdated, Mode: ModeB, Flags: HelloCrashedPrimary | HelloPeerFenced,
			Seq: 8, Current: 9,
			Slots:   []PeerSlot{{"beta", 10, 11}, {"gamma", 12, 13}},
			History: []Generation{14, 15, 16},
			Primary: "beta",
			Policy:  SplitPolicy{DiscardNode, DiscardSecondary, CallPriLost, "gamma"},
			Changes: Changes{17, 18, []Range{{19, 20}, {21, 22}}},
		}, nil},
		{"hello-new", &Hello{Role: Secondary, Disk: Inconsistent, Mode: ModeC}, nil},
		{"verdict", &Verdict{Attempt: 1, Strategy: TargetBitmap, Rule: "equal-crashed", Digest: true}, nil},
		{"refuse", &Refuse{Code: CodeSplitBrain, Text: "both sides wrote"}, nil},
		{"bye", &Bye{Code: CodeOperator, Outdate: true, Text: "disconnect"}, nil},
		{"state", &State{Role: Primary, Disk: UpToDate, Current: 1, Primary: "alpha"}, nil},
		{"promote-ask", &PromoteAsk{ID: 1, Force: true}, nil},
		{"promote-answer", &PromoteAnswer{ID: 1, Yes: true, Code: CodeTwoPrimaries, Text: "beta is primary"}, nil},
		{"handover", &Handover{ID: 1, Current: 2, Seq: 3}, nil},
		{"handover-answer", &HandoverAnswer{ID: 1, Yes: true, Text: "done"}, nil},
		{"ballot", &Ballot{Rules: "majority, off", Term: 1, Voted: 2, Floor: 3, Overruled: 4, Witness: true, Left: true, Serving: true}, nil},
		{"claim", &Claim{Term: 1, Stamp: 2, Current: 3, Overruled: 6, History: []Generation{4, 5}}, nil},
		{"claim-answer", &ClaimAnswer{Stamp: 1, Term: 2, Current: 3, No: NoFollow}, nil},
		{"leave", &Leave{}, nil},
		{"readmit", &Readmit{}, nil},
		{"bond", &Bond{}, nil},
		{"data-write", &Data{Op: DataWrite, Flags: DataFUA, Seq: 1, Time: 2, Off: 3, Len: 4}, []byte("data")},
		{"data-zero", &Data{Op: DataZero, Flags: DataNoHole, Seq: 5, Time: 6, Off: 7, Len: 1 << 40}, nil},
		{"data-trim", &Data{Op: DataTrim, Seq: 8, Time: 9, Off: 10, Len: 11}, nil},
		{"data-flush", &Data{Op: DataFlush, Seq: 12, Time: 13}, nil},
		{"ack", &Ack{Received: 3, Applied: 2, Durable: 1}, nil},
		{"stable", &Stable{Peers: []PeerStable{{"beta", 1, true, true}, {"gamma", 2, false, false}}}, nil},
		{"new-generation", &NewGeneration{Parent: 1, Current: 2, Weak: []string{"beta", "gamma"}}, nil},
		{"generation-ack", &GenerationAck{Current: 1}, nil},
		{"gone-ahead", &GoneAhead{}, nil},
		{"peer-read", &PeerRead{ID: 1, Off: 2, Len: 3}, nil},
		{"peer-reply", &PeerReply{ID: 1, Len: 3}, []byte{4, 5, 6}},
		{"peer-reply-zero", &PeerReply{ID: 1, Len: ReadMax, Zero: true}, nil},
		{"peer-reply-error", &PeerReply{ID: 1, Len: 2, Code: CodeDiskFailed}, nil},
		{"bitmap-part", &BitmapPart{First: 1, Words: []uint64{2, 1 << 63}}, nil},
		{"bitmap-done", &BitmapDone{Blocks: 1}, nil},
		{"sync-start", &SyncStart{Base: 1, Volume: VolumeID{15: 2}, Blocks: 3, Digest: true}, nil},
		{"sync-ready", &SyncReady{}, nil},
		{"sync-done", &SyncDone{Current: 1, Seq: 5, Slots: []PeerSlot{{"beta", 2, 3}}, History: []Generation{4}}, nil},
		{"sync-done-ack", &SyncDoneAck{}, nil},
		{"sync-write", &SyncWrite{ID: 1, Off: 2, Len: 3}, []byte{7, 8, 9}},
		{"sync-zero", &SyncZero{ID: 1, Off: 2, Len: 1 << 40}, nil},
		{"sync-digests", &SyncDigests{ID: 1, Off: 4096, Len: 4097, Seed: 4, Verify: true, Digests: []uint64{5, 6}}, nil},
		{"sync-differs", &SyncDiffers{ID: 1, Differ: [4]uint64{2, 3, 4, 5}}, nil},
		{"sync-ack", &SyncAck{ID: 1}, nil},
		{"sync-flush", &SyncFlush{ID: 2}, nil},
		{"sync-flushed", &SyncFlushed{ID: 3}, nil},
	}
}

func (s sample) frame() []byte { return append(AppendFrame(nil, s.m, s.payload), s.payload...) }

// decodeFrame reads one whole frame as a stream's reader does.
func decodeFrame(d *Decoder, frame []byte) (Message, []byte, error) {
	h, err := ParseHeader(frame)
	if err != nil {
		return nil, nil, err
	}
	rest := frame[HeaderLen:]
	if len(rest) < h.BodyLen+h.PayloadLen {
		return nil, nil, ErrMalformed
	}
	body := rest[:h.BodyLen]
	payload := rest[h.BodyLen : h.BodyLen+h.PayloadLen]
	m, err := d.Decode(h, frame[:8], body, payload)
	return m, bytes.Clone(payload), err
}
