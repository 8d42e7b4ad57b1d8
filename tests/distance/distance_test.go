package main

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestTable prints the results of a real run; the printed table is reviewed text.
func TestTable(t *testing.T) {
	res, err := loadResults([]string{"testdata/run.json"})
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := res.write(&got); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/run.txt"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the table is\n%s\nnot %s (UPDATE=1 writes it)", got.Bytes(), golden)
	}
}

// TestVerdicts has a column on each side of every limit.
func TestVerdicts(t *testing.T) {
	clean, lossy := condition{RTTms: 10}, condition{10, 1}
	res := &result{Cells: []cell{
		{Column: "qrbd-tcp", Depth1ms: 1},
		{condition: clean, Column: "qrbd-tcp", Depth1ms: 12, Depth32: 99, BulkMBs: 100},
		{condition: clean, Column: "drbd", Depth1ms: 10.2, Depth32: 100, BulkMBs: 100},
		{condition: lossy, Column: "qrbd-tcp", Depth1ms: 14, Depth32: 100, BulkMBs: 50},
		{condition: lossy, Column: "drbd", Depth1ms: 14, Depth32: 100, BulkMBs: 10.1},
		{condition: lossy, Column: "drbd-bbr", Depth1ms: 14, Depth32: 100, BulkMBs: 49},
	}}
	var answers []string
	for _, v := range res.verdicts() {
		answers = append(answers, strings.Fields(v)[0])
	}
	if want := []string{"yes", "no", "yes", "no", "yes"}; !slices.Equal(answers, want) {
		t.Errorf("verdicts %v, want %v:\n%s", answers, want, strings.Join(res.verdicts(), "\n"))
	}
}

// TestRounds takes the median, and leaves out what failed.
func TestRounds(t *testing.T) {
	at := condition{RTTms: 1}
	res := &result{Cells: []cell{
		{condition: at, Column: "drbd", BulkMBs: 3}, {condition: at, Column: "drbd", BulkMBs: 1},
		{condition: at, Column: "drbd", BulkMBs: 2}, {condition: at, Column: "drbd", Failed: "no link"},
	}}
	if got := res.median(at, "drbd", bulk); got != 2 {
		t.Errorf("median %v, want 2", got)
	}
	if got := res.failure(at, "drbd"); got != "no link" {
		t.Errorf("failure %q", got)
	}
}

func TestConditions(t *testing.T) {
	o, err := parseOptions([]string{"-rtt", "0,10", "-loss", "1,0"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []condition{{0, 0}, {10, 0}, {10, 1}}; !slices.Equal(o.Conditions, want) {
		t.Errorf("conditions %v, want %v: without loss first", o.Conditions, want)
	}
	var told []string
	for _, k := range columnKinds {
		if k.tells(condition{10, 0}, o.longest()) {
			told = append(told, k.name)
		}
	}
	if want := "qrbd-quic qrbd-tcp qrbd-bbr drbd qrbd-quic-a qrbd-bbr-a drbd-a"; strings.Join(told, " ") != want {
		t.Errorf("at 10 ms without loss: %v, want %s", told, want)
	}
	for _, args := range [][]string{{"-rtt", "-1"}, {"-loss", "x"}, {"-column", "drbd9"}, {"-rounds", "0"}} {
		if _, err := parseOptions(args); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
}

func TestParseFio(t *testing.T) {
	list, err := parseFio([]byte("nbd: connected\n" + `{"jobs": [{"jobname": "bulk", "error": 0, "write": {"total_ios": 4, "iops": 2, "bw_bytes": 2097152}}]}`))
	if err != nil || len(list) != 1 || list[0].Write.BwBytes != 2<<20 {
		t.Errorf("%+v, %v", list, err)
	}
	for _, out := range []string{"", "{}", `{"jobs": [{"jobname": "bulk", "error": 5, "write": {"total_ios": 4}}]}`, `{"jobs": [{"jobname": "bulk"}]}`} {
		if _, err := parseFio([]byte(out)); !errors.Is(err, errNoOutput) {
			t.Errorf("%q: %v, want %v", out, err, errNoOutput)
		}
	}
	args := strings.Join(fioArgs([]string{"--filename=x"}, works, time.Second), " ")
	if strings.Count(args, "--stonewall") != len(works) || strings.Index(args, "--filename=x") > strings.Index(args, "--name=") {
		t.Errorf("fio's arguments: %s", args)
	}
}

func TestResource(t *testing.T) {
	k, _ := kindByName("drbd-bbr")
	text := k.resource()
	for _, want := range []string{"protocol C", "on alpha { address 10.9.1.1:", "on beta { address 10.9.1.2:", "device " + k.device() + " "} {
		if !strings.Contains(text, want) {
			t.Errorf("DRBD's configuration lacks %q:\n%s", want, text)
		}
	}
}
