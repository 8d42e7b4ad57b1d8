package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/qrbd/qrbd/agent/control"
)

// Source is the node that is shown. Its methods do not block for long. Safe for
// concurrent use.
type Source interface {
	Status() control.NodeStatus
	// StatusIO is Status with what the volumes have counted.
	StatusIO() control.NodeStatus
}

// Limits of the server.
const (
	connsMax   = 64
	scrapesMax = 4
	readMax    = 10 * time.Second // a request
	answerMax  = 30 * time.Second // an answer
)

// Server answers on a metrics address.
type Server struct {
	http *http.Server
	addr net.Addr
	done chan struct{} // closed when the accept loop has ended
}

// Listen serves src on address, host:port, until Close.
func Listen(address string, src Source, log *slog.Logger) (*Server, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("metrics on %s: %w", address, err)
	}
	s := &Server{addr: l.Addr(), done: make(chan struct{})}
	s.http = &http.Server{
		Handler:           routes(src, log),
		ReadHeaderTimeout: readMax,
		ReadTimeout:       readMax,
		WriteTimeout:      answerMax,
		IdleTimeout:       2 * time.Minute, // more than a usual scrape interval
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(netutil.LimitListener(l, connsMax)); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics ended", "address", address, "err", err)
		}
	}()
	return s, nil
}

// Addr returns the address that is listened on.
func (s *Server) Addr() net.Addr { return s.addr }

// Close ends the server and returns when its goroutines have ended, or ctx has.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	<-s.done
	return err
}

// Loopback reports whether only this host can reach the address.
func Loopback(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	return ok && t.IP.IsLoopback()
}

func routes(src Source, log *slog.Logger) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collector{src}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		MaxRequestsInFlight: scrapesMax,
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { healthz(w, r, src.Status().Health()) })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "qrbd: /metrics for Prometheus, /healthz for whether every volume is as it should be (?format=json)")
	})
	return mux
}

// healthz answers 200 when every volume is as it should be, otherwise 503 with a
// line for each cause; with ?format=json, or where only JSON is accepted, as JSON.
func healthz(w http.ResponseWriter, r *http.Request, h control.Health) {
	status := http.StatusOK
	if !h.Healthy {
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Cache-Control", "no-store")
	if r.URL.Query().Get("format") == "json" || strings.HasPrefix(r.Header.Get("Accept"), "application/json") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(h) // whoever asked is gone
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	if h.Healthy {
		fmt.Fprintln(w, "ok")
	}
	for _, c := range h.Causes {
		fmt.Fprintln(w, c)
	}
}
