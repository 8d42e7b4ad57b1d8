package config

import "fmt"

// OnNoData is what becomes of requests while no copy of the data can be reached.
type OnNoData uint8

// The values of on_no_data.
const (
	IOError   OnNoData = iota // they fail
	SuspendIO                 // they wait for a copy to return
)

// String returns the word in the configuration.
func (o OnNoData) String() string {
	if o == SuspendIO {
		return "suspend-io"
	}
	return "io-error"
}

func parseNoData(s string) (OnNoData, error) {
	for _, o := range []OnNoData{IOError, SuspendIO} {
		if s == o.String() {
			return o, nil
		}
	}
	return 0, fmt.Errorf("%q: write \"io-error\" (requests fail) or \"suspend-io\" (they wait for a copy to return)", s)
}

// OnReadError is what a read error of a primary's own disk leads to.
type OnReadError uint8

// The values of on_read_error.
const (
	Repair OnReadError = iota // a peer is read, and what it has written over the blocks
	Detach                    // the disk counts as failed
)

// String returns the word in the configuration.
func (o OnReadError) String() string {
	if o == Detach {
		return "detach"
	}
	return "repair"
}

func parseReadError(s string) (OnReadError, error) {
	for _, o := range []OnReadError{Repair, Detach} {
		if s == o.String() {
			return o, nil
		}
	}
	return 0, fmt.Errorf("%q: write \"repair\" (read from a peer and written anew) or \"detach\" (the disk counts as failed)", s)
}
