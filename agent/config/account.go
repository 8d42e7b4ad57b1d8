package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os/user"
	"strconv"
)

// Account is a user or a group of this host. The zero value is none.
type Account struct {
	Name string // as it stands in the file
	ID   int
}

func parseUser(s string) (Account, error) {
	return parseAccount(s, "user", func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
}

func parseGroup(s string) (Account, error) {
	return parseAccount(s, "group", func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
}

// idMax: the next number means "unchanged" to the kernel.
const idMax = 1<<32 - 2

// parseAccount takes a number as it is, and looks a name up.
func parseAccount(s, kind string, lookup func(string) (string, error)) (Account, error) {
	text := s
	if _, err := strconv.ParseUint(s, 10, 64); err != nil {
		if text, err = lookup(s); err != nil {
			var noUser user.UnknownUserError
			var noGroup user.UnknownGroupError
			if errors.As(err, &noUser) || errors.As(err, &noGroup) {
				return Account{}, fmt.Errorf("there is no %s %q in the files of this host: write the number of one that is elsewhere", kind, s)
			}
			return Account{}, fmt.Errorf("%s %q: %w", kind, s, err)
		}
	}
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil || id > idMax {
		return Account{}, fmt.Errorf("%q is not the number of a %s", text, kind)
	}
	return Account{Name: s, ID: int(id)}, nil
}

// ExportAccess says who may use the socket of a volume's export.
type ExportAccess struct {
	Owner, Group Account     // none: the agent's own
	Mode         fs.FileMode // 0600, or 0660 with a group, unless the file says otherwise
}

// parseSocketMode reads the mode of a socket. To connect is to write.
func parseSocketMode(s string) (fs.FileMode, error) {
	n, err := strconv.ParseUint(s, 8, 12)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q is not a mode: write \"0600\" (the owner) or \"0660\" (owner and group)", s)
	case n&0o006 != 0:
		return 0, fmt.Errorf("%q lets every user of this host read and write the volume: name a group with export_group", s)
	case n&^0o660 != 0 || n&0o200 == 0:
		return 0, fmt.Errorf("%q means nothing for a socket: write \"0600\" (the owner) or \"0660\" (owner and group)", s)
	}
	return fs.FileMode(n), nil
}

// decodeExportAccess reads export_owner, export_group and export_mode.
func decodeExportAccess(s *section, e Export) ExportAccess {
	a := ExportAccess{
		Owner: read(s, "export_owner", "", parseUser),
		Group: read(s, "export_group", "", parseGroup),
	}
	mode := "0600"
	if a.Group.Name != "" {
		mode = "0660"
	}
	a.Mode = read(s, "export_mode", mode, parseSocketMode)
	for _, key := range []string{"export_owner", "export_group", "export_mode"} {
		if _, given := s.keys[key]; given && e.Network == "tcp" {
			s.fault(key, "is for unix: exports; who may use a tcp: export is said by export_tls")
		}
	}
	return a
}
