package main

import (
	"strings"
	"testing"
)

func TestArchiveCommand(t *testing.T) {
	b := newBench(t)
	node := &fakeNode{}
	b.agent(node)
	cases := []struct {
		args []string
		code int
		out  []string // parts of the output
		call string
	}{
		{[]string{"archive", "list", "crm"}, 0, []string{"crm  20261122-165644-cdef  following  4.8 MiB kept, file 5 MiB", "given up for beta on 2026-11-22", "rule discard",
			"exact: it can be exported and restored", "exact until 2026-11-22", "(restored); later changes to other blocks show through"}, "archives crm"},
		{[]string{"archive", "list", "crm", "--json"}, 0, []string{`"id":"20261122-165644-cdef"`, `"exact":true`, `"exact_until":"2026-11-22T18:00:00Z"`}, "archives crm"},
		{[]string{"archive", "list"}, 0, []string{"no archives"}, ""},
		{[]string{"archive", "restore", "crm", "id"}, 0, []string{"holds what was given up again", "connect crm --discard-my-data"}, "restore crm id"},
		{[]string{"archive", "remove", "crm", "id"}, 0, []string{"is removed"}, "remove crm id"},
		{[]string{"archive", "export", "crm", "id", "--socket", "unix:/run/x.sock", "--for", "2s"}, 0, []string{"nbd+unix:///crm?socket=/run/x.sock"}, "export crm id {Socket:/run/x.sock ForSeconds:2}"},
		{[]string{"archive", "export", "crm", "id"}, 2, []string{"--socket unix:PATH"}, ""},
		{[]string{"archive", "export", "crm", "id", "--socket", "unix:/x", "--for", "0s"}, 2, []string{"more than zero"}, ""},
		{[]string{"archive", "restore", "crm"}, 2, []string{"say which"}, ""},
		{[]string{"archive", "burn", "crm", "id"}, 2, []string{`there is no "burn"`}, ""},
		{[]string{"archive"}, 2, []string{"argument is missing"}, ""},
	}
	for _, tc := range cases {
		node.calls = nil
		code, out, errs := b.run(strings.Join(tc.args, " ") + " --config {config}")
		if code != tc.code {
			t.Errorf("%v: code %d, %s%s", tc.args, code, out, errs)
		}
		for _, part := range tc.out {
			if !strings.Contains(out+errs, part) {
				t.Errorf("%v: %q is not in\n%s%s", tc.args, part, out, errs)
			}
		}
		if tc.call != "" && (len(node.calls) != 1 || node.calls[0] != tc.call) {
			t.Errorf("%v: calls %q, want %q", tc.args, node.calls, tc.call)
		}
	}
}
