package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strconv"
	"time"

	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// Server answers on a control socket.
type Server struct {
	node   Node
	access Access
	events *Ring
	log    *slog.Logger
	http   *http.Server
	done   chan struct{} // closed when the accept loop has ended
	stop   context.CancelFunc
	base   context.Context // of every request

	lineTimeout time.Duration // tests shorten it
}

// Listen makes the socket at path, replacing one that a dead agent left, and
// serves until Close whom access lets in.
func Listen(path string, access Access, node Node, events *Ring, log *slog.Logger) (*Server, error) {
	return listen(path, access, node, events, log, lineTimeout)
}

func listen(path string, access Access, node Node, events *Ring, log *slog.Logger, lineTimeout time.Duration) (*Server, error) {
	l, err := nbd.ListenUnix(path, access.socket())
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	s := &Server{lineTimeout: lineTimeout, node: node, access: access, events: events, log: log, done: make(chan struct{})}
	s.base, s.stop = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s.guard(s.routes()),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return s.base },
		ConnContext:       withCaller,
		ErrorLog:          slogAdapter(log),
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(&gate{Listener: l, access: access}); !errors.Is(err, http.ErrServerClosed) {
			log.Error("control socket ended", "path", path, "err", err)
		}
	}()
	return s, nil
}

// Close ends every call (streams and waits too) and returns when the accept
// loop and the handlers have ended, or ctx has.
func (s *Server) Close(ctx context.Context) error {
	s.stop()
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	<-s.done
	return err
}

func (s *Server) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("io") == "1" {
			writeJSON(w, http.StatusOK, s.node.StatusIO())
			return
		}
		writeJSON(w, http.StatusOK, s.node.Status())
	})
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) {
		report, err := s.node.Reload(r.Context())
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, report)
	})
	mux.HandleFunc("GET /v1/volumes/{name}/explain", func(w http.ResponseWriter, r *http.Request) {
		e, err := s.node.Explain(r.PathValue("name"))
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, e)
	})
	mux.HandleFunc("GET /v1/events", s.streamEvents)
	mux.HandleFunc("GET /v1/reach", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, http.StatusOK, s.node.Reach(r.Context())) })
	mux.HandleFunc("POST /v1/volumes/{name}/create", call(s, s.node.Create))
	mux.HandleFunc("POST /v1/volumes/{name}/resize", s.resize)
	mux.HandleFunc("POST /v1/volumes/{name}/destroy", call(s, s.node.Destroy))
	mux.HandleFunc("POST /v1/volumes/{name}/promote", call(s, s.node.Promote))
	mux.HandleFunc("POST /v1/volumes/{name}/demote", call(s, s.node.Demote))
	mux.HandleFunc("POST /v1/volumes/{name}/switchover", call(s, s.node.Switchover))
	mux.HandleFunc("POST /v1/volumes/{name}/connect", call(s, s.node.Connect))
	mux.HandleFunc("POST /v1/volumes/{name}/disconnect", call(s, s.node.Disconnect))
	mux.HandleFunc("POST /v1/volumes/{name}/replace-disk", call(s, func(ctx context.Context, name string, _ struct{}) error {
		return s.node.ReplaceDisk(ctx, name)
	}))
	mux.HandleFunc("POST /v1/volumes/{name}/invalidate", call(s, func(ctx context.Context, name string, _ struct{}) error {
		return s.node.Invalidate(ctx, name)
	}))
	mux.HandleFunc("POST /v1/volumes/{name}/outdate", call(s, func(ctx context.Context, name string, _ struct{}) error {
		return s.node.Outdate(ctx, name)
	}))
	mux.HandleFunc("POST /v1/volumes/{name}/verify", s.streamVerify)
	mux.HandleFunc("POST /v1/volumes/{name}/wait", s.streamWait)
	s.archiveRoutes(mux)
	s.failoverRoutes(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, refuse(protocol.CodeVersion, "this agent has no %s %s: the command and the agent are of different versions; restart the agent after an upgrade", r.Method, r.URL.Path))
	})
	return mux
}

// callLimit returns the end of a call that has no progress to show.
func callLimit(route string) time.Duration {
	if path.Base(route) == "promote" {
		return promoteMax
	}
	return callMax
}

// call makes a handler of an operation that has no progress to show.
func call[T any](s *Server, op func(context.Context, string, T) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req T
		if err := readBody(w, r, &req); err != nil {
			writeError(w, err)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), callLimit(r.URL.Path))
		defer cancel()
		name := r.PathValue("name")
		log := s.log.With("volume", name, "operation", path.Base(r.URL.Path)).With(callerFrom(r).attrs()...)
		if err := op(ctx, name, req); err != nil {
			log.Info("operation refused", "err", err)
			writeError(w, err)
			return
		}
		log.Info("operation done")
		writeJSON(w, http.StatusOK, struct{}{})
	}
}

// resize answers when it is done: zeroing a large device has no end of its own.
func (s *Server) resize(w http.ResponseWriter, r *http.Request) {
	var req ResizeRequest
	if err := readBody(w, r, &req); err != nil {
		writeError(w, err)
		return
	}
	if err := s.node.Resize(r.Context(), r.PathValue("name"), req); err != nil {
		s.log.Info("operation refused", "volume", r.PathValue("name"), "operation", "resize", "err", err)
		writeError(w, err)
		return
	}
	_ = s.startLines(w).write(Progress{Done: true})
}

// readBody decodes a request strictly: a field that this version does not know
// is an operator's word that must not be dropped.
func readBody(w http.ResponseWriter, r *http.Request, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyMax))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return refuse(protocol.CodeProtocol, "bad request body: %v", err)
	}
	return nil
}

// lines writes JSON objects, one a line, each sent at once.
type lines struct {
	limit time.Duration // for a line
	raw   io.Writer
	enc   *json.Encoder
	out   *http.ResponseController
}

func (s *Server) startLines(w http.ResponseWriter) *lines {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	return &lines{limit: s.lineTimeout, raw: w, enc: json.NewEncoder(w), out: http.NewResponseController(w)}
}

// lineTimeout ends a stream whose reader takes nothing for so long.
const lineTimeout = 30 * time.Second

func (l *lines) write(v any) error {
	if err := l.out.SetWriteDeadline(time.Now().Add(l.limit)); err != nil {
		return err
	}
	if err := l.enc.Encode(v); err != nil {
		return err
	}
	return l.out.Flush()
}

// Headers of the event stream: where it begins.
const (
	headerBoot   = "Qrbd-Boot"
	headerSeq    = "Qrbd-Seq"
	headerOldest = "Qrbd-Oldest" // the oldest event that is kept
)

// beat writes an empty line: a sign of life.
func (l *lines) beat() error {
	if err := l.out.SetWriteDeadline(time.Now().Add(l.limit)); err != nil {
		return err
	}
	if _, err := l.raw.Write([]byte{'\n'}); err != nil {
		return err
	}
	return l.out.Flush()
}

func (s *Server) streamEvents(w http.ResponseWriter, r *http.Request) {
	at := s.events.Last()
	w.Header().Set(headerBoot, at.Boot)
	w.Header().Set(headerOldest, strconv.FormatUint(s.events.oldest(), 10))
	if v := r.URL.Query().Get("since"); v != "" {
		var err error
		if at, err = ParsePosition(v); err != nil {
			writeError(w, refuse(protocol.CodeProtocol, "since: %v", err))
			return
		}
	}
	w.Header().Set(headerSeq, strconv.FormatUint(at.Seq, 10))
	follow := r.URL.Query().Get("follow") == "1"
	out := s.startLines(w)
	_ = out.out.Flush()
	idle := time.NewTicker(pulse)
	defer idle.Stop()
	for {
		ended := r.Context().Err() != nil // before looking: what came before the end is told
		batch, next, more := s.events.After(at)
		for _, e := range batch {
			if out.write(e) != nil {
				return
			}
		}
		at = next
		if len(batch) > 0 {
			continue
		}
		if !follow || ended {
			return
		}
		select {
		case <-more:
		case <-idle.C:
			if out.beat() != nil {
				return
			}
		case <-r.Context().Done():
		}
	}
}

// progressEvery bounds how often a verify's progress is written.
const progressEvery = 200 * time.Millisecond

func (s *Server) streamVerify(w http.ResponseWriter, r *http.Request) {
	var req VerifyRequest
	if err := readBody(w, r, &req); err != nil {
		writeError(w, err)
		return
	}
	type result struct {
		reports []volume.VerifyReport
		err     error
	}
	name := r.PathValue("name")
	progress := make(chan Progress, 1) // the newest only
	end := make(chan result, 1)
	go func() {
		reports, err := s.node.Verify(r.Context(), name, req, func(done, total int64) {
			select {
			case <-progress:
			default:
			}
			select {
			case progress <- Progress{DoneBytes: done, TotalBytes: total}:
			default: // another caller was quicker
			}
		})
		end <- result{reports, err}
	}()
	var out *lines // opened by the first line, so that a refusal has its status
	pace := time.NewTicker(progressEvery)
	defer pace.Stop()
	for {
		select {
		case <-pace.C:
			select {
			case p := <-progress:
				if out == nil {
					out = s.startLines(w)
				}
				_ = out.write(p) // a client that left ends r.Context
			default:
			}
		case res := <-end:
			if res.err != nil && out == nil {
				writeError(w, res.err)
				return
			}
			if out == nil {
				out = s.startLines(w)
			}
			last := Progress{Done: true, Reports: res.reports}
			if res.err != nil {
				last = Progress{Error: bodyOf(res.err), Reports: res.reports}
			}
			_ = out.write(last)
			return
		}
	}
}

func (s *Server) streamWait(w http.ResponseWriter, r *http.Request) {
	var req WaitRequest
	if err := readBody(w, r, &req); err != nil {
		writeError(w, err)
		return
	}
	ctx := r.Context()
	if req.TimeoutSeconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(req.TimeoutSeconds*float64(time.Second)))
		defer cancel()
	}
	name := r.PathValue("name")
	if _, err := reached(s.node.Status(), name, req.For); err != nil {
		writeError(w, err)
		return
	}
	out := s.startLines(w)
	_ = out.write(s.wait(ctx, name, req.For, out))
}

// waitPoll is how often a state is looked at besides every event.
const waitPoll = time.Second

// wait writes a line whenever what is missing changes, and returns the last one.
func (s *Server) wait(ctx context.Context, name string, what WaitFor, out *lines) Progress {
	poll := time.NewTicker(waitPoll)
	defer poll.Stop()
	told := ""
	for {
		changed := s.events.Changed()
		missing, err := reached(s.node.Status(), name, what)
		if err != nil {
			return Progress{Error: bodyOf(err)}
		}
		if missing == "" {
			return Progress{Done: true}
		}
		if missing != told {
			if out.write(Progress{Waiting: missing}) != nil {
				return Progress{}
			}
			told = missing
		}
		select {
		case <-changed:
		case <-poll.C:
		case <-ctx.Done():
			code := protocol.CodeTimeout
			if s.base.Err() != nil {
				code = protocol.CodeShutdown
			}
			return Progress{Error: bodyOf(refuse(code, "volume %s is not %s: %s", name, what, missing))}
		}
	}
}

func slogAdapter(l *slog.Logger) *log.Logger {
	return slog.NewLogLogger(l.Handler(), slog.LevelDebug)
}
