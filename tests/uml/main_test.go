package uml

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// guestEnv tells a test binary that it runs inside a machine.
const guestEnv = "QRBD_UML_GUEST"

// guest marks a test that runs inside a machine, where inside starts it.
func guest(t *testing.T) {
	t.Helper()
	if os.Getenv(guestEnv) == "" {
		t.Skip("runs inside a machine: another test starts it there")
	}
}

// inside runs one guest test of this package in m.
func inside(t *testing.T, m *Machine, test string, limit time.Duration) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if m.Dir == "" {
		m.Dir = t.TempDir()
	}
	m.Env = append(m.Env, guestEnv+"=1")
	m.Command = []string{self, "-test.run", "^" + test + "$", "-test.v", "-test.timeout", limit.String()}
	var out bytes.Buffer
	code, err := m.Run(within(t, limit+30*time.Second), &out)
	text := strings.ReplaceAll(out.String(), "\r", "")
	switch {
	case err != nil || code != 0:
		t.Fatalf("%s in %s: exit %d, %v\n%s", test, m.Name, code, err, text)
	case !strings.Contains(text, "--- PASS: "+test):
		t.Fatalf("%s did not run in %s\n%s", test, m.Name, text)
	}
	t.Log(text)
	if err := os.WriteFile(filepath.Join(m.Dir, "output"), out.Bytes(), 0o600); err != nil {
		t.Error(err)
	}
}
