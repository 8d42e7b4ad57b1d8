package config

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// socketPathMax is what sockaddr_un holds: 108 bytes with the closing zero.
const socketPathMax = 107

var nameRE = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,64}$`)

// CheckName says what is wrong with the name of a node or a volume.
func CheckName(s string) error {
	switch {
	case !nameRE.MatchString(s):
		return fmt.Errorf("%q is not a name: use 1 to %d of a-z, A-Z, 0-9, dot, underscore and dash", s, protocol.NameMax)
	case strings.Trim(s, ".") == "" || s[0] == '-':
		return fmt.Errorf("%q is not a name: it must not be all dots or begin with a dash", s)
	}
	return nil
}

func parseName(s string) (string, error) { return s, CheckName(s) }

// sizeUnits, longest suffix first so that "KiB" is not read as "B".
var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1},
}

// ParseSize reads a positive whole number of B, KiB, MiB, GiB or TiB.
func ParseSize(s string) (int64, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		switch {
		case errors.Is(err, strconv.ErrRange) || err == nil && n > (1<<63-1)/u.bytes:
			return 0, fmt.Errorf("%q is more than 8 EiB", s)
		case err != nil:
			return 0, fmt.Errorf("%q is not a size: write a whole number and a unit, like \"10GiB\"", s)
		case n <= 0:
			return 0, fmt.Errorf("%q is not more than zero", s)
		}
		return n * u.bytes, nil
	}
	return 0, fmt.Errorf("%q has no unit: write B, KiB, MiB, GiB or TiB after the number", s)
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration: write one like \"3s\", \"500ms\" or \"1m\"", s)
	}
	if d <= 0 {
		return 0, fmt.Errorf("%q is not more than zero", s)
	}
	return d, nil
}

func parseMode(s string) (protocol.Mode, error) {
	switch s {
	case "A":
		return protocol.ModeA, nil
	case "B":
		return protocol.ModeB, nil
	case "C":
		return protocol.ModeC, nil
	}
	return 0, fmt.Errorf("%q is not a protocol: write \"A\", \"B\" or \"C\"", s)
}

func parsePath(s string) (string, error) {
	if !filepath.IsAbs(s) {
		return "", fmt.Errorf("%q is not an absolute path", s)
	}
	if strings.ContainsRune(s, 0) {
		return "", fmt.Errorf("%q holds a zero byte", s)
	}
	return filepath.Clean(s), nil
}

func parseSocketPath(s string) (string, error) {
	p, err := parsePath(s)
	if err == nil && len(p) > socketPathMax {
		return "", fmt.Errorf("the path has %d bytes; a socket's has at most %d", len(p), socketPathMax)
	}
	return p, err
}

// splitHostPort checks the port; the host may be anything.
func splitHostPort(s string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(s)
	if err != nil {
		return "", "", fmt.Errorf("%q is not an address: write host:port", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("%q: the port must be a number from 1 to 65535", s)
	}
	return host, port, nil
}

// parseListen: an empty host means every address of the node.
func parseListen(s string) (string, error) {
	host, _, err := splitHostPort(s)
	if err != nil {
		return "", err
	}
	if host != "" && net.ParseIP(stripZone(host)) == nil && host != "localhost" {
		return "", fmt.Errorf("%q: the host must be an IP address of this node", s)
	}
	return s, nil
}

// parseAddress: where a peer is; an IP address or a name.
func parseAddress(s string) (string, error) {
	host, _, err := splitHostPort(s)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(stripZone(host)); ip != nil {
		if ip.IsUnspecified() {
			return "", fmt.Errorf("%q: %s is not an address that can be reached", s, host)
		}
		return s, nil
	}
	if !hostRE.MatchString(host) {
		return "", fmt.Errorf("%q: %q is neither an IP address nor a host name", s, host)
	}
	return s, nil
}

var hostRE = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?$`)

func parseMetrics(s string) (string, error) { return parseListen(s) }

// parseExport reads "unix:/path" or "tcp:host:port".
func parseExport(s string) (Export, error) {
	network, rest, _ := strings.Cut(s, ":")
	switch network {
	case "unix":
		p, err := parseSocketPath(rest)
		return Export{Network: "unix", Address: p}, err
	case "tcp":
		host, port, err := splitHostPort(rest)
		if err != nil {
			return Export{}, err
		}
		if host == "localhost" {
			host = "127.0.0.1"
		}
		if net.ParseIP(stripZone(host)) == nil && host != "" {
			return Export{}, fmt.Errorf("%q: the host must be an IP address of this node", s)
		}
		return Export{Network: "tcp", Address: net.JoinHostPort(host, port)}, nil
	}
	return Export{}, fmt.Errorf("%q is not an export: write \"unix:/path\" or \"tcp:127.0.0.1:port\"", s)
}

func stripZone(host string) string {
	h, _, _ := strings.Cut(host, "%")
	return h
}

var congestionRE = regexp.MustCompile(`^[a-z0-9_]{1,15}$`)

// parseCongestion checks what the name of a congestion control looks like; whether the kernel
// has it is found out at the start.
func parseCongestion(s string) (string, error) {
	if !congestionRE.MatchString(s) {
		return "", fmt.Errorf("%q is not the name of a congestion control: sysctl net.ipv4.tcp_available_congestion_control lists this host's", s)
	}
	return s, nil
}

// parseKey checks a public key, typing errors included.
func parseKey(s string) (string, error) {
	_, err := session.ParseKey(s)
	return s, err
}
