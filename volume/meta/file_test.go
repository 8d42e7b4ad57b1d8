package meta

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

func testSuper(size int64) Super {
	return Super{
		Term: 0x3132333435363738, Voted: 0x4142434445464748, Overruled: 0x5152535455565758, Floor: 0x6162636465666768,
		Volume: protocol.VolumeID{1, 2, 3}, Size: size, Node: "alpha", Name: "crm",
		Disk: protocol.UpToDate, Primary: true, Shaken: true, Flags: 0x80000001,
		Current: 0x1122334455667788, History: []protocol.Generation{9, 8, 7}, Seq: 1 << 40, Lost: 0x2122232425262728, Archive: 0x3132333435363738,
		Peers: []PeerSlot{
			{Name: "beta", Bitmap: 0x99, Disk: protocol.Outdated, Flags: 5, First: 0x0102030405060708, Last: 0x1112131415161718},
			{Name: "gamma", Disk: protocol.UpToDate},
		},
	}
}

func create(t *testing.T, s Super) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "crm.meta")
	if err := Create(path, s, false); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string) (*File, *State) {
	t.Helper()
	st, err := OpenStorage(path)
	if err != nil {
		t.Fatal(err)
	}
	f, state, err := Open(st)
	if err != nil {
		st.Close()
		t.Fatal(err)
	}
	return f, state
}

// pageOf returns page content with the given bits set.
func pageOf(bits ...int) []byte {
	b := make([]byte, bitmap.PageBytes)
	for _, i := range bits {
		b[i/8] |= 1 << (i % 8)
	}
	return b
}

func active(s *State) (extents []int64) {
	s.Activity.Active(func(e int64) { extents = append(extents, e) })
	return extents
}

func TestCreateAndOpen(t *testing.T) {
	want := testSuper(10<<30 + 512)
	path := create(t, want)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, error %v", info.Mode(), err)
	}
	f, s := open(t, path)
	if !reflect.DeepEqual(s.Super, want) {
		t.Errorf("super\n%+v, want\n%+v", s.Super, want)
	}
	if len(s.Bitmaps) != 2 || s.Bitmaps[0].Count() != 0 || s.Activity.Count() != 0 || s.Damaged != nil || s.Torn != nil {
		t.Errorf("a new file is not empty: %+v", s)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestCreateRefusesToOverwrite(t *testing.T) {
	path := create(t, testSuper(1<<30))
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Create(path, testSuper(2<<30), false); !errors.Is(err, ErrExists) {
		t.Fatalf("second Create: %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the refused Create changed the file")
	}
	f, _ := open(t, path)
	if err := Create(path, testSuper(2<<30), true); !errors.Is(err, ErrBusy) {
		t.Errorf("Create with force on an open file: %v", err)
	}
	f.Close()
	if err := Create(path, testSuper(2<<30), true); err != nil {
		t.Fatalf("Create with force: %v", err)
	}
	f, s := open(t, path)
	defer f.Close()
	if s.Super.Size != 2<<30 {
		t.Errorf("size %d after Create with force", s.Super.Size)
	}
	if err := Create(filepath.Join(t.TempDir(), "no", "dir"), testSuper(1), false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Create in a directory that is not there: %v", err)
	}
}

func TestLock(t *testing.T) {
	path := create(t, testSuper(1<<30))
	f, _ := open(t, path)
	if _, err := OpenStorage(path); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), path) {
		t.Errorf("second open: %v", err)
	}
	f.Close()
	f, _ = open(t, path)
	f.Close()
}

func TestCommit(t *testing.T) {
	const size = 200 << 30 // two activity pages
	super := testSuper(size)
	path := create(t, super)
	f, _ := open(t, path)
	super.Primary, super.Clean, super.Seq = false, true, 77
	super.Peers = append(super.Peers, PeerSlot{Name: "delta"})
	for round := range 3 { // each page goes into both slots and back
		b := &Batch{
			Super:    &super,
			Activity: []bitmap.ActivityPage{{Index: 0, Data: pageOf(round, 31743)}, {Index: 1, Data: pageOf(5)}},
			Bitmap: []BitmapPage{
				{Slot: 0, Page: 0, Data: pageOf(round)},
				{Slot: 2, Page: 1023, Data: pageOf(1)},
				{Slot: 2, Page: 1024, Data: pageOf(2, 3)},
			},
		}
		if err := f.Commit(b); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	f, s := open(t, path)
	if !reflect.DeepEqual(s.Super, super) {
		t.Errorf("super\n%+v, want\n%+v", s.Super, super)
	}
	if got, want := active(s), []int64{2, 31743, 31744 + 5}; !reflect.DeepEqual(got, want) {
		t.Errorf("active %v, want %v", got, want)
	}
	if !s.Activity.Durable(2*bitmap.ExtentSize, 1) || s.Activity.Changed() {
		t.Error("a recovered extent is not hot, or something is to be written")
	}
	counts := []int64{s.Bitmaps[0].Count(), s.Bitmaps[1].Count(), s.Bitmaps[2].Count()}
	if !reflect.DeepEqual(counts, []int64{1, 0, 3}) || !s.Bitmaps[0].Test(2) ||
		!s.Bitmaps[2].Test(1023*bitmap.BlocksPerPage+1) || !s.Bitmaps[2].Test(1024*bitmap.BlocksPerPage+3) {
		t.Errorf("bitmaps hold %v blocks", counts)
	}
	if len(s.Bitmaps[0].ChangedPages(nil)) != 0 || s.Damaged != nil || s.Torn != nil {
		t.Errorf("damaged %v, torn %v", s.Damaged, s.Torn)
	}
	f.Close()
}

func TestCommitRefuses(t *testing.T) {
	super := testSuper(1 << 30)
	path := create(t, super)
	f, _ := open(t, path)
	defer f.Close()
	with := func(change func(*Super)) *Super {
		s := testSuper(1 << 30)
		change(&s)
		return &s
	}
	long := strings.Repeat("x", 65)
	tests := map[string]Batch{
		"other size":       {Super: with(func(s *Super) { s.Size++ })},
		"no size":          {Super: with(func(s *Super) { s.Size = 0 })},
		"long name":        {Super: with(func(s *Super) { s.Name = long })},
		"long peer":        {Super: with(func(s *Super) { s.Peers[0].Name = long })},
		"disk state":       {Super: with(func(s *Super) { s.Disk = 99 })},
		"history":          {Super: with(func(s *Super) { s.History = make([]protocol.Generation, 33) })},
		"peers":            {Super: with(func(s *Super) { s.Peers = append(s.Peers, make([]PeerSlot, 14)...) })},
		"peer gone":        {Super: with(func(s *Super) { s.Peers = s.Peers[:1] })},
		"peer moved":       {Super: with(func(s *Super) { s.Peers[0], s.Peers[1] = s.Peers[1], s.Peers[0] })},
		"slot":             {Bitmap: []BitmapPage{{Slot: 2, Data: pageOf()}}},
		"page":             {Bitmap: []BitmapPage{{Page: 9, Data: pageOf()}}},
		"short":            {Bitmap: []BitmapPage{{Data: pageOf()[1:]}}},
		"beyond the end":   {Bitmap: []BitmapPage{{Page: 8, Data: pageOf(bitmap.BlocksPerPage - 1)}}},
		"twice":            {Bitmap: []BitmapPage{{Data: pageOf()}, {Data: pageOf()}}},
		"activity page":    {Activity: []bitmap.ActivityPage{{Index: 1, Data: pageOf()}}},
		"activity twice":   {Activity: []bitmap.ActivityPage{{Data: pageOf()}, {Data: pageOf()}}},
		"activity too far": {Activity: []bitmap.ActivityPage{{Data: pageOf(256)}}},
	}
	before, _ := os.ReadFile(path)
	for name, b := range tests {
		if err := f.Commit(&b); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("a refused batch changed the file")
	}
	good := Batch{Bitmap: []BitmapPage{{Page: 8, Data: pageOf(8191)}}, Activity: []bitmap.ActivityPage{{Data: pageOf(255)}}}
	if err := f.Commit(&good); err != nil {
		t.Errorf("after refused batches: %v", err)
	}
}

func TestCheck(t *testing.T) {
	s := testSuper(1 << 30)
	if err := Check(&s, 1<<30, "crm", "alpha"); err != nil {
		t.Error(err)
	}
	for _, test := range []struct {
		size       int64
		name, node string
		says       []string
	}{
		{2 << 30, "crm", "alpha", []string{"1073741824", "2147483648"}},
		{1 << 30, "erp", "alpha", []string{`"crm"`, `"erp"`}},
		{1 << 30, "crm", "beta", []string{`"alpha"`, `"beta"`}},
	} {
		err := Check(&s, test.size, test.name, test.node)
		if !errors.Is(err, ErrMismatch) {
			t.Errorf("%+v: %v", test, err)
			continue
		}
		for _, word := range test.says {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q does not say %s", err, word)
			}
		}
	}
}
