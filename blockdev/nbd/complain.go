package nbd

import (
	"net"
	"sync"
	"time"
)

const (
	complainAgain = time.Minute // about the same host
	complainMax   = 64          // hosts remembered
)

// complaints bounds how often hosts are complained about.
type complaints struct {
	mu sync.Mutex
	// Guarded by mu.
	last map[string]time.Time
	held int // not logged since the last one that was
}

// due says whether to log now, and how many were not since the last time.
func (l *complaints) due(host string, now time.Time) (held int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = map[string]time.Time{}
	}
	for k, t := range l.last {
		if now.Sub(t) >= complainAgain {
			delete(l.last, k)
		}
	}
	if _, recent := l.last[host]; recent || len(l.last) >= complainMax {
		l.held++
		return 0, false
	}
	l.last[host] = now
	held, l.held = l.held, 0
	return held, true
}

// complain logs a client that was refused, once a minute for each host.
func (s *Server) complain(nc net.Conn, what string, attrs ...any) {
	addr := nc.RemoteAddr().String()
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	held, ok := s.complaints.due(host, time.Now())
	if !ok {
		return
	}
	attrs = append([]any{"client", addr}, attrs...)
	if held > 0 {
		attrs = append(attrs, "others", held)
	}
	s.opt.Log.Warn(what, attrs...)
}
