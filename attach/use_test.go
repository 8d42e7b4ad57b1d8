package attach

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// sysfs makes block devices below a directory: name to number; "a/b" is b, a partition
// of a; holders name what is built on a device.
func sysfs(t *testing.T, numbers map[string]string, holders map[string]string) string {
	t.Helper()
	sys := t.TempDir()
	class := filepath.Join(sys, "class/block")
	write := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, number := range numbers {
		write(filepath.Join(class, filepath.Base(name), "dev"), number+"\n")
		if whole := filepath.Dir(name); whole != "." {
			write(filepath.Join(class, whole, filepath.Base(name), "partition"), "1\n")
		}
	}
	for below, above := range holders {
		write(filepath.Join(class, below, "holders", above), "")
	}
	return sys
}

func TestFamily(t *testing.T) {
	sys := sysfs(t, map[string]string{"loop3": "7:3", "loop3/loop3p1": "259:0", "loop3/loop3p2": "259:1", "dm-0": "254:0", "dm-1": "254:1", "loop4": "7:4"},
		map[string]string{"loop3p2": "dm-0", "dm-0": "dm-1"})
	nodes, holders := family(sys, "loop3")
	want := []node{{"loop3", "7:3"}, {"loop3p1", "259:0"}, {"loop3p2", "259:1"}, {"dm-0", "254:0"}, {"dm-1", "254:1"}}
	if !reflect.DeepEqual(nodes, want) || !reflect.DeepEqual(holders, []string{"dm-0", "dm-1"}) {
		t.Errorf("%v %v", nodes, holders)
	}
	if nodes, holders := family(sys, "loop9"); len(nodes)+len(holders) != 0 {
		t.Errorf("of no device: %v %v", nodes, holders)
	}
}

func TestMountPoints(t *testing.T) {
	const mounts = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
36 22 7:3 / /srv/crm\040data rw,noatime - ext4 /dev/loop3 rw
37 22 0:45 /sub /srv/btrfs rw - btrfs /dev/loop3p1 rw
38 22 7:33 / /srv/other rw shared:7 master:2 - xfs /dev/loop33 rw
39 22 7:3 / /srv/again rw - ext4 /dev/loop3 rw
broken
`
	nodes := []node{{"loop3", "7:3"}, {"loop3p1", "259:0"}}
	want := []string{"/srv/crm data", "/srv/btrfs", "/srv/again"}
	if got := mountPoints(mounts, nodes); !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestUseInWords(t *testing.T) {
	tests := []struct {
		use  Use
		want string
		any  bool
	}{
		{Use{}, "not in use", false},
		{Use{Mounts: []string{"/a", "/b"}, Exclusive: true}, "mounted on /a, /b", true},
		{Use{Holders: []string{"dm-0"}, Openers: []string{"dd (7)"}}, "held by dm-0 and open in dd (7)", true},
		{Use{Exclusive: true}, "in exclusive use (mounted in another mount namespace, perhaps)", true},
	}
	for _, tt := range tests {
		if got := tt.use.String(); got != tt.want || tt.use.Any() != tt.any {
			t.Errorf("%+v: %q, %t", tt.use, got, tt.use.Any())
		}
	}
}
