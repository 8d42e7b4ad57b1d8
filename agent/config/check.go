package config

import (
	"fmt"
	"net"
	"path/filepath"
)

// check reports what is wrong between sections: names and addresses used
// twice, a peer that is this node, files that two volumes would share.
func check(c *Config, e *Error) {
	k := checker{c: c, e: e}
	k.peers()
	k.metrics()
	k.volumes()
	k.exports()
	k.backings()
	k.quorums()
	k.failovers()
	k.fencing()
}

type checker struct {
	c *Config
	e *Error
}

// fault adds a fault at a path such as "volume[0].name", with its line.
func (k *checker) fault(path, format string, args ...any) {
	k.e.add(k.c.lines[path], shown(path), format, args...)
}

func (k *checker) peers() {
	names := map[string]int{}     // line of the first
	addresses := map[string]int{} // line of the first
	keys := map[string]string{}   // owner
	for i, p := range k.c.Peers {
		at := fmt.Sprintf("peer[%d].", i)
		k.once(names, at+"name", p.Name, "peer")
		if p.Name != "" && p.Name == k.c.Node.Name {
			k.fault(at+"name", "%q is this node's own name: list the other nodes only", p.Name)
		}
		k.once(addresses, at+"address", p.Address, "address")
		if p.Address != "" && p.Address == k.c.Node.Listen {
			k.fault(at+"address", "%s is this node's own listen address", p.Address)
		}
		for _, key := range p.Keys {
			if other, used := keys[key]; used {
				k.fault(at+"key", "peer %s has the same key: each node has its own", other)
			}
			keys[key] = p.Name
		}
	}
}

// metrics: TCP's ports are shared with the peers that use that transport.
func (k *checker) metrics() {
	if m := k.c.Node.Metrics; m != "" && k.c.hasTCP() && sameAddress(m, k.c.Node.Listen) {
		k.fault("node.metrics", "%s is node.listen, which a peer with transport = \"tcp\" uses on TCP too", m)
	}
}

// once reports value when it was seen before.
func (k *checker) once(seen map[string]int, path, value, what string) {
	if value == "" {
		return // already a fault
	}
	if line, used := seen[value]; used {
		k.fault(path, "the %s %q is already in line %d", what, value, line)
		return
	}
	seen[value] = k.c.lines[path]
}

func (k *checker) volumes() {
	names := map[string]int{}
	for i, v := range k.c.Volumes {
		k.once(names, fmt.Sprintf("volume[%d].name", i), v.Name, "volume")
		if n := v.AfterSB.Node; n != "" && n != k.c.Node.Name && !v.hasPeer(n) {
			k.fault(fmt.Sprintf("volume[%d].after_sb_0pri", i), "%q is neither this node nor a peer of the volume", n)
		}
	}
}

// exports: a TCP address may carry several volumes, told apart by the export
// name. A Unix socket belongs to one, so that its owner and mode can be the
// volume's.
func (k *checker) exports() {
	sockets := map[string]int{}
	if k.c.Node.Control != "" {
		sockets[k.c.Node.Control] = k.c.lines["node.control"]
	}
	for i, v := range k.c.Volumes {
		path := fmt.Sprintf("volume[%d].export", i)
		switch v.Export.Network {
		case "unix":
			if v.Export.Address == k.c.Node.Control {
				k.fault(path, "%s is the control socket: give the volume a socket of its own", v.Export.Address)
				continue
			}
			k.once(sockets, path, v.Export.Address, "socket")
		case "tcp":
			if sameAddress(v.Export.Address, k.c.Node.Metrics) {
				k.fault(path, "%s is the address of node.metrics", v.Export.Address)
			}
			if k.c.hasTCP() && sameAddress(v.Export.Address, k.c.Node.Listen) {
				k.fault(path, "%s is node.listen, which a peer with transport = \"tcp\" uses on TCP too", v.Export.Address)
			}
			k.shared(path, v, k.c.Volumes[:i])
		}
	}
}

// shared checks a TCP export against those of the volumes before it.
func (k *checker) shared(path string, v Volume, before []Volume) {
	for _, o := range before {
		switch {
		case o.Export.Network != "tcp":
		case o.Export != v.Export && (sameAddress(o.Export.Address, v.Export.Address) || sameAddress(v.Export.Address, o.Export.Address)):
			k.fault(path, "%s overlaps %s of volume %s: write the same address, or use another port", v.Export, o.Export, o.Name)
			return
		case o.Export == v.Export && !o.ExportTLS.Same(v.ExportTLS):
			k.fault(path, "%s is also the export of volume %s, but certificate, key and client_ca of export_tls differ: TLS comes before the client says which volume it wants", v.Export, o.Name)
			return
		}
	}
}

// sameAddress says whether two TCP addresses cannot both be listened on.
func sameAddress(a, b string) bool {
	ha, pa, errA := net.SplitHostPort(a)
	hb, pb, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || pa != pb {
		return false
	}
	if ha == "localhost" {
		ha = "127.0.0.1"
	}
	if hb == "localhost" {
		hb = "127.0.0.1"
	}
	return ha == hb || hb == "" || net.ParseIP(hb).IsUnspecified()
}

// backings: two volumes on one store, or a volume on another's metadata,
// destroy each other. Links are followed as far as they exist now.
func (k *checker) backings() {
	used := map[string]string{} // file: whose
	for _, v := range k.c.Volumes {
		if v.Name != "" {
			used[followed(k.c.MetaPath(v.Name))] = "the metadata of volume " + v.Name
		}
	}
	for i, v := range k.c.Volumes {
		if v.Backing == "" || v.Witness {
			continue
		}
		file := followed(v.Backing)
		if owner, taken := used[file]; taken {
			k.fault(fmt.Sprintf("volume[%d].backing", i), "%s is already used: it is %s", v.Backing, owner)
			continue
		}
		used[file] = "the backing of volume " + v.Name
	}
}

func followed(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(dir, filepath.Base(path))
	}
	return path
}
