package metrics

import "github.com/prometheus/client_golang/prometheus"

// descs is every metric of the collector.
var descs []*prometheus.Desc

func desc(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("qrbd_"+name, help, labels, nil)
	descs = append(descs, d)
	return d
}

// ofVolume and ofPeer are metrics of a volume, and of a volume's peer.
func ofVolume(name, help string, more ...string) *prometheus.Desc {
	return desc(name, help, append([]string{"name"}, more...)...)
}

func ofPeer(name, help string, more ...string) *prometheus.Desc {
	return desc(name, help, append([]string{"name", "conn_name"}, more...)...)
}

// The node.
var (
	buildInfo       = desc("build_info", "Always 1; the labels say which build runs", "version", "goversion")
	healthy         = desc("healthy", "Whether every volume is as it should be, as /healthz says")
	resources       = desc("resource_resources", "Number of volumes")
	identitySince   = desc("identity_key_timestamp_seconds", "When the node's identity key was made, Unix time")
	certificateEnds = desc("certificate_expiry_timestamp_seconds", "When a certificate expires, Unix time; use is the address of an export, or peers: that one is pinned by its key and renewed at each start", "use")

	linkUp            = desc("link_up", "Whether there is a session with the peer's agent", "conn_name")
	linkInfo          = desc("link_info", "Always 1; the labels say how the session is made", "conn_name", "transport", "protocol", "compression")
	linkRTT           = desc("link_rtt_seconds", "Smoothed round trip of the session", "conn_name")
	linkSentBytes     = desc("link_sent_bytes_total", "Bytes in packets sent in this session, with retransmissions", "conn_name")
	linkReceivedBytes = desc("link_received_bytes_total", "Bytes in packets received in this session", "conn_name")
	linkSentPackets   = desc("link_sent_packets_total", "Packets sent in this session", "conn_name")
	linkLostPackets   = desc("link_retransmissions_total", "Packets of this session that were lost and whose content was sent again", "conn_name")
	linkWindow        = desc("link_congestion_window_bytes", "Bytes that may be under way to the peer", "conn_name")
)

// The volume.
var (
	resourceRole = ofVolume("resource_role", "Role of the volume on this node", "qrbd_resource_role")
	mayPromote   = ofVolume("resource_maypromote", "Whether a promotion without --force would be tried now")
	suspended    = ofVolume("resource_suspended", "Whether requests wait because no copy of the data can be reached")
	frozen       = ofVolume("resource_frozen", "Whether requests wait until a lost peer is fenced")
	clients      = ofVolume("resource_clients", "NBD connections of the volume's export")

	failover        = ofVolume("failover_standing", "How the volume's failover stands on this node; off where none is configured", "qrbd_failover_standing")
	failoverPaused  = ofVolume("failover_paused", "Whether failover is paused, on all nodes: nobody takes the role over")
	failoverTrouble = ofVolume("failover_trouble", "Whether failover cannot do what it should without somebody's help: what belongs on top does not start, or requests are not answered")
	failoverGivenUp = ofVolume("failover_given_up", "Whether what belongs on top did not start on this node, which leaves the role to others for a while")

	deviceState    = ofVolume("device_state", "State of the local disk", "qrbd_device_state")
	deviceSize     = ofVolume("device_size_bytes", "Size of the volume")
	deviceLacks    = ofVolume("device_lacks_bytes", "Bytes that a replaced local disk still lacks")
	lowerPending   = ofVolume("device_lowerpending", "Operations that wait for the local store")
	upperPending   = ofVolume("device_upperpending", "Requests of clients that are not answered yet")
	inFlight       = ofVolume("device_inflight", "Writes and flushes under way on the disk or to peers")
	waiting        = ofVolume("device_waiting", "Requests that wait for another, for a peer or for metadata")
	congested      = ofVolume("device_congested", "Whether writes wait because a peer is too far behind")
	activeExtents  = ofVolume("device_active_extents", "Extents of 4 MiB on the activity map: what a crash would have compared")
	readBytes      = ofVolume("device_read_bytes_total", "Bytes that clients read")
	writtenBytes   = ofVolume("device_written_bytes_total", "Bytes that clients wrote")
	diskErrors     = ofVolume("device_errors_total", "Errors that the local store returned", "op")
	requestErrors  = ofVolume("request_errors_total", "Requests of clients that failed", "op")
	requestSeconds = ofVolume("request_seconds", "Time that requests of clients took: local until the local store has done it, whole until the client is answered", "op", "stage")
	commits        = ofVolume("metadata_commit_seconds", "Time that commits of metadata took")
)

// A volume's peer.
var (
	connState   = ofPeer("connection_state", "State of the connection to the peer", "qrbd_connection_state")
	peerRole    = ofPeer("connection_peer_role", "Role of the volume on the peer", "qrbd_connection_peer_role")
	peerState   = ofPeer("peerdevice_state", "State of the peer's disk", "qrbd_peerdevice_state")
	replication = ofPeer("peerdevice_replication", "What goes on between this node and the peer", "qrbd_peerdevice_replication")

	apInFlight    = ofPeer("connection_apinflight_bytes", "Bytes of writes sent to the peer and not yet applied there")
	apInFlightOps = ofPeer("connection_apinflight_operations", "Operations sent to the peer and not yet applied there, flushes included")
	rsInFlight    = ofPeer("connection_rsinflight_bytes", "Bytes of the resync or verify under way that the peer has not answered")
	sendQueue     = ofPeer("connection_send_queue", "Frames that wait to be sent")

	outOfSync     = ofPeer("peerdevice_outofsync_bytes", "Bytes currently out of sync with the peer")
	behindBytes   = ofPeer("peerdevice_behind_bytes", "Bytes that the peer may lack: out of sync, or under way to it")
	behindSeconds = ofPeer("peerdevice_behind_seconds", "Age of the oldest write that the peer may lack: what would be lost were this node to die. Absent while not known")
	syncPercent   = ofPeer("peerdevice_sync_ratio", "Part of the resync or verify under way that is done; 1 when nothing is out of sync")
	syncRate      = ofPeer("peerdevice_sync_bytes_per_second", "Rate of the resync or verify under way; 0 when there is none")
	syncLeft      = ofPeer("peerdevice_sync_left_seconds", "Time that the resync or verify under way will still take. Absent when there is none")
	verifyBad     = ofPeer("peerdevice_verify_bad_bytes", "Bytes in blocks that differed in the last verify on this node")
	verifyEnded   = ofPeer("peerdevice_verify_timestamp_seconds", "When the last verify on this node ended, Unix time")
	sentBytes     = ofPeer("peerdevice_sent_bytes_total", "Bytes sent to the peer for the volume")
	receivedBytes = ofPeer("peerdevice_received_bytes_total", "Bytes received from the peer for the volume")
	sentSaved     = ofPeer("peerdevice_sent_saved_bytes_total", "Bytes that compression took off what was sent to the peer for the volume")
	receivedSaved = ofPeer("peerdevice_received_saved_bytes_total", "Bytes that compression took off what was received from the peer for the volume")
	appliedBytes  = ofPeer("peerdevice_applied_bytes_total", "Bytes of the peer's writes that were applied here")
	peerSeconds   = ofPeer("peer_request_seconds", "Time per peer: wire until an operation is in the transport's hands, remote until the peer has confirmed it (flush: as durable), apply what the store here took for the peer's operation", "op", "stage")
)
