package attach

import "github.com/qrbd/qrbd/blockdev/nbd/lasting"

// Info is an attached volume as it is shown.
type Info struct {
	Record
	State   string       `json:"state"` // connected, waiting, dead, attached; gone: its helper was killed or the host restarted
	Serving *HelperState `json:"serving,omitempty"`
	Use     Use          `json:"use"`
}

// List describes what is attached, by volume. Records that cannot be read are the error;
// the rest is returned with it.
func List(state string) ([]Info, error) {
	records, err := loadAll(state)
	all := []Info{}
	for _, r := range records {
		all = append(all, describe(state, r))
	}
	return all, err
}

// States besides those of package lasting.
const (
	Gone     = "gone"     // the device is no more
	Attached = "attached" // by the kernel's client, which does not tell more
)

func describe(state string, r Record) Info {
	i := Info{Record: r, State: Gone, Use: Use{Mounts: []string{}, Holders: []string{}, Openers: []string{}}}
	if !r.Live() {
		return i
	}
	if r.Method == MethodNBD {
		i.State, i.Use = Attached, useOf(r)
		var sv Service
		if err := ReadJSON(ServicePath(state, r.Volume), &sv); err == nil && sv.Token == r.Token && sv.State == Revoked {
			i.State = lasting.Dead
		}
		return i
	}
	var s HelperState
	if err := ReadJSON(helperPath(state, r.Volume), &s); err == nil {
		i.Serving, i.State = &s, s.State
	} else {
		i.State = "starting"
	}
	if r.Device != "" {
		i.Use = useOf(r)
	}
	return i
}

// useOf shows what can be found out; Detach and the agent insist on all of it.
func useOf(r Record) Use {
	u, err := InUse(r.Device)
	if err != nil {
		u.Exclusive = true
	}
	return u
}
