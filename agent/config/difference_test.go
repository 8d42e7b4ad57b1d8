package config

import (
	"reflect"
	"strings"
	"testing"
)

// TestCompare: each change of the file is sorted by what a running agent can do.
func TestCompare(t *testing.T) {
	text := fill(t, whole)
	third := fill(t, "\n[[peer]]\nname = \"delta\"\naddress = \"10.0.0.4:7790\"\nkey = \"KEY1\"\n")
	for _, c := range []struct {
		name     string
		old, new string // replaced
		want     func(d Difference) any
		is       any
	}{
		{"nothing", "", "", func(d Difference) any { return d }, Difference{}},
		{"node", `heartbeat = "500ms"`, `heartbeat = "400ms"`, func(d Difference) any { return d.Restart }, []string{"node.heartbeat"}},
		{"metrics", `metrics = "127.0.0.1:9790"`, "", func(d Difference) any { return d.Restart }, []string{"node.metrics"}},
		{"address", "10.0.0.2:7790", "10.0.0.9:7790", func(d Difference) any { return d.PeersChanged[0].Address }, "10.0.0.9:7790"},
		{"a limit", "[[volume]]", "[[volume]]\nresync_rate_max = \"77MiB\"", func(d Difference) any { return d.VolumesChanged[0].Tuned }, []string{"resync_rate_max"}},
		{"clients", "tcp:localhost:10809\"", "tcp::10809\"\n" + secure, func(d Difference) any { return []any{d.VolumesChanged[0].Tuned, d.VolumesChanged[0].Restart} },
			[]any{[]string{"export_tls.clients"}, []string{"export", "export_tls"}}},
		{"a store", "/var/lib/qrbd/crm.img", "/srv/crm.img", func(d Difference) any { return d.VolumesChanged[0].Restart }, []string{"backing"}},
		{"a size", `"10GiB"`, `"11GiB"`, func(d Difference) any { return d.VolumesChanged[0].Size }, true},
		{"a peer less", "peers    = [\"beta\", \"gamma\"]\nprotocol = \"B\"", "peers = [\"beta\"]\nprotocol = \"B\"", func(d Difference) any { return d.VolumesChanged[0].PeersRemoved }, []string{"gamma"}},
		{"another name", `name     = "crm"`, `name     = "erp"`, func(d Difference) any { return []any{d.VolumesRemoved, len(d.VolumesAdded)} }, []any{[]string{"crm"}, 1}},
		{"a node more", "[[volume]]", third + "[[volume]]", func(d Difference) any { return d.PeersAdded[0].Name }, "delta"},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := strings.ReplaceAll(text, "resync_rate_max", "#resync_rate_max")
			base = strings.ReplaceAll(base, "resync_rate_min", "#resync_rate_min")
			base = strings.ReplaceAll(base, "[volume.protocols]\ngamma = \"A\"\n", "")
			old, err := Parse("q.toml", []byte(base))
			if err != nil {
				t.Fatal(err)
			}
			next, err := Parse("q.toml", []byte(strings.Replace(base, c.old, c.new, 1)))
			if err != nil {
				t.Fatal(err)
			}
			if got := c.want(old.Compare(next)); !reflect.DeepEqual(got, c.is) {
				t.Errorf("%+v, want %+v", got, c.is)
			}
		})
	}
}

// TestTunableFieldsExist: a field that was renamed must not silently need a restart.
func TestTunableFieldsExist(t *testing.T) {
	for _, name := range tunable {
		if _, there := reflect.TypeFor[Volume]().FieldByName(name); !there {
			t.Errorf("Volume has no field %s", name)
		}
	}
}

// TestEffective: what was not applied stays as it was.
func TestEffective(t *testing.T) {
	old := Volume{Name: "crm", Size: 1, Backing: "/a", Peers: []VolumePeer{{Name: "beta"}, {Name: "gamma"}}}
	next := Volume{Name: "crm", Size: 2, Backing: "/b", ResyncRateMax: 5, Peers: []VolumePeer{{Name: "beta", Mode: 1}, {Name: "delta"}}}
	d := compareVolumes(&old, &next)
	want := Volume{Name: "crm", Size: 1, Backing: "/a", ResyncRateMax: 5, Peers: []VolumePeer{{Name: "beta"}, {Name: "gamma"}, {Name: "delta"}}}
	if !reflect.DeepEqual(d.Effective, want) || !reflect.DeepEqual(d.Restart, []string{"backing", "protocol"}) && !reflect.DeepEqual(d.Restart, []string{"protocol", "backing"}) {
		t.Errorf("%+v", d)
	}
}
