package pacemaker

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// OCF's codes.
const (
	ocfSuccess        = 0
	ocfErrGeneric     = 1
	ocfErrInstalled   = 5
	ocfErrConfigured  = 6
	ocfNotRunning     = 7
	ocfRunningMaster  = 8
	ocfFailedPromoted = 9
)

// TestAgent: what the resource agent answers, on machines without a cluster.
func TestAgent(t *testing.T) {
	t.Parallel()
	s := newMachines(t, "witness")
	s.each("create on", func(m *machine) error {
		_, err := m.run(t.Context(), "qrbd", "create", volume)
		return err
	})
	alpha, beta, gamma := s.machines[0], s.machines[1], s.machines[2]
	s.on(alpha, "qrbd wait crm --for connected --timeout 20s; qrbd promote crm --force; qrbd demote crm")

	s.agent(alpha, ocfErrConfigured, "start", "OCF_RESKEY_volume=")
	s.agent(alpha, ocfErrInstalled, "start", "OCF_RESKEY_volume=other")
	s.agent(alpha, ocfErrInstalled, "validate-all", "OCF_RESKEY_config=/nowhere")
	s.agent(alpha, ocfNotRunning, "monitor", "OCF_RESKEY_config=/nowhere")
	s.agent(gamma, ocfErrInstalled, "start") // a witness
	s.agent(alpha, 3, "migrate_to")

	s.agent(alpha, ocfNotRunning, "monitor")
	s.agent(alpha, ocfSuccess, "stop")
	s.agent(alpha, ocfSuccess, "start")
	s.agent(alpha, ocfSuccess, "monitor")
	s.agent(alpha, ocfSuccess, "notify", "OCF_RESKEY_CRM_meta_notify_type=post", "OCF_RESKEY_CRM_meta_notify_operation=start")
	s.agent(alpha, ocfSuccess, "promote")
	s.agent(alpha, ocfRunningMaster, "monitor")
	s.on(alpha, "test -b /dev/qrbd/crm")

	t.Log("beta is refused while alpha is primary")
	s.agent(beta, ocfSuccess, "start")
	if out := s.agent(beta, ocfErrGeneric, "promote"); !strings.Contains(out, "alpha") {
		t.Errorf("the refusal does not name the primary: %s", out)
	}
	s.agent(beta, ocfSuccess, "monitor")

	t.Log("a device that is in use stays")
	s.on(alpha, "mkfs.ext4 -q /dev/qrbd/crm; mount /dev/qrbd/crm /srv/crm")
	for _, action := range []string{"demote", "stop"} {
		if out := s.agent(alpha, ocfErrGeneric, action); !strings.Contains(out, "/srv/crm") {
			t.Errorf("%s of a device in use: %s", action, out)
		}
	}
	s.agent(alpha, ocfRunningMaster, "monitor")

	t.Log("a primary without its quorum fails after a while")
	s.must(s.wires.cut(alpha.index, beta.index, replication))
	s.must(s.wires.cut(alpha.index, gamma.index, replication))
	patient := []string{"OCF_RESKEY_CRM_meta_interval=10000", "OCF_RESKEY_no_quorum_wait=3"}
	s.until("the primary is helpless", stepMax, func() (string, bool) {
		out, err := s.try(alpha, "monitor", patient...)
		return out, exitCode(err) == ocfFailedPromoted
	})
	s.must(s.wires.heal(alpha.index, beta.index, replication))
	s.must(s.wires.heal(alpha.index, gamma.index, replication))
	s.on(alpha, "qrbd wait crm --for connected --timeout 20s")
	s.agent(alpha, ocfRunningMaster, "monitor", patient...)

	t.Log("an agent that is killed, and comes back, is no failure")
	s.on(alpha, "kill -9 $(pgrep -f '^qrbd agent')")
	s.agent(alpha, ocfRunningMaster, "monitor", "OCF_RESKEY_CRM_meta_interval=10000", "OCF_RESKEY_CRM_meta_timeout=60000")
	s.on(alpha, "echo 4711 >/srv/crm/order; sync; umount /srv/crm")

	t.Log("a role that was taken away is")
	s.on(alpha, "qrbd detach crm; qrbd demote crm")
	s.agent(alpha, ocfFailedPromoted, "monitor")
	s.agent(alpha, ocfSuccess, "demote")
	s.agent(alpha, ocfSuccess, "monitor")

	t.Log("without an agent nothing is running, and stop is done")
	s.agent(alpha, ocfSuccess, "promote")
	s.on(alpha, "touch /run/no-agent; kill -9 $(pgrep -f '^qrbd agent')")
	s.agent(alpha, ocfFailedPromoted, "monitor")
	s.agent(alpha, ocfSuccess, "stop")
	s.agent(alpha, ocfNotRunning, "monitor")

	t.Log("the hook knows nothing without a cluster")
	_, err := beta.run(t.Context(), "env", "QRBD_EVENT=fence-peer", "QRBD_VOLUME=crm", "QRBD_PEER=alpha", "QRBD_ROLE=secondary", "/usr/lib/qrbd/qrbd-fence-pacemaker")
	if code := exitCode(err); code != 1 {
		t.Errorf("the hook without a cluster: exit code %d, %v", code, err)
	}
}

// agent has the resource agent do something, and wants a code.
func (s *site) agent(m *machine, want int, action string, env ...string) string {
	s.t.Helper()
	out, err := s.try(m, action, env...)
	if got := exitCode(err); got != want {
		s.t.Fatalf("%s %s %q: %d, want %d\n%s", m.name, action, env, got, want, out)
	}
	return out
}

// try has the resource agent do something.
func (s *site) try(m *machine, action string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), stepMax)
	defer cancel()
	args := append([]string{"env", "OCF_ROOT=/usr/lib/ocf", "OCF_RESOURCE_INSTANCE=crm-volume", "OCF_RESKEY_volume=crm", "OCF_RESKEY_CRM_meta_timeout=10000", "__OCF_ACTION=" + action}, env...)
	return m.run(ctx, append(args, "/usr/lib/ocf/resource.d/qrbd/volume", action)...)
}

// exitCode is -1 for a program that did not run to its end.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}
