package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// machineInfo describes where a result was measured.
type machineInfo struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	MemGiB int    `json:"mem_gib"`
}

// describeMachine reads /proc; what it cannot read stays empty.
func describeMachine() machineInfo {
	m := machineInfo{Cores: runtime.NumCPU()}
	if cpuinfo, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for lines := bufio.NewScanner(bytes.NewReader(cpuinfo)); lines.Scan() && m.CPU == ""; {
			if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.MemGiB = int((uint64(si.Totalram)*uint64(si.Unit) + 1<<29) >> 30)
	}
	return m
}

// programVersions returns the first line that each program prints about itself.
func programVersions(qrbd string) map[string]string {
	versions := map[string]string{}
	for _, argv := range [][]string{{"fio", "--version"}, {"nbdkit", "--version"}, {"qemu-storage-daemon", "--version"}, {qrbd, "--version"}} {
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if err != nil {
			continue // a program that is not there is not measured either
		}
		first, _, _ := strings.Cut(string(out), "\n")
		name := argv[0]
		if name == qrbd {
			name = "qrbd"
		}
		versions[name] = first
	}
	return versions
}

// cpuUse is what all CPUs together have spent since boot.
type cpuUse struct {
	busy   time.Duration // user, nice, system, interrupts
	stolen time.Duration // by the hypervisor
}

// readCPUUse reads the first line of /proc/stat.
func readCPUUse() (cpuUse, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuUse{}, fmt.Errorf("CPU use: %w", err)
	}
	return parseCPUUse(stat)
}

// parseCPUUse takes the content of /proc/stat. A tick is 10 ms (USER_HZ is 100 on every Linux port that Go runs on).
func parseCPUUse(stat []byte) (cpuUse, error) {
	var user, nice, system, idle, iowait, irq, softirq, steal int64
	_, err := fmt.Sscanf(string(stat), "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal)
	if err != nil {
		return cpuUse{}, fmt.Errorf("CPU use: %.60q: %w", stat, err)
	}
	const tick = 10 * time.Millisecond
	return cpuUse{busy: time.Duration(user+nice+system+irq+softirq) * tick, stolen: time.Duration(steal) * tick}, nil
}

// ownCPU returns the CPU time of the harness itself.
func ownCPU() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
