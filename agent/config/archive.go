package config

import "fmt"

// Archive says what a volume archives before a sync overwrites it.
type Archive uint8

// What there is to choose.
const (
	ArchiveSplitBrain Archive = iota // a side that was given up
	ArchiveAlways                    // also writes that were under way, if there is room
	ArchiveOff                       // nothing
)

// DefaultArchiveLimit is how much an archive grows after the sync that it was begun
// for has ended, bytes.
const DefaultArchiveLimit = "1GiB"

// String returns the word as it stands in a configuration.
func (a Archive) String() string {
	switch a {
	case ArchiveSplitBrain:
		return "split-brain"
	case ArchiveAlways:
		return "always"
	case ArchiveOff:
		return "off"
	}
	return fmt.Sprintf("archive(%d)", uint8(a))
}

func parseArchive(text string) (Archive, error) {
	for _, a := range []Archive{ArchiveSplitBrain, ArchiveAlways, ArchiveOff} {
		if a.String() == text {
			return a, nil
		}
	}
	return 0, fmt.Errorf("%q is not split-brain, always or off", text)
}
