package config

import (
	"net"
	"slices"
)

// ExportTLS is the table [volume.export_tls] but for the list of clients: clients
// of the export must use TLS and have a certificate of the CA.
type ExportTLS struct {
	Certificate string // PEM file; what follows the first certificate is its chain
	Key         string // PEM file
	ClientCA    string // PEM file: who signs clients' certificates
}

// Loopback says whether only this host can reach the export.
func (e Export) Loopback() bool {
	if e.Network != "tcp" {
		return true
	}
	host, _, _ := net.SplitHostPort(e.Address)
	ip := net.ParseIP(stripZone(host))
	return ip != nil && ip.IsLoopback()
}

// decodeExportTLS reads the table export_tls, which an export off loopback must
// have, and the clients in it.
func decodeExportTLS(s *section, e Export) (*ExportTLS, []string) {
	v, given := s.take("export_tls")
	if !given {
		if !e.Loopback() {
			s.fault("export", "%q is not on loopback: without TLS anyone on the network could write to the volume; add a section [volume.export_tls], or use tcp:127.0.0.1:port or a unix: socket", e)
		}
		return nil, nil
	}
	keys, ok := v.(map[string]any)
	if !ok {
		s.fault("export_tls", "must be a section: [volume.export_tls] with certificate, key, client_ca and clients")
		return nil, nil
	}
	if e.Network == "unix" {
		s.fault("export_tls", "is for tcp: exports; who may use a unix: socket is said by export_owner, export_group and export_mode")
	}
	t := &section{doc: s.doc, path: s.path + ".export_tls", keys: keys, e: s.e}
	out := &ExportTLS{
		Certificate: read(t, "certificate", required, parsePath),
		Key:         read(t, "key", required, parsePath),
		ClientCA:    read(t, "client_ca", required, parsePath),
	}
	clients := readList(t, "clients")
	if _, given := keys["clients"]; !given {
		t.fault("clients", "is missing: list the names, as they stand in the certificates of the clients that may use the volume")
	} else if list, isList := keys["clients"].([]any); isList && len(list) == 0 {
		t.fault("clients", "is empty: nobody could connect")
	}
	for i, name := range clients {
		if name == "" || slices.Contains(clients[:i], name) {
			t.fault("clients", "entry %d: %q is empty or there twice", i+1, name)
		}
	}
	t.done()
	return out, clients
}

// Same says whether volumes with these tables can share an address: which export
// a client wants is known only after TLS.
func (t *ExportTLS) Same(o *ExportTLS) bool {
	if t == nil || o == nil {
		return t == o
	}
	return *t == *o
}
