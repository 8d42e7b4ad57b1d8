package main

import (
	"os"
	"testing"
)

func TestForget(t *testing.T) {
	for set, want := range map[string]string{
		tracing:                                "",
		"panicnil=0," + tracing:                "panicnil=0",
		"schedtrace=1000":                      "schedtrace=1000", // somebody else's
		"panicnil=0," + tracing + ",gctrace=1": "panicnil=0,gctrace=1",
	} {
		t.Setenv("GODEBUG", "panicnil=0")
		forget(set)
		if got, there := os.LookupEnv("GODEBUG"); got != want || there != (want != "") {
			t.Errorf("forget(%q) leaves %q", set, got)
		}
	}
}
