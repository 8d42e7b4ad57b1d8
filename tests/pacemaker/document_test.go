package pacemaker

import (
	"encoding/xml"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestDocument: crmsh and pcs make the same configuration of the two blocks of
// docs/PACEMAKER.md, Pacemaker accepts it, and the resource agent passes ocf-tester, on a
// machine without a cluster.
func TestDocument(t *testing.T) {
	need(t)
	for tool, pkg := range map[string]string{"pcs": "pcs", "xmllint": "libxml2-utils"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (apt install %s)", tool, pkg)
		}
	}
	t.Parallel()
	s := newMachines(t, "witness")
	alpha := s.machines[0]
	s.on(alpha, "qrbd create crm")
	s.on(s.machines[1], "qrbd create crm")
	s.on(s.machines[2], "qrbd create crm")
	s.on(alpha, "qrbd wait crm --for connected --timeout 20s; qrbd promote crm --force; qrbd demote crm")
	if out := s.on(alpha, "OCF_ROOT=/usr/lib/ocf ocf-tester -n crm-volume -o volume=crm /usr/lib/ocf/resource.d/qrbd/volume"); !strings.Contains(out, "passed all tests") {
		t.Errorf("ocf-tester: %s", out)
	}

	crmsh := configuration(t, s.on(alpha, "cd /root; cibadmin --empty >crm.xml; CIB_file=/root/crm.xml crm -F configure load update crm.cib >&2; crm_verify --xml-file crm.xml >&2; cat crm.xml"))
	script := strings.NewReplacer("pcs cluster cib crm.xml\n", "", "pcs cluster cib-push crm.xml\n", "").Replace(s.block("witness pcs"))
	pcs := configuration(t, s.on(alpha, "cd /root; cibadmin --empty >crm.xml; (set -e\n"+script+") >&2; crm_verify --xml-file crm.xml >&2; cat crm.xml"))
	for _, line := range crmsh {
		if !slices.Contains(pcs, line) {
			t.Errorf("crmsh has, and pcs has not: %s", line)
		}
	}
	for _, line := range pcs {
		if !slices.Contains(crmsh, line) && !strings.Contains(line, "/operations/op ") { // it writes down agents' defaults
			t.Errorf("pcs has, and crmsh has not: %s", line)
		}
	}
	if len(crmsh) < 50 {
		t.Errorf("only %d settings were found: %q", len(crmsh), crmsh)
	}
}

// element is a part of a cluster's configuration.
type element struct {
	XMLName xml.Name
	Attrs   []xml.Attr `xml:",any,attr"`
	Inner   []element  `xml:",any"`
}

// configuration is what a CIB says, a line each, without what only tells the tools apart:
// ids of what nobody names, and who wrote it.
func configuration(t *testing.T, text string) []string {
	t.Helper()
	start := strings.Index(text, "<cib ")
	if start < 0 {
		t.Fatalf("no CIB: %s", text)
	}
	var cib element
	if err := xml.Unmarshal([]byte(text[start:]), &cib); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	var lines []string
	var walk func(path string, e element)
	walk = func(path string, e element) {
		name := e.XMLName.Local
		named := slices.Contains([]string{"primitive", "clone", "group"}, name)
		label := name
		var attrs []string
		for _, a := range e.Attrs {
			switch {
			case a.Name.Local == "id" && !named:
			case a.Name.Local == "id":
				label += "=" + a.Value
			case name == "rsc_order" && a.Name.Local+a.Value == "kindMandatory", name == "rsc_colocation" && a.Name.Local+a.Value == "rsc-roleStarted": // the defaults
			default:
				attrs = append(attrs, a.Name.Local+"="+a.Value)
			}
		}
		slices.Sort(attrs)
		here := path + "/" + label
		if len(attrs) > 0 && name != "cib" || named {
			lines = append(lines, fmt.Sprint(here, " ", attrs))
		}
		if name == "op" || name == "rsc_location" { // what is below belongs to just this one
			here += fmt.Sprint(attrs)
		}
		for _, in := range e.Inner {
			walk(here, in)
		}
	}
	walk("", cib)
	return lines
}
