package agent

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/qrbd/qrbd/agent/metrics"
)

// startMetrics serves metrics and health if the configuration says where.
func (a *Agent) startMetrics() (*metrics.Server, error) {
	address := a.cfg.Node.Metrics
	if address == "" {
		return nil, nil
	}
	s, err := metrics.Listen(address, a, a.log)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w: another program listens there: end it, or give node.metrics in %s another port", err, a.cfg.File)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%w: this host does not have the address of node.metrics in %s", err, a.cfg.File)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%w: give node.metrics in %s a port above 1023", err, a.cfg.File)
	case err != nil:
		return nil, err
	}
	a.log.Info("metrics and health are served", "address", s.Addr().String())
	if !metrics.Loopback(s.Addr()) {
		a.log.Warn("metrics are served without authentication to whoever can reach the address: prefer a loopback address, or a firewall", "address", s.Addr().String())
	}
	return s, nil
}
