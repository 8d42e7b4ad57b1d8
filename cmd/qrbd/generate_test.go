package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/agent/config"
)

// TestGenerate: every command and flag is in the manual page and in the completion, and
// the example is a valid configuration.
func TestGenerate(t *testing.T) {
	b := newBench(t)
	if code, _, errs := b.run("generate {dir}/parts"); code != exitDone {
		t.Fatalf("exit %d, %s", code, errs)
	}
	text := map[string]string{}
	for _, name := range []string{"qrbd.8", "qrbd.bash", "example.toml"} {
		data, err := os.ReadFile(filepath.Join(b.dir, "parts", name))
		if err != nil {
			t.Fatal(err)
		}
		text[name] = string(data)
	}
	for _, c := range shownCommands(newApp(&terminal{})) {
		if !strings.Contains(text["qrbd.8"], "\n.SS qrbd "+roff(c.Name)) || !strings.Contains(text["qrbd.bash"], "\t"+c.Name+") flags=") {
			t.Errorf("%s is missing", c.Name)
		}
		for _, f := range c.Flags {
			if form := "--" + f.Names()[0]; !strings.Contains(text["qrbd.8"], "\\fB"+roff(form)) || !strings.Contains(text["qrbd.bash"], form) {
				t.Errorf("%s %s is missing", c.Name, form)
			}
		}
	}
	if strings.Contains(text["qrbd.8"], "qrbd generate") {
		t.Error("a hidden command is shown")
	}
	if _, err := config.Parse("example.toml", []byte(text["example.toml"])); err != nil {
		t.Error(err)
	}
}
