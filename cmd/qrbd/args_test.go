package main

import (
	"slices"
	"strings"
	"testing"
)

func TestReorder(t *testing.T) {
	valued := valueFlags(newApp(&terminal{}))
	cases := []struct{ in, want string }{
		{"qrbd", "qrbd"},
		{"qrbd status", "qrbd status"},
		{"qrbd status crm", "qrbd status -- crm"},
		{"qrbd status crm --json", "qrbd status --json -- crm"},
		{"qrbd status --json crm", "qrbd status --json -- crm"},
		{"qrbd --json status crm", "qrbd status --json -- crm"},
		{"qrbd --config F status crm", "qrbd status --config F -- crm"},
		{"qrbd status crm --config F", "qrbd status --config F -- crm"},
		{"qrbd status crm --config=F --json", "qrbd status --config=F --json -- crm"},
		{"qrbd status crm -config F", "qrbd status -config F -- crm"},
		{"qrbd switchover crm --to beta", "qrbd switchover --to beta -- crm"},
		{"qrbd switchover --to beta crm --force", "qrbd switchover --to beta --force -- crm"},
		{"qrbd connect crm beta --discard-my-data", "qrbd connect --discard-my-data -- crm beta"},
		{"qrbd connect --discard-my-data crm beta", "qrbd connect --discard-my-data -- crm beta"},
		{"qrbd wait crm --for primary --timeout 3s", "qrbd wait --for primary --timeout 3s -- crm"},
		{"qrbd events --since 3 --json", "qrbd events --since 3 --json"},
		{"qrbd status -- --json", "qrbd status -- --json"},
		{"qrbd status --json -- --config crm", "qrbd status --json -- --config crm"},
		{"qrbd status -- crm --json", "qrbd status -- crm --json"},
		{"qrbd status crm --config", "qrbd status --config"},
		{"qrbd promote crm - --force", "qrbd promote --force -- crm -"},
		{"qrbd --help", "qrbd --help"},
		{"qrbd --version", "qrbd --version"},
		{"qrbd status --help crm", "qrbd status --help -- crm"},
		{"qrbd status --unknown crm", "qrbd status --unknown -- crm"},
	}
	for _, c := range cases {
		in := strings.Fields(c.in)
		before := slices.Clone(in)
		if got := strings.Join(reorder(in, valued), " "); got != c.want {
			t.Errorf("%s\n got  %s\n want %s", c.in, got, c.want)
		}
		if !slices.Equal(in, before) {
			t.Errorf("%s: the arguments were changed", c.in)
		}
	}
}

// Every flag of every command, before and after the arguments, gives the same.
func TestEveryFlagOnBothSides(t *testing.T) {
	app := newApp(&terminal{})
	valued := valueFlags(app)
	for _, c := range app.Commands {
		for _, f := range c.Flags {
			flag := []string{"--" + f.Names()[0]}
			if valued[f.Names()[0]] {
				flag = append(flag, "value")
			}
			before := reorder(slices.Concat([]string{"qrbd", c.Name}, flag, []string{"crm", "beta"}), valued)
			after := reorder(slices.Concat([]string{"qrbd", c.Name, "crm", "beta"}, flag), valued)
			between := reorder(slices.Concat([]string{"qrbd", c.Name, "crm"}, flag, []string{"beta"}), valued)
			if !slices.Equal(before, after) || !slices.Equal(before, between) {
				t.Errorf("%s %v: %v, %v, %v", c.Name, flag, before, after, between)
			}
			if want := slices.Concat([]string{"qrbd", c.Name}, flag, []string{"--", "crm", "beta"}); !slices.Equal(before, want) {
				t.Errorf("%s %v: %v", c.Name, flag, before)
			}
		}
	}
}
