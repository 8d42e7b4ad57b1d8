package architecture

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strconv"
	"strings"
)

const module = "github.com/qrbd/qrbd"

// edges lists, for every package of the module outside tests/, the packages of
// the module that it may import. A package that is not listed is refused: adding
// one is a decision about the shape, made here.
var edges = map[string][]string{
	"cmd/qrbd": {"agent", "agent/config", "agent/control", "agent/doctor", "agent/failover", "attach", "volume", "volume/meta", "volume/archive", "replica", "resync", "bitmap",
		"protocol", "protocol/session", "blockdev", "blockdev/nbd"},
	"agent":             {"agent/arbiter", "agent/config", "agent/control", "agent/failover", "agent/hook", "agent/metrics", "agent/reach", "attach", "volume", "volume/meta", "volume/archive", "protocol", "protocol/compress", "protocol/session", "protocol/quicnet", "protocol/tcpnet", "blockdev", "blockdev/nbd"},
	"attach":            {"attach/fusefile", "blockdev/nbd", "blockdev/nbd/client", "blockdev/nbd/kernel", "blockdev/nbd/lasting"},
	"attach/fusefile":   {},
	"agent/control":     {"agent/failover", "volume", "protocol", "blockdev/nbd"},
	"agent/doctor":      {"agent/config", "agent/control", "agent/reach", "volume", "protocol", "protocol/session"},
	"agent/arbiter":     {"protocol"},
	"agent/failover":    {"agent/hook", "protocol"},
	"agent/hook":        {},
	"agent/metrics":     {"agent/control", "volume", "protocol"},
	"agent/reach":       {"protocol/session"},
	"agent/config":      {"agent/arbiter", "agent/failover", "agent/hook", "protocol", "protocol/session", "blockdev"},
	"volume":            {"volume/archive", "volume/meta", "replica", "resync", "bitmap", "protocol", "protocol/compress", "blockdev"},
	"volume/archive":    {"protocol", "blockdev"},
	"volume/meta":       {"bitmap", "protocol", "blockdev"},
	"replica":           {"resync", "bitmap", "protocol"},
	"resync":            {"bitmap", "protocol"},
	"bitmap":            {},
	"protocol":          {},
	"protocol/compress": {"protocol"},
	"protocol/session":  {"protocol"},
	"protocol/quicnet":  {"protocol", "protocol/session"},
	"protocol/tcpnet":   {"protocol", "protocol/session"},
	"blockdev":          {},
	"blockdev/nbd":      {"blockdev"},

	"blockdev/nbd/kernel": {},

	"agent/reach/reachtest":          {},
	"blockdev/blockdevtest":          {"blockdev"},
	"blockdev/crash":                 {"blockdev"},
	"blockdev/fault":                 {"blockdev"},
	"blockdev/nbd/client":            {"blockdev", "blockdev/nbd"},
	"blockdev/nbd/lasting":           {"blockdev/nbd"},
	"blockdev/nbd/testca":            {},
	"protocol/compress/compresstest": {"protocol/compress"},
	"protocol/session/sessiontest":   {"protocol", "protocol/session", "protocol/quicnet", "protocol/tcpnet"},
}

// support lists packages that any test file may import, beside its edges.
var support = []string{"agent/reach/reachtest", "blockdev/blockdevtest", "blockdev/crash", "blockdev/fault", "blockdev/nbd/client", "blockdev/nbd/testca", "protocol/compress/compresstest", "protocol/session/sessiontest"}

// owners lists modules that only some packages may import.
var owners = map[string][]string{
	"github.com/quic-go/quic-go":     {"protocol/quicnet"},
	"github.com/pojntfx/go-nbd":      {"blockdev/nbd"},
	"github.com/urfave/cli/v2":       {"cmd/qrbd"},
	"github.com/pelletier/go-toml":   {"agent"},
	"github.com/coreos/go-systemd":   {"agent", "cmd/qrbd"},
	"github.com/mdlayher/genetlink":  {"blockdev/nbd/kernel"},
	"github.com/mdlayher/netlink":    {"blockdev/nbd/kernel"},
	"github.com/prometheus":          {"agent/metrics", "tests/watch"},
	"github.com/klauspost/compress":  {"protocol/compress"},
	"go.etcd.io/etcd":                {"agent/arbiter"},
	"go.uber.org/zap":                {"agent/arbiter"},
	"github.com/hanwen/go-fuse":      {"attach/fusefile"},
	"github.com/jackc/pgx":           {"tests/stack"},
	"github.com/go-sql-driver/mysql": {"tests/stack"},
}

// pure names the packages that decide without doing.
var pure = []string{"replica", "resync", "bitmap", "protocol"}

// pureImports is everything that a pure package may import beside packages of
// the module: values in, values out. No os, net, io, sync, context, log.
var pureImports = []string{
	"bytes", "cmp", "encoding/binary", "encoding/hex", "errors", "fmt", "hash", "iter", "maps",
	"math", "math/bits", "slices", "sort", "strconv", "strings", "time", "unicode/utf8",
	"github.com/cespare/xxhash/v2",
}

// pureTime is what a pure package may use of package time: lengths of time, which
// it is given, and never the clock.
var pureTime = []string{"Duration", "Nanosecond", "Microsecond", "Millisecond", "Second", "Minute", "Hour"}

// source is one parsed Go file.
type source struct {
	pkg  string // package directory relative to the module, "replica"
	test bool   // a _test.go file
	set  *token.FileSet
	ast  *ast.File
}

func (s source) at(n ast.Node) string { return s.set.Position(n.Pos()).String() }

// violations returns what one file does against the rules, in the order of the
// file. Test files keep to the edges and the owners too; only purity is not asked
// of them.
func violations(s source) []string {
	var out []string
	inTests := under(s.pkg, "tests")
	if _, known := edges[s.pkg]; !known && !inTests {
		return []string{fmt.Sprintf("%s: package %s is not in the table of allowed imports", s.at(s.ast.Name), s.pkg)}
	}
	isPure := slices.Contains(pure, s.pkg) && !s.test
	for _, spec := range s.ast.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			out = append(out, fmt.Sprintf("%s: import path %s", s.at(spec), spec.Path.Value))
			continue
		}
		if why := refused(s, path, inTests, isPure); why != "" {
			out = append(out, fmt.Sprintf("%s: %s imports %s: %s", s.at(spec), s.pkg, path, why))
		}
		if isPure && path == "time" && spec.Name != nil {
			out = append(out, fmt.Sprintf("%s: %s renames package time, which hides its uses", s.at(spec), s.pkg))
		}
	}
	if isPure {
		out = append(out, impurities(s)...)
	}
	return out
}

// refused says why a file must not import path, or "".
func refused(s source, path string, inTests, isPure bool) string {
	pkg := s.pkg
	if inside, ok := strings.CutPrefix(path, module+"/"); ok {
		switch {
		case inTests:
			return ""
		case under(inside, "tests"):
			return "nothing imports tests"
		case s.test && slices.Contains(support, inside):
			return ""
		case inside != pkg && !slices.Contains(edges[pkg], inside):
			return fmt.Sprintf("allowed are %v", edges[pkg])
		}
		return ""
	}
	for owned, by := range owners {
		if under(path, owned) && !slices.ContainsFunc(by, func(p string) bool { return under(pkg, p) }) {
			return fmt.Sprintf("only %v may", by)
		}
	}
	if isPure && !slices.Contains(pureImports, path) {
		return "the package is pure"
	}
	return ""
}

// under reports whether path is root or lies below it.
func under(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

// impurities returns the goroutines, channels and uses of the clock in a file.
func impurities(s source) []string {
	var out []string
	report := func(n ast.Node, what string) {
		out = append(out, fmt.Sprintf("%s: %s in pure package %s", s.at(n), what, s.pkg))
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			report(n, "goroutine")
		case *ast.ChanType:
			report(n, "channel")
		case *ast.SelectStmt:
			report(n, "select")
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && !slices.Contains(pureTime, n.Sel.Name) {
				report(n, "time."+n.Sel.Name)
			}
		}
		return true
	})
	return out
}
