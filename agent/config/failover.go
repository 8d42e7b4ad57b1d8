package config

import (
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/qrbd/qrbd/agent/arbiter"
	"github.com/qrbd/qrbd/agent/failover"
	"github.com/qrbd/qrbd/agent/hook"
)

// stay as fail_back leaves the role where it is.
const stay = "stay"

// decodeFailover reads a volume's table failover; nil: there is none.
func decodeFailover(parent *section) (*failover.Settings, *arbiter.Settings) {
	v, ok := parent.take("failover")
	if !ok {
		return nil, nil
	}
	keys, ok := v.(map[string]any)
	if !ok {
		parent.fault("failover", "must be a table: [volume.failover]")
		return nil, nil
	}
	s := &section{doc: parent.doc, path: parent.path + ".failover", keys: keys, e: parent.e}
	f := &failover.Settings{
		Enabled:       readBool(s, "enabled", true),
		Arbiter:       read(s, "arbiter", failover.ArbiterQuorum.String(), failover.ParseArbiter),
		Preferred:     readList(s, "preferred"),
		Delay:         readDuration(s, "delay", failover.DefaultDelay),
		FailBack:      read(s, "fail_back", stay, parseFailBack),
		NoQuorumStop:  readDuration(s, "no_quorum_stop", failover.DefaultNoQuorumStop),
		StartTimeout:  readDuration(s, "start_timeout", failover.DefaultStartTimeout),
		StopTimeout:   readDuration(s, "stop_timeout", failover.DefaultStopTimeout),
		CheckTimeout:  readDuration(s, "check_timeout", failover.DefaultCheckTimeout),
		CheckEvery:    readDuration(s, "check_every", failover.DefaultCheckEvery),
		StartAttempts: readCount(s, "start_attempts", failover.DefaultStartAttempts),
		GiveUpFor:     readDuration(s, "give_up_for", failover.DefaultGiveUpFor),
		Unit:          read(s, "unit", "", parseUnit),
		Attach:        readBool(s, "attach", false),
		Device:        read(s, "device", "", parsePath),
		Method:        read(s, "attach_method", "", parseAttachMethod),
	}
	for key, into := range map[string]*hook.Command{"start": &f.Start, "stop": &f.Stop, "check": &f.Check} {
		if _, given := s.keys[key]; given {
			*into, _ = readCommand(s, key)
		}
		s.known = append(s.known, key)
	}
	etcd := decodeEtcd(s)
	slices.Sort(s.known)
	checkFailover(s, f)
	switch {
	case f.Arbiter == failover.ArbiterEtcd && etcd == nil:
		s.fault("arbiter", "\"etcd\" needs a table [volume.failover.etcd] with endpoints")
	case f.Arbiter != failover.ArbiterEtcd && etcd != nil:
		s.fault("etcd", "says nothing without arbiter = \"etcd\"")
		etcd = nil
	}
	s.done()
	return f, etcd
}

// EtcdName is the name of the vote in etcd among a volume's peers.
const EtcdName = "etcd"

// DefaultEtcdPrefix is that of the keys in etcd.
const DefaultEtcdPrefix = "/qrbd"

// decodeEtcd reads the table etcd; nil: there is none.
func decodeEtcd(parent *section) *arbiter.Settings {
	v, ok := parent.take("etcd")
	if !ok {
		return nil
	}
	keys, ok := v.(map[string]any)
	if !ok {
		parent.fault("etcd", "must be a table: [volume.failover.etcd]")
		return nil
	}
	s := &section{doc: parent.doc, path: parent.path + ".etcd", keys: keys, e: parent.e}
	e := &arbiter.Settings{
		Endpoints: readList(s, "endpoints"),
		Prefix:    read(s, "prefix", DefaultEtcdPrefix, parsePath),
		CA:        read(s, "ca", "", parsePath),
		Cert:      read(s, "certificate", "", parsePath),
		Key:       read(s, "key", "", parsePath),
		Username:  read(s, "username", "", parseName),
		Password:  read(s, "password_file", "", parsePath),
	}
	scheme := ""
	for i, text := range e.Endpoints {
		u, err := url.Parse(text)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || u.Path != "":
			s.fault("endpoints", "entry %d: %q is not an endpoint like \"https://10.0.0.9:2379\"", i+1, text)
		case scheme != "" && u.Scheme != scheme:
			s.fault("endpoints", "entry %d: all endpoints are either http or https", i+1)
		default:
			scheme = u.Scheme
		}
	}
	switch {
	case len(e.Endpoints) == 0:
		s.fault("endpoints", "is missing: the addresses of the etcd cluster, [\"https://10.0.0.9:2379\"]")
	case scheme == "http" && (e.CA != "" || e.Cert != ""):
		s.fault("endpoints", "are http, and ca and certificate are for https")
	case (e.Cert == "") != (e.Key == ""):
		s.fault("certificate", "goes with key")
	case (e.Username == "") != (e.Password == ""):
		s.fault("username", "goes with password_file")
	}
	s.done()
	return e
}

// checkFailover looks at what keys say together.
func checkFailover(s *section, f *failover.Settings) {
	given := func(key string) bool { _, ok := s.keys[key]; return ok }
	if f.Unit != "" {
		for _, key := range []string{"start", "stop", "check", "device", "attach_method"} {
			if given(key) {
				s.fault(key, "is for commands, and the unit %s is started through systemd: leave one of the two out", f.Unit)
			}
		}
	}
	switch {
	case f.Unit != "":
	case given("start") && !given("stop"):
		s.fault("start", "without stop: what is started must be stopped before the role is given up")
	case !given("start") && (given("stop") || given("check")):
		s.fault("start", "is missing: stop and check are for what it starts")
	}
	for key, c := range map[string]hook.Command{"start": f.Start, "stop": f.Stop, "check": f.Check} {
		if len(c) == 0 || !f.Enabled {
			continue
		}
		if err := failover.Executable(c[0]); err != nil {
			s.fault(key, "%v: it is needed when this node takes over, so it has to be there now", err)
		}
	}
	if !f.Attach && (f.Device != "" || f.Method != "") {
		s.fault("attach", "must be true for device and attach_method to say anything")
	}
	for i, n := range f.Preferred {
		if slices.Contains(f.Preferred[:i], n) {
			s.fault("preferred", "%q is there twice", n)
		}
	}
}

// failovers checks each volume's failover against its nodes and its quorum.
func (k *checker) failovers() {
	for i := range k.c.Volumes {
		v := &k.c.Volumes[i]
		f := v.Failover
		if f == nil {
			continue
		}
		fault := func(key, format string, args ...any) {
			path := fmt.Sprintf("volume[%d].failover", i)
			line := k.c.lines[path+"."+key]
			if line == 0 {
				line = k.c.lines[path]
			}
			k.e.add(line, shown(path+"."+key), format, args...)
		}
		for _, n := range f.Preferred {
			switch {
			case n != k.c.Node.Name && !v.hasPeer(n):
				fault("preferred", "%q is neither this node nor a peer of the volume", n)
			case slices.Contains(v.witnesses, n):
				fault("preferred", "%q is a witness, and can never be primary", n)
			}
		}
		if v.Witness {
			fault("enabled", "this node is a witness of the volume and never takes it over: take the section out here")
		}
		if f.Enabled || f.Arbiter == failover.ArbiterEtcd {
			k.arbitrated(v, fault)
		}
	}
}

// arbitrated: with the quorum as arbiter there must be one that can be had by a part of
// the nodes.
func (k *checker) arbitrated(v *Volume, fault func(key, format string, args ...any)) {
	switch nodes := 1 + len(v.Peers); {
	case v.Etcd != nil && k.c.Node.Name == EtcdName, v.Etcd != nil && slices.ContainsFunc(k.c.Peers, func(p Peer) bool { return p.Name == EtcdName }):
		fault("arbiter", "a node is named %q, which is the name of the vote in etcd: give it another", EtcdName)
	case v.Quorum.Off() && v.Etcd != nil:
		fault("arbiter", "etcd holds one vote of a quorum: write quorum = \"majority\" in [[volume]] on every node")
	case v.Etcd != nil && len(v.witnesses) > 1:
		fault("arbiter", "etcd is a witness itself: take the others out, or write arbiter = \"quorum\"")
	case v.Quorum.Off():
		fault("arbiter", "needs a quorum, without which both sides of a cut would take over: write quorum = \"majority\" in [[volume]] on every node, with three nodes or a witness")
	case nodes < 3:
		fault("arbiter", "two nodes have no majority when one is lost: add a witness (a node with backing = \"none\"), a third node, or a vote in etcd")
	}
}

func readBool(s *section, key string, def bool) bool {
	v, ok := s.take(key)
	if !ok {
		return def
	}
	b, ok := v.(bool)
	if !ok {
		s.fault(key, "must be true or false, not %v", kindOf(v))
		return def
	}
	return b
}

// readCount takes key as a number of at least one.
func readCount(s *section, key string, def int) int {
	v, ok := s.take(key)
	if !ok {
		return def
	}
	n, ok := v.(int64)
	if !ok || n < 1 || n > 100 {
		s.fault(key, "must be a number from 1 to 100, not %v", kindOf(v))
		return def
	}
	return int(n)
}

func parseFailBack(text string) (time.Duration, error) {
	if text == stay {
		return 0, nil
	}
	d, err := parseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%w; or \"stay\"", err)
	}
	return d, nil
}

func parseAttachMethod(text string) (string, error) {
	if text != "nbd" && text != "fuse" {
		return "", fmt.Errorf("%q is not nbd or fuse", text)
	}
	return text, nil
}

func parseUnit(text string) (string, error) {
	for _, suffix := range []string{".service", ".target", ".mount"} {
		if len(text) > len(suffix) && text[len(text)-len(suffix):] == suffix && !slices.ContainsFunc([]rune(text), func(r rune) bool { return r <= ' ' || r == '/' }) && text[0] != '-' {
			return text, nil
		}
	}
	return "", fmt.Errorf("%q is not the name of a service, target or mount of systemd, like \"crm.target\"", text)
}
