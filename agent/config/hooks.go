package config

import (
	"maps"

	"github.com/qrbd/qrbd/agent/hook"
)

// decodeHooks reads a table of commands by event, as [hooks] and [volume.hooks]
// are. What it does not set is as in base.
func decodeHooks(s *section, base hook.Set) hook.Set {
	out := hook.Set{Commands: maps.Clone(base.Commands), Timeout: readDuration(s, "timeout", base.Timeout)}
	if out.Timeout > hook.TimeoutMax {
		s.fault("timeout", "%s is too long: a peer waits for before-resync-target, at most %s", out.Timeout, hook.TimeoutMax)
	}
	if out.Commands == nil {
		out.Commands = map[hook.Name]hook.Command{}
	}
	for _, n := range hook.Names() {
		key := string(n)
		if _, given := s.keys[key]; !given {
			s.known = append(s.known, key)
			continue
		}
		c, ok := readCommand(s, key)
		switch {
		case !ok:
		case len(c) == 0:
			delete(out.Commands, n)
		default:
			out.Commands[n] = c
		}
	}
	s.done()
	return out
}

// readCommand takes key as a command: a list, or a text that is split into words.
// Empty means none.
func readCommand(s *section, key string) (hook.Command, bool) {
	var c hook.Command
	if text, isText := s.keys[key].(string); isText {
		s.take(key)
		var err error
		if c, err = hook.Split(text); err != nil {
			s.fault(key, "%v", err)
			return nil, false
		}
	} else {
		faults := len(s.e.Faults)
		c = hook.Command(readList(s, key))
		if len(s.e.Faults) > faults {
			return nil, false
		}
	}
	if len(c) > 0 && (c[0] == "" || c[0][0] != '/') {
		s.fault(key, "%q is not an absolute path: no shell and no search path is used", c[0])
		return nil, false
	}
	return c, true
}

// nodeHooks reads the section [hooks], which may be missing.
func nodeHooks(d *document, e *Error) hook.Set {
	if _, given := d.values["hooks"]; !given {
		return hook.Set{}
	}
	s := d.table("hooks", e)
	if s.keys == nil {
		return hook.Set{}
	}
	return decodeHooks(s, hook.Set{})
}

// volumeHooks reads the table hooks of a volume, which overrides [hooks] event by
// event.
func volumeHooks(s *section, base hook.Set) hook.Set {
	v, ok := s.take("hooks")
	if !ok {
		return base
	}
	keys, ok := v.(map[string]any)
	if !ok {
		s.fault("hooks", "must be a table of commands: [volume.hooks] split-brain = [\"/usr/local/bin/tell\"]")
		return base
	}
	return decodeHooks(&section{doc: s.doc, path: s.path + ".hooks", keys: keys, e: s.e}, base)
}
