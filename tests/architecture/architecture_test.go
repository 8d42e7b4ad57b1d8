package architecture

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// TestImports holds every Go file of the module against the rules.
func TestImports(t *testing.T) {
	files := parseModule(t)
	seen := map[string]bool{}
	for _, f := range files {
		seen[f.pkg] = true
		for _, v := range violations(f) {
			t.Error(v)
		}
	}
	// A rule about a package that was moved away would hold for ever.
	for _, name := range pure {
		if !seen[name] {
			t.Errorf("pure package %s has no Go file under %s", name, root)
		}
	}
	if !seen["tests/architecture"] {
		t.Errorf("the walk missed this very package: it looks in the wrong place")
	}
}

// TestRulesBite shows each rule a file that breaks it.
func TestRulesBite(t *testing.T) {
	tests := []struct {
		name string
		pkg  string
		file string // "x_test.go" marks a test file
		src  string
		want string // part of the one violation; "" for none
	}{
		{"allowed edge", "volume", "x.go", `import _ "github.com/qrbd/qrbd/replica"`, ""},
		{"import upwards", "replica", "x.go", `import _ "github.com/qrbd/qrbd/volume"`, "allowed are [resync"},
		{"import upwards in a test", "replica", "x_test.go", `import _ "github.com/qrbd/qrbd/volume"`, "allowed are [resync"},
		{"volume and the NBD server", "volume", "x.go", `import _ "github.com/qrbd/qrbd/blockdev/nbd"`, "volume imports"},
		{"volume and the transport", "volume", "x.go", `import _ "github.com/qrbd/qrbd/protocol/quicnet"`, "volume imports"},
		{"a test and what is there for tests", "volume", "x_test.go", `import _ "github.com/qrbd/qrbd/blockdev/fault"`, ""},
		{"what is there for tests ships", "volume", "x.go", `import _ "github.com/qrbd/qrbd/blockdev/fault"`, "volume imports"},
		{"NBD server and protocol", "blockdev/nbd", "x.go", `import _ "github.com/qrbd/qrbd/protocol"`, "allowed are [blockdev]"},
		{"a package of tests", "agent", "x.go", `import _ "github.com/qrbd/qrbd/tests/sim"`, "nothing imports tests"},
		{"tests import anything", "tests/e2e", "x.go", `import _ "github.com/qrbd/qrbd/volume"`, ""},
		{"own package from its external test", "bitmap", "x_test.go", `import _ "github.com/qrbd/qrbd/bitmap"`, ""},
		{"unknown package", "util", "x.go", ``, "not in the table"},
		{"quic-go at its owner", "protocol/quicnet", "x.go", `import _ "github.com/quic-go/quic-go/logging"`, ""},
		{"quic-go elsewhere", "agent", "x.go", `import _ "github.com/quic-go/quic-go"`, "only [protocol/quicnet] may"},
		{"quic-go in tests", "tests/bench", "x.go", `import _ "github.com/quic-go/quic-go"`, "only [protocol/quicnet] may"},
		{"a module with a longer name", "agent", "x.go", `import _ "github.com/quic-go/quic-gopher"`, ""},
		{"pure and os", "protocol", "x.go", `import _ "os"`, "the package is pure"},
		{"pure and sync/atomic", "bitmap", "x.go", `import _ "sync/atomic"`, "the package is pure"},
		{"pure and context", "resync", "x.go", `import _ "context"`, "the package is pure"},
		{"pure and log/slog", "replica", "x.go", `import _ "log/slog"`, "the package is pure"},
		{"a test of a pure package reads files", "replica", "x_test.go", `import _ "os"`, ""},
		{"pure lengths of time", "resync", "x.go", "import \"time\"\nconst d = 3 * time.Second\nvar e time.Duration", ""},
		{"pure and the clock", "resync", "x.go", "import \"time\"\nfunc f() { _ = time.Now() }", "time.Now in pure package"},
		{"pure and a point in time", "replica", "x.go", "import \"time\"\nvar t time.Time", "time.Time in pure package"},
		{"pure and a hidden clock", "resync", "x.go", `import clock "time"`, "renames package time"},
		{"pure and a goroutine", "bitmap", "x.go", "func f() { go f() }", "goroutine in pure package"},
		{"pure and a channel", "bitmap", "x.go", "var c chan int", "channel in pure package"},
		{"volume may use a clock", "volume", "x.go", "import \"time\"\nfunc f() { _ = time.Now(); go f() }", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, tt.file, "package x\n"+tt.src, 0)
			if err != nil {
				t.Fatal(err)
			}
			got := violations(source{pkg: tt.pkg, test: strings.HasSuffix(tt.file, "_test.go"), set: set, ast: file})
			switch {
			case tt.want == "" && len(got) != 0:
				t.Errorf("refused: %q", got)
			case tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)):
				t.Errorf("violations %q, want one that says %q", got, tt.want)
			}
		})
	}
}

// TestEdgesPointDown finds a cycle in the table itself.
func TestEdgesPointDown(t *testing.T) {
	var visit func(pkg string, path []string)
	visit = func(pkg string, path []string) {
		if slices.Contains(path, pkg) {
			t.Fatalf("the table allows the cycle %s -> %s", strings.Join(path, " -> "), pkg)
		}
		for _, next := range edges[pkg] {
			if _, known := edges[next]; !known {
				t.Errorf("%s may import %s, which is not in the table", pkg, next)
			}
			visit(next, append(slices.Clone(path), pkg))
		}
	}
	for pkg := range edges {
		visit(pkg, nil)
	}
}

// parseModule parses every Go file of the module, whatever its build tags.
func parseModule(t *testing.T) []source {
	t.Helper()
	var files []source
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		pkg, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		files = append(files, source{pkg: filepath.ToSlash(pkg), test: strings.HasSuffix(path, "_test.go"), set: set, ast: file})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("%s is not the module: %v", root, err)
	}
	return files
}
