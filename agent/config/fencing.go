package config

import (
	"fmt"

	"github.com/qrbd/qrbd/agent/hook"
)

// Fencing says what must be certain of a peer that is out of reach.
type Fencing uint8

// The values of fencing.
const (
	FencingDontCare    Fencing = iota // nothing: an operator vouches for its death
	FencingResource                   // before a promotion, that it cannot take over; requests go on meanwhile
	FencingWithStonith                // also before a primary that has lost it answers a request
)

// String returns the word in the configuration.
func (f Fencing) String() string {
	switch f {
	case FencingResource:
		return "resource-only"
	case FencingWithStonith:
		return "resource-and-stonith"
	case FencingDontCare:
	}
	return "dont-care"
}

func parseFencing(s string) (Fencing, error) {
	for _, f := range []Fencing{FencingDontCare, FencingResource, FencingWithStonith} {
		if s == f.String() {
			return f, nil
		}
	}
	return 0, fmt.Errorf("%q: write \"dont-care\" (an operator vouches for peers that cannot be reached), \"resource-only\" (the hook fence-peer does, before a promotion) "+
		"or \"resource-and-stonith\" (and a primary that has lost a peer answers nothing before)", s)
}

// fencing checks each volume's.
func (k *checker) fencing() {
	for i := range k.c.Volumes {
		v := &k.c.Volumes[i]
		path := fmt.Sprintf("volume[%d].fencing", i)
		switch {
		case v.Fencing == FencingDontCare:
		case !v.Quorum.Off():
			k.fault(path, "with a quorum a peer that is out of reach cannot take over, and no hook is asked: take fencing away, or quorum")
		case !v.Hooks.Has(hook.FencePeer):
			k.fault(path, "%q needs the hook fence-peer, which sees to it that the peer cannot take over: [volume.hooks] fence-peer = [\"/usr/local/sbin/fence\"]", v.Fencing)
		}
	}
}

// CheckHooks returns an *Error with every volume whose fence-peer hook cannot be run on
// this host. It is no part of Load: commands that only look must work without it.
func (c *Config) CheckHooks() error {
	e := &Error{File: c.File}
	for i := range c.Volumes {
		v := &c.Volumes[i]
		if v.Fencing == FencingDontCare {
			continue
		}
		if err := v.Hooks.Commands[hook.FencePeer].Executable(); err != nil {
			path := fmt.Sprintf("volume[%d].fencing", i)
			e.add(c.lines[path], shown(path), "the hook fence-peer of volume %s cannot be run: %v", v.Name, err)
		}
	}
	return e.orNil()
}
