package config

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/qrbd/qrbd/agent/hook"
)

const hooksNode = "[node]\nname = \"alpha\"\nlisten = \"10.0.0.1:7790\"\n" // 3 lines
const hooksVolume = "[[volume]]\nname = \"crm\"\nsize = \"1GiB\"\nbacking = \"/b\"\nexport = \"unix:/s\"\n"

func TestHooks(t *testing.T) {
	c, err := Parse("q.toml", []byte(hooksNode+`
[hooks]
split-brain  = "/bin/tell 'the admin' --urgent"
out-of-sync  = ["/bin/mail", "root"]
timeout      = "5s"
`+hooksVolume+`
[volume.hooks]
out-of-sync = ""
before-resync-target = ["/bin/snapshot"]
`+"[[volume]]\nname = \"web\"\nsize = \"1GiB\"\nbacking = \"/w\"\nexport = \"unix:/t\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	all := hook.Set{Timeout: 5 * time.Second, Commands: map[hook.Name]hook.Command{
		hook.SplitBrain: {"/bin/tell", "the admin", "--urgent"}, hook.OutOfSync: {"/bin/mail", "root"}}}
	crm := hook.Set{Timeout: 5 * time.Second, Commands: map[hook.Name]hook.Command{
		hook.SplitBrain: {"/bin/tell", "the admin", "--urgent"}, hook.BeforeResyncTarget: {"/bin/snapshot"}}}
	for _, x := range []struct {
		what      string
		got, want hook.Set
	}{{"[hooks]", c.Hooks, all}, {"crm", c.Volume("crm").Hooks, crm}, {"web", c.Volume("web").Hooks, all}} {
		if !reflect.DeepEqual(x.got, x.want) {
			t.Errorf("%s: %+v, want %+v", x.what, x.got, x.want)
		}
	}
}

func TestHookFaults(t *testing.T) {
	_, err := Parse("q.toml", []byte(hooksNode+`[hooks]
split-brian = "/bin/x"
split-brain = "/bin/x 'a"
out-of-sync = "x"
peer-lost = [1]
local-io-error = 3
timeout = "0s"
`+hooksVolume+"[volume.hooks]\npeer-lost = \"\\\"\\\"\"\n"))
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	var got [][2]any
	for _, f := range e.Faults {
		got = append(got, [2]any{f.Line, f.Key})
	}
	want := [][2]any{{5, "hooks.split-brian"}, {6, "hooks.split-brain"}, {7, "hooks.out-of-sync"}, {8, "hooks.peer-lost"}, {9, "hooks.local-io-error"}, {10, "hooks.timeout"},
		{17, "volume.hooks.peer-lost"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v\nwant %v\n%v", got, want, e)
	}
}
