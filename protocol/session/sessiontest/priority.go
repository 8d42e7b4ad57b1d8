package sessiontest

import (
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// echo answers every n bytes with 16, as a peer acknowledges a write.
func echo(st *session.Stream, n int) {
	buf := make([]byte, n)
	for {
		if _, err := io.ReadFull(st, buf); err != nil {
			return
		}
		if _, err := st.Write(buf[:16]); err != nil {
			return
		}
	}
}

// roundTrips measures count requests of n bytes with answers of 16.
func roundTrips(t testing.TB, st *session.Stream, n, count int) []time.Duration {
	buf := make([]byte, n)
	took := make([]time.Duration, count)
	for i := range took {
		start := time.Now()
		if _, err := st.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(st, buf[:16]); err != nil {
			t.Fatal(err)
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took
}

// testBulkDoesNotDelayWrites: on a line of 100 Mbit/s that four bulk streams
// keep full, a write of 64 KiB takes little longer than alone, while the same on
// a ninth bulk stream has to share. In simulated time.
func (w With) testBulkDoesNotDelayWrites(t *testing.T) {
	if w.SimulateLine == nil {
		t.Skip("no simulation of a slow line for this transport")
	}
	synctest.Test(t, func(t *testing.T) {
		_, beta, a, _ := w.simPairOver(t, w.SimulateLine(t, 100e6/8, 5*time.Millisecond))
		const size = 64 << 10 // 5.2 ms of the line
		write, remoteWrite := openPair(t, a, beta, protocol.StreamWrite)
		same, remoteSame := openPair(t, a, beta, protocol.StreamBulk)
		go echo(remoteWrite, size)
		go echo(remoteSame, size)
		alone := roundTrips(t, write, size, 50)[25]

		const streams = 4
		start := time.Now()
		sent := make(chan int64, streams)
		var bulk [streams]*session.Stream
		for i := range bulk {
			st, remote := openPair(t, a, beta, protocol.StreamBulk)
			bulk[i] = st
			go io.Copy(io.Discard, remote)
			go func() {
				buf, total := make([]byte, 1<<20), int64(0)
				for {
					n, err := st.Write(buf)
					if total += int64(n); err != nil {
						sent <- total
						return
					}
				}
			}()
		}
		beside := roundTrips(t, write, size, 50)[25]
		shared := roundTrips(t, same, size, 20)[10]
		elapsed, total := time.Since(start), int64(0)
		for _, st := range bulk {
			st.Abort()
			total += next(t, sent, "end of bulk")
		}
		t.Logf("median alone %v, beside bulk %v, as one more bulk stream %v; bulk %.1f MB/s of 12.5",
			alone, beside, shared, float64(total)/1e6/elapsed.Seconds())
		if beside > 3*alone || shared < 2*beside {
			t.Errorf("median %v beside bulk, %v alone, %v as bulk", beside, alone, shared)
		}
	})
}

// processCPU returns the CPU time that this process, both ends, has used.
func processCPU() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkEcho is one replicated 4 KiB write at a time, without a disk.
func (w With) BenchmarkEcho(b *testing.B) {
	_, beta, a, _ := w.startPair(b, nil)
	st, remote := openPair(b, a, beta, protocol.StreamWrite)
	go echo(remote, 4096)
	roundTrips(b, st, 4096, 100)
	b.SetBytes(4096)
	b.ReportAllocs()
	b.ResetTimer()
	cpu := processCPU()
	took := roundTrips(b, st, 4096, b.N)
	b.ReportMetric(float64((processCPU()-cpu).Microseconds())/float64(b.N), "cpu-us/op")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
}

// BenchmarkBulk is a resync without disks: 1 MiB writes one way.
func (w With) BenchmarkBulk(b *testing.B) {
	_, beta, a, _ := w.startPair(b, nil)
	st, remote := openPair(b, a, beta, protocol.StreamBulk)
	received := make(chan int64)
	go func() {
		n, _ := io.CopyBuffer(io.Discard, struct{ io.Reader }{remote}, make([]byte, 256<<10))
		received <- n
	}()
	buf := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	b.ResetTimer()
	cpu := processCPU()
	for range b.N {
		if _, err := st.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	st.Close()
	if n := next(b, received, "end of the data"); n != int64(b.N)<<20 {
		b.Fatalf("%d bytes of %d", n, int64(b.N)<<20)
	}
	b.ReportMetric(float64((processCPU()-cpu).Microseconds())/float64(b.N), "cpu-us/op")
}
