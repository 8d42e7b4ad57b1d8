package readme

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// site is the hosts of one page.
type site struct {
	t        *testing.T
	hosts    map[string]*host
	sections map[string]string // what init has printed, by host
}

// page is a section of docs/OPERATIONS.md and what its test knows beyond the commands.
type page struct {
	title string
	hosts []string
	size  string // of the volume; "": 10GiB
	// prepare runs on a host before its volume is created.
	prepare map[string]string
	// before brings about what the page begins with.
	before func(s *site)
	// dead is what becomes of a host that dies, besides that.
	dead func(s *site, name string)
	// words does what the text asks for after the block of that number, from 0.
	words func(s *site, after int, out string)
	load  bool // a client writes all the time on alpha
	end   func(s *site)
}

var two = []string{"alpha", "beta"}

var pages = []page{
	{title: "### Failover and failback", hosts: two, end: func(s *site) { s.reads("alpha", 0, "order 4711") }},
	{title: "### Adding a third node", hosts: []string{"alpha", "beta", "gamma"}, load: true,
		words: func(s *site, after int, out string) {
			if after == 0 {
				s.introduced("gamma", out)
				s.knows("gamma", "alpha", "beta")
				s.knows("alpha", "gamma")
				s.knows("beta", "gamma")
			}
		},
		end: func(s *site) {
			for _, name := range []string{"beta", "gamma"} {
				s.says(name, `"disk":"up-to-date"`)
				s.says(name, `"name":"alpha","connection":"connected"`)
			}
		}},
	{title: "### Replacing a dead node", hosts: two, load: true,
		dead: func(s *site, name string) {
			h := s.hosts[name]
			for _, dir := range []string{filepath.Join(h.disk, "var"), filepath.Join(h.disk, "etc", "qrbd")} {
				if err := os.RemoveAll(dir); err != nil {
					s.t.Fatal(err)
				}
			}
			if err := os.Mkdir(filepath.Join(h.disk, "var"), 0o700); err != nil {
				s.t.Fatal(err)
			}
			h.boot()
		},
		words: func(s *site, after int, out string) {
			if after == 0 {
				old := keyOf(s.t, s.sections["beta"])
				s.introduced("beta", out)
				s.hosts["alpha"].run(fmt.Sprintf("sed -i 's/%s/%s/' /etc/qrbd/qrbd.toml", old, keyOf(s.t, out)))
				s.knows("beta", "alpha")
			}
		},
		end: func(s *site) { s.says("beta", `"disk":"up-to-date"`) }},
	{title: "### Replacing a disk", hosts: two, size: "64MiB", load: true,
		prepare: map[string]string{"alpha": badDisk},
		before: func(s *site) {
			s.nbd("alpha", "h.pwrite(bytes(range(256)) * 65536, 16777216); h.flush()") // more than there is room for
			s.until("alpha", `"disk":"failed"`)
			s.hosts["alpha"].run("ln -sfn $good /srv/crm-disk")
		},
		end: func(s *site) {
			s.says("alpha", `"role":"primary","disk":"up-to-date"`)
			s.reads("alpha", 0, "order 4711")
		}},
	{title: "### Giving a node another key", hosts: two,
		words: func(s *site, after int, out string) {
			alpha, beta := s.hosts["alpha"], s.hosts["beta"]
			old := keyOf(s.t, s.sections["alpha"])
			switch after {
			case 0:
				s.sections["new"] = keyOf(s.t, out)
				beta.run(fmt.Sprintf("sed -i '/%s/a keys = [\"%s\"]' /etc/qrbd/qrbd.toml", old, s.sections["new"]))
			case 2:
				alpha.run("pkill -TERM -x qrbd; while pgrep -x qrbd >/dev/null; do sleep 0.05; done")
				alpha.do("qrbd agent\n")
			case 3:
				beta.run(fmt.Sprintf("sed -i '/^keys = /d; s/%s/%s/' /etc/qrbd/qrbd.toml", old, s.sections["new"]))
			}
		},
		end: func(s *site) {
			if key := strings.Fields(s.hosts["alpha"].run("qrbd identity"))[1]; key != s.sections["new"] {
				s.t.Errorf("alpha has the key %s, want %s", key, s.sections["new"])
			}
			s.says("beta", `"name":"alpha","connection":"connected"`)
			s.reads("alpha", 0, "order 4711")
		}},
	{title: "### Making a volume larger, step by step", hosts: two,
		end: func(s *site) {
			s.says("alpha", `"size":21474836480`)
			s.nbd("alpha", `assert h.get_size() == 20 << 30; h.pwrite(b"behind the old end", 20000000000); h.flush()`)
			s.reads("alpha", 0, "order 4711")
		}},
	{title: "## Recovering from a split brain", hosts: two,
		before: func(s *site) {
			ip(s.t, "-n", s.hosts["alpha"].netns, "link", "set", "e0", "down")
			s.hosts["beta"].run("qrbd promote crm --peer-fenced")
			s.nbd("beta", `h.pwrite(b"order 4712", 0); h.flush()`)
			s.nbd("alpha", `h.pwrite(b"order 4713", 0); h.flush()`)
			ip(s.t, "-n", s.hosts["alpha"].netns, "link", "set", "e0", "up")
			s.until("alpha", `"connection":"standalone"`)
			s.until("beta", `"connection":"standalone"`)
		},
		end: func(s *site) {
			s.reads("alpha", 0, "order 4713")
			b := s.hosts["beta"]
			b.run("until test -S /run/qrbd/lost.sock; do sleep 0.05; done")
			if got := b.run(`/usr/bin/python3 -m nbd -u 'nbd+unix:///crm?socket=/run/qrbd/lost.sock' -c 'print(h.pread(10, 0).decode())'`); got != "order 4712\n" {
				s.t.Errorf("the archive reads %q", got)
			}
		}},
}

// TestOperations runs the pages of docs/OPERATIONS.md, side by side.
func TestOperations(t *testing.T) {
	doc, err := os.ReadFile("../../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, section := range regexp.MustCompile(`(?m)^### .*$`).FindAllString(string(doc[strings.Index(string(doc), "\n## Procedures\n"):]), -1) {
		if !slices.ContainsFunc(pages, func(p page) bool { return p.title == section }) {
			t.Errorf("no test runs %q", section)
		}
	}
	need(t, "ip", "unshare", "setsid", "nbdsh", "bash", "pkill", "losetup") // nbdsh itself takes the first python3 that it finds
	qrbd := build(t)
	for n, p := range pages {
		blocks, err := pageBlocks(string(doc), p.title)
		if err != nil {
			t.Error(err)
			continue
		}
		t.Run(strings.TrimLeft(p.title, "# "), func(t *testing.T) {
			t.Parallel()
			p.walk(t, n, qrbd, blocks)
		})
	}
}

func (p *page) walk(t *testing.T, n int, qrbd string, blocks []block) {
	s := newSite(t, n, p.hosts, qrbd)
	s.begin(p)
	if p.load {
		s.hosts["alpha"].run(load)
	}
	if p.before != nil {
		p.before(s)
	}
	for i, b := range blocks {
		if b.dead != "" {
			s.hosts[b.dead].die()
			if p.dead != nil {
				p.dead(s, b.dead)
			}
		}
		if b.back != "" {
			s.hosts[b.back].boot()
		}
		out := ""
		for _, name := range b.hosts {
			if b.kind == "toml" {
				s.hosts[name].configure(b.text)
				continue
			}
			out = s.hosts[name].do(b.text)
			t.Logf("on %s:\n%s%s", name, b.text, out)
		}
		if p.words != nil {
			p.words(s, i, out)
		}
	}
	if p.load {
		if got := s.hosts["alpha"].run("touch /run/enough; wait $load; cat /run/wrote"); !strings.HasPrefix(got, "wrote ") {
			t.Errorf("the client on alpha: %s", got)
		}
	}
	p.end(s)
}

// badDisk makes two disks: one fails when more than 8 MiB of it are used.
const badDisk = `mkdir /srv/small /srv/large
mount -t tmpfs -o size=8m tmpfs /srv/small
mount -t tmpfs -o size=128m tmpfs /srv/large
truncate -s 64M /srv/small/img /srv/large/img
bad=$(losetup --show -f /srv/small/img)
good=$(losetup --show -f /srv/large/img)
ln -s $bad /srv/crm-disk`

// load writes until it is enough; any error ends it, and is missed then.
const load = `/usr/bin/python3 -m nbd -u 'nbd+unix:///crm?socket=/run/qrbd/crm.sock' -c '
import os, time
n = 0
while not os.path.exists("/run/enough"):
    h.pwrite(b"load" * 1024, 1048576 + n % 512 * 4096)
    n += 1
    time.sleep(0.002)
h.flush()
open("/run/wrote", "w").write("wrote %d\n" % n)
' & load=$!`

// begin makes alpha primary and beta in sync with it, with an order on the volume.
func (s *site) begin(p *page) {
	for i, name := range two {
		h := s.hosts[name]
		s.introduced(name, h.run(fmt.Sprintf("qrbd init --name %s --listen 10.0.0.%d:7790", name, i+1)))
	}
	s.knows("alpha", "beta")
	s.knows("beta", "alpha")
	size := p.size
	if size == "" {
		size = "10GiB"
	}
	for _, name := range two {
		h, backing := s.hosts[name], "/var/lib/qrbd/crm.img"
		if prepare := p.prepare[name]; prepare != "" {
			h.run(prepare)
			h.loops = strings.Fields(h.run("echo $bad $good"))
			backing = "/srv/crm-disk"
		}
		h.configure(fmt.Sprintf("[[volume]]\nname    = \"crm\"\nsize    = %q\nbacking = %q\nexport  = \"unix:/run/qrbd/crm.sock\"\n", size, backing))
		h.do("qrbd create crm\nqrbd agent\n")
	}
	s.hosts["alpha"].run("qrbd wait crm --for connected\nqrbd promote crm --force\nqrbd wait crm --for up-to-date")
	s.nbd("alpha", `h.pwrite(b"order 4711", 0); h.flush()`)
}

func (s *site) introduced(name, printed string) {
	s.t.Helper()
	at := strings.Index(printed, "[[peer]]")
	if at < 0 {
		s.t.Fatalf("init printed no peer section:\n%s", printed)
	}
	s.sections[name] = printed[at:]
}

// knows appends the sections of others to a host's configuration.
func (s *site) knows(name string, others ...string) {
	for _, o := range others {
		s.hosts[name].configure(s.sections[o])
	}
}

func keyOf(t *testing.T, section string) string {
	t.Helper()
	m := regexp.MustCompile(`"(qk1\w+)"`).FindStringSubmatch(section)
	if m == nil {
		t.Fatalf("no key in %q", section)
	}
	return m[1]
}

func (s *site) nbd(name, commands string) string {
	s.t.Helper()
	return s.hosts[name].run(fmt.Sprintf("/usr/bin/python3 -m nbd -u 'nbd+unix:///crm?socket=/run/qrbd/crm.sock' -c '%s'", commands))
}

func (s *site) reads(name string, off int64, want string) {
	s.t.Helper()
	if got := s.nbd(name, fmt.Sprintf("print(h.pread(%d, %d).decode())", len(want), off)); got != want+"\n" {
		s.t.Errorf("%s reads %q, want %q", name, got, want)
	}
}

func (s *site) says(name, want string) {
	s.t.Helper()
	if got := s.hosts[name].run("qrbd status crm --json"); !strings.Contains(got, want) {
		s.t.Errorf("%s: %s, want %s", name, got, want)
	}
}

func (s *site) until(name, want string) {
	s.t.Helper()
	s.hosts[name].run(fmt.Sprintf("until qrbd status crm --json | grep -q '%s'; do sleep 0.05; done", want))
}

// newSite boots hosts on one network.
func newSite(t *testing.T, n int, names []string, qrbd string) *site {
	t.Helper()
	s := &site{t: t, hosts: map[string]*host{}, sections: map[string]string{}}
	hub := fmt.Sprintf("qe%dn%dhub", os.Getpid(), n+1)
	newNetns(t, hub)
	ip(t, "-n", hub, "link", "add", "br0", "type", "bridge")
	ip(t, "-n", hub, "link", "set", "br0", "up")
	for i, name := range names {
		h := newHost(t, name, fmt.Sprintf("qe%dn%d%s", os.Getpid(), n+1, name), qrbd)
		ip(t, "link", "add", "e0", "netns", h.netns, "type", "veth", "peer", "name", fmt.Sprintf("e%d", i), "netns", hub)
		ip(t, "-n", hub, "link", "set", fmt.Sprintf("e%d", i), "master", "br0", "up")
		ip(t, "-n", h.netns, "addr", "add", fmt.Sprintf("10.0.0.%d/24", i+1), "dev", "e0")
		ip(t, "-n", h.netns, "link", "set", "e0", "up")
		ip(t, "-n", h.netns, "link", "set", "lo", "up")
		h.boot()
		s.hosts[name] = h
	}
	return s
}

// TestPages keeps a change of the document's form from emptying the pages.
func TestPages(t *testing.T) {
	blocks, err := pageBlocks("\n## A page\n**alpha dies.** Then **on beta**:\n```sh\nls\n```\n**alpha is back.** **On alpha and beta**\n```toml\nx\n```\n## Next\n", "## A page")
	if err != nil || len(blocks) != 2 || blocks[0].dead != "alpha" || blocks[0].text != "ls\n" || blocks[1].back != "alpha" || !slices.Equal(blocks[1].hosts, two) {
		t.Errorf("%+v, %v", blocks, err)
	}
	for _, bad := range []string{"", "\n## A page\n```sh\nls\n```\n", "\n## A page\n**On beta**\n```sh\nls\n", "\n## A page\nno block\n"} {
		if _, err := pageBlocks(bad, "## A page"); err == nil {
			t.Errorf("%q is taken for a page", bad)
		}
	}
}
