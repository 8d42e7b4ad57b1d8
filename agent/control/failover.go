package control

import (
	"context"
	"net/http"

	"github.com/qrbd/qrbd/agent/failover"
)

func (s *Server) failoverRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/volumes/{name}/failover-pause", call(s, s.node.FailoverPause))
	mux.HandleFunc("POST /v1/volumes/{name}/failover-test", s.streamRehearsal)
}

// streamRehearsal tells each part of a rehearsal as it ends, then all of it.
func (s *Server) streamRehearsal(w http.ResponseWriter, r *http.Request) {
	var req FailoverTestRequest
	if err := readBody(w, r, &req); err != nil {
		writeError(w, err)
		return
	}
	out := s.startLines(w)
	report, err := s.node.FailoverTest(r.Context(), r.PathValue("name"), req, func(what string) {
		_ = out.write(Progress{Waiting: what}) // a client that left ends r.Context
	})
	last := Progress{Done: true, Rehearsal: &report}
	if err != nil {
		last = Progress{Error: bodyOf(err), Rehearsal: &report}
	}
	_ = out.write(last)
}

// FailoverPause pauses a volume's failover on all its nodes, or resumes it.
func (c *Client) FailoverPause(ctx context.Context, name string, r FailoverPauseRequest) error {
	return c.post(ctx, name, "failover-pause", r)
}

// FailoverTest moves a volume to a node and back; told is called as each part ends. What
// was measured is returned also with an error.
func (c *Client) FailoverTest(ctx context.Context, name string, r FailoverTestRequest, told func(string)) (failover.Rehearsal, error) {
	last, err := c.long(ctx, volumePath(name, "failover-test"), r, func(p Progress) { told(p.Waiting) })
	if last.Rehearsal == nil {
		return failover.Rehearsal{}, err
	}
	return *last.Rehearsal, err
}
