package config

import (
	"fmt"
	"strings"
)

// Template returns the text of a first configuration: the [node] section as
// given, and the other sections as comments that show every key.
func Template(n Node) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# qrbd: configuration of node %s. Check it with: qrbd config check

[node]
name    = %s
listen  = %s # UDP, and TCP if a peer has that transport
state   = %s # identity key, metadata, archives
control = %s # socket of the control API
`, n.Name, quote(n.Name), column(n.Listen), column(n.State), column(n.Control))
	b.WriteString(templateRest)
	return b.String()
}

// Stanza returns the [[peer]] section that the other nodes need for this one.
func Stanza(name, address, key string) string {
	return fmt.Sprintf("[[peer]]\nname    = %s\naddress = %s\nkey     = %s\n", quote(name), quote(address), quote(key))
}

// column is quote, padded so that the comments behind it line up.
func column(s string) string { return fmt.Sprintf("%-28s", quote(s)) }

// quote writes s as a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

const templateRest = `#control_group   = "disk"               # a group that may use the control socket too, beside root; or control_owner, a user
#control_readers = "adm"                # a group that may look: status, events, explain
#metrics      = "127.0.0.1:9790"       # Prometheus metrics and /healthz; default: none
#archive_dir  = "/var/lib/qrbd/archive" # where lost sides of split brains are kept; default: archive in state
#devices      = "/dev/qrbd"            # stable names of attached volumes: /dev/qrbd/crm
#heartbeat    = "500ms"                # how often a peer is asked whether it is there
#peer_timeout = "3s"                   # a peer that was silent for so long is lost

# One section for each other node. "qrbd init" prints it there, and
# "qrbd identity" prints the key again.
#
#[[peer]]
#name    = "beta"
#address = "10.0.0.2:7790"
#key     = "qk1..."
#keys    = ["qk1..."]   # a second key that is accepted, while the key is replaced
#transport = "tcp"      # faster over a link without loss; the same on both nodes; default: "quic"
#compression = "zstd"   # of what is sent to this peer, for slow links; default: "none"
#congestion = "bbr"     # of TCP toward this peer; default: the host's (sysctl net.ipv4.tcp_congestion_control)

# One section for each volume, the same name and size on every node.
#
#[[volume]]
#name     = "crm"
#size     = "10GiB"                     # B, KiB, MiB, GiB or TiB
#backing  = "/var/lib/qrbd/crm.img"     # a file (created sparse) or a block device
#export   = "unix:/run/qrbd/crm.sock"   # or "tcp:127.0.0.1:10809"
#export_group = "disk"                  # unix: who may use it beside root; or export_owner, a user, and export_mode
#peers    = ["beta"]                    # default: every peer
#protocol = "C"                         # C: a write is done when the peer has applied it
#                                       # B: ... has received it; A: ... is queued to it
#send_buffer     = "32MiB"              # A: so much may be on its way to the peer, in memory
#on_congestion   = "pull-ahead"         # A: then writes go on without the peer, which is outdated until it has
#                                       # caught up by itself; default: "block", writes wait for room
#congestion_fill = "24MiB"              # pull-ahead: already at so much; default: send_buffer
#resync_rate_max = "100MiB"             # limit of resync and verify, per second; default: none
#resync_rate_min = "4MiB"               # clients do not push them below that
#resync_window   = "32MiB"              # at most so much resync data is in flight
#verify_every    = "168h"               # the primary compares the replicas so often; default: never
#verify_window   = "01:00-05:00"        # only then, local time
#write_timeout  = "10s"                 # a peer that does not answer a write is dropped
#flush_interval = "1s"                  # a peer is flushed at least so often,
#flush_bytes    = "64MiB"               # or after so much
#activity_idle  = "30s"                 # an extent not written for so long is idle
#disk_timeout   = "60s"                 # a disk on which nothing ends for so long has failed
#attach_timeout = "10m"                 # requests of an attached device wait so long for the agent
#on_read_error  = "repair"              # this disk cannot read a block: it is read from a peer and
#                                       # written anew; or detach: the disk counts as failed
#on_no_data     = "io-error"            # no copy of the data can be reached: requests fail; or
#                                       # suspend-io: they wait for one
#after_sb_0pri  = "disconnect"          # split brain, nobody is primary: an operator decides, or
#                                       # discard-younger-primary, discard-older-primary,
#                                       # discard-zero-changes, discard-least-changes, discard-node-NAME
#after_sb_1pri  = "disconnect"          # one is primary: or consensus, discard-secondary, call-pri-lost-after-sb
#after_sb_2pri  = "disconnect"          # both are: or call-pri-lost-after-sb
#archive        = "split-brain"         # keep the losing side's blocks before they are overwritten; or
#                                       # always (also writes that were under way in a crash), off
#archive_limit  = "1GiB"                # how much an archive grows after that sync, to stay exact
#quorum         = "off"                 # a primary answers only while so many nodes follow it: majority, all,
#                                       # or a number; the same on every node, and peer_timeout too
#quorum_minimum_redundancy = "off"      # and so many hold all of the data
#on_no_quorum   = "suspend-io"          # otherwise requests wait; or io-error: they fail
#witnesses      = []                    # nodes that vote and hold no data: there backing = "none"
#fencing        = "dont-care"           # a peer out of reach: an operator vouches for its death; or resource-only:
#                                       # the hook fence-peer does, before a promotion; or resource-and-stonith:
#                                       # and a primary that has lost a peer answers nothing before
#
#[volume.protocols]                     # where a peer differs from protocol
#gamma = "A"

# An export to other hosts must have TLS and certificates (PEM files).
#
#[[volume]]
#name     = "web"
#size     = "1GiB"
#backing  = "/var/lib/qrbd/web.img"
#export   = "tcp:10.0.0.1:10809"
#
#[volume.export_tls]
#certificate = "/etc/qrbd/tls/alpha.crt"
#key         = "/etc/qrbd/tls/alpha.key"
#client_ca   = "/etc/qrbd/tls/clients-ca.crt"
#clients     = ["db1.example.org"]      # names in the certificates of the clients that are let in

# Commands run on events, without a shell, with the event in QRBD_ variables. A
# volume's own, in [volume.hooks], take the place of these.
#
#[hooks]
#split-brain = ["/usr/local/bin/tell-the-admin", "--urgent"]
#timeout     = "60s"                    # what runs longer is killed
`
