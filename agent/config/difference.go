package config

import (
	"reflect"
	"slices"
	"strings"
	"unicode"
)

// Difference is what a configuration changes of another, sorted by what a running agent
// can do about it.
type Difference struct {
	PeersAdded     []Peer
	PeersChanged   []Peer // address, keys, transport, congestion or compression
	PeersRemoved   []string
	VolumesAdded   []Volume
	VolumesChanged []VolumeDifference
	VolumesRemoved []string
	Hooks          bool
	// Restart are keys of [node], which an agent reads when it starts.
	Restart []string
}

// VolumeDifference is what changes of one volume. Keys are as in the file.
type VolumeDifference struct {
	Name       string
	PeersAdded []VolumePeer
	Tuned      []string // what may change while the volume runs
	Restart    []string // what may not
	// Size: it is changed by an operation of its own, on every node.
	Size bool
	// PeersRemoved stay with the volume until the agent is started again.
	PeersRemoved []string
	// Effective is the volume as it is when everything but Restart, Size and PeersRemoved
	// has been applied.
	Effective Volume
}

// tunable are the fields of Volume that may change while it runs.
var tunable = []string{"Hooks", "AfterSB", "VerifyEvery", "VerifyWindow", "ResyncRateMax", "ResyncRateMin", "ResyncWindow", "FlushBytes", "WriteTimeout",
	"FlushInterval", "ActivityIdle", "OnNoData", "OnReadError", "DiskTimeout", "AttachTimeout", "Archive", "ExportClients", "Failover"}

// Compare says what next changes of c. A field that Compare has not been told of
// needs a restart: nothing is taken for applied that is not.
func (c *Config) Compare(next *Config) Difference {
	d := Difference{Hooks: !reflect.DeepEqual(c.Hooks, next.Hooks)}
	for _, key := range changed(reflect.ValueOf(c.Node), reflect.ValueOf(next.Node)) {
		d.Restart = append(d.Restart, "node."+snake(key))
	}
	for _, p := range next.Peers {
		i := slices.IndexFunc(c.Peers, func(q Peer) bool { return q.Name == p.Name })
		switch {
		case i < 0:
			d.PeersAdded = append(d.PeersAdded, p)
		case !reflect.DeepEqual(c.Peers[i], p):
			d.PeersChanged = append(d.PeersChanged, p)
		}
	}
	for _, p := range c.Peers {
		if !slices.ContainsFunc(next.Peers, func(q Peer) bool { return q.Name == p.Name }) {
			d.PeersRemoved = append(d.PeersRemoved, p.Name)
		}
	}
	for i := range next.Volumes {
		v := &next.Volumes[i]
		old := c.Volume(v.Name)
		if old == nil {
			d.VolumesAdded = append(d.VolumesAdded, *v)
		} else if !reflect.DeepEqual(old, v) {
			d.VolumesChanged = append(d.VolumesChanged, compareVolumes(old, v))
		}
	}
	for _, v := range c.Volumes {
		if next.Volume(v.Name) == nil {
			d.VolumesRemoved = append(d.VolumesRemoved, v.Name)
		}
	}
	return d
}

func compareVolumes(old, next *Volume) VolumeDifference {
	d := VolumeDifference{Name: next.Name, Effective: *old}
	was, is, now := reflect.ValueOf(old).Elem(), reflect.ValueOf(next).Elem(), reflect.ValueOf(&d.Effective).Elem()
	for _, field := range changed(was, is) {
		switch {
		case field == "Peers":
			d.comparePeers(old.Peers, next.Peers)
		case field == "Size":
			d.Size = true
		case slices.Contains(tunable, field):
			d.Tuned = append(d.Tuned, snake(field))
			now.FieldByName(field).Set(is.FieldByName(field))
		default:
			d.Restart = append(d.Restart, snake(field))
		}
	}
	return d
}

// comparePeers notes what changes of a volume's peers. Their order says nothing.
func (d *VolumeDifference) comparePeers(old, next []VolumePeer) {
	at := func(list []VolumePeer, name string) int {
		return slices.IndexFunc(list, func(p VolumePeer) bool { return p.Name == name })
	}
	d.Effective.Peers = slices.Clone(old)
	for _, p := range next {
		switch i := at(old, p.Name); {
		case i < 0:
			d.PeersAdded = append(d.PeersAdded, p)
			d.Effective.Peers = append(d.Effective.Peers, p)
		default:
			for _, field := range changed(reflect.ValueOf(old[i]), reflect.ValueOf(p)) {
				if key := snake(field); !slices.Contains(d.Restart, key) {
					d.Restart = append(d.Restart, key)
				}
			}
		}
	}
	for _, p := range old {
		if at(next, p.Name) < 0 {
			d.PeersRemoved = append(d.PeersRemoved, p.Name)
		}
	}
}

// changed returns the names of the exported fields that differ.
func changed(a, b reflect.Value) (names []string) {
	for i := range a.NumField() {
		if f := a.Type().Field(i); f.IsExported() && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			names = append(names, f.Name)
		}
	}
	return names
}

// snake is a field's name as the key in the file: ResyncRateMax, resync_rate_max.
func snake(field string) string {
	switch field {
	case "Mode":
		return "protocol"
	case "AfterSB":
		return "after_sb_*pri"
	case "MinRedundancy":
		return "quorum_minimum_redundancy"
	case "Witness":
		return "witnesses"
	case "ExportClients":
		return "export_tls.clients"
	case "ExportAccess":
		return "export_owner, export_group or export_mode"
	}
	var b strings.Builder
	for i, r := range field {
		if unicode.IsUpper(r) && i > 0 && !unicode.IsUpper(rune(field[i-1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
