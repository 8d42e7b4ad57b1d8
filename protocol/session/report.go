package session

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

const (
	// reportAgain: a failure that goes on is reported again after so long.
	reportAgain = time.Minute
	// reportGap: failures that alternate are reported at most so often each.
	reportGap = 5 * time.Second
	// reportsMax bounds what is remembered; unknown nodes beyond it are not
	// reported until older entries expire.
	reportsMax = 64
)

// reporter decides which failures are news.
type reporter struct {
	mu sync.Mutex
	// Guarded by mu.
	seen map[reportKey]time.Time
	last map[string]reportKey // by who
}

type reportKey struct {
	who    string // a peer's name, or an unknown node's IP address
	reason Reason
	dialed bool
}

// news says whether the failure is to be reported, and notes that it was.
func (r *reporter) news(k reportKey, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen, r.last = map[reportKey]time.Time{}, map[string]reportKey{}
	}
	when, known := r.seen[k]
	switch age := now.Sub(when); {
	case !known && len(r.seen) >= reportsMax && !r.expire(now):
		return false
	case known && age < reportGap:
		return false
	case known && age < reportAgain && r.last[k.who] == k:
		return false
	}
	r.seen[k], r.last[k.who] = now, k
	return true
}

// expire forgets what is old enough to be reported again anyway, and says
// whether there is room. REQUIRES r.mu.
func (r *reporter) expire(now time.Time) bool {
	for k, when := range r.seen {
		if now.Sub(when) >= reportAgain {
			delete(r.seen, k)
			if r.last[k.who] == k {
				delete(r.last, k.who)
			}
		}
	}
	return len(r.seen) < reportsMax
}

// clear forgets a peer's failures: it is connected.
func (r *reporter) clear(who string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.seen {
		if k.who == who {
			delete(r.seen, k)
		}
	}
	delete(r.last, who)
}

// report logs a failed connection and tells the handler, if it is news.
func (n *Node) report(name, addr string, dialed bool, err error) {
	var closed *CloseError
	reason, detail := classify(err)
	if n.ctx.Err() != nil || errors.As(detail, &closed) && closed.Code == protocol.CodeDuplicate {
		return
	}
	who := name
	if who == "" {
		if who, _, err = net.SplitHostPort(addr); err != nil {
			who = addr
		}
	}
	if !n.reports.news(reportKey{who, reason, dialed}, time.Now()) {
		return
	}
	e := &ConnectError{Reason: reason, Peer: name, Addr: addr, Dialed: dialed, Err: detail}
	n.log.Warn("no session", "peer", name, "address", addr, "dialed", dialed, "reason", reason.String(), "detail", detail.Error())
	n.options.Handler.ConnectFailed(name, e)
}
