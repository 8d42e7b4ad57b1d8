package control

import (
	"context"
	"net/http"
	"net/url"

	"github.com/qrbd/qrbd/volume"
)

func (s *Server) archiveRoutes(mux *http.ServeMux) {
	const path = "/v1/volumes/{name}/archives"
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		list, err := s.node.Archives(r.PathValue("name"))
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, list)
	})
	mux.HandleFunc("POST "+path+"/{id}/remove", func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		call(s, func(ctx context.Context, name string, _ struct{}) error { return s.node.RemoveArchive(ctx, name, id) })(w, r)
	})
	mux.HandleFunc("POST "+path+"/{id}/export", func(w http.ResponseWriter, r *http.Request) {
		var req ExportRequest
		if err := readBody(w, r, &req); err != nil {
			writeError(w, err)
			return
		}
		s.stream(w, r, func(ctx context.Context, tell func(Progress)) error {
			return s.node.ExportArchive(ctx, r.PathValue("name"), r.PathValue("id"), req, func(address string) { tell(Progress{Serving: address}) })
		})
	})
	mux.HandleFunc("POST "+path+"/{id}/restore", func(w http.ResponseWriter, r *http.Request) {
		var req struct{}
		if err := readBody(w, r, &req); err != nil {
			writeError(w, err)
			return
		}
		s.stream(w, r, func(ctx context.Context, tell func(Progress)) error {
			return s.node.RestoreArchive(ctx, r.PathValue("name"), r.PathValue("id"), func(done, total int64) {
				tell(Progress{DoneBytes: done, TotalBytes: total})
			})
		})
	})
}

// stream answers with the lines that op tells, the newest only if they come faster
// than they are read, and its end. op ends with the request.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, op func(ctx context.Context, tell func(Progress)) error) {
	told := make(chan Progress, 1)
	end := make(chan error, 1)
	go func() {
		end <- op(r.Context(), func(p Progress) {
			select {
			case <-told:
			default:
			}
			told <- p // op tells from one goroutine
		})
	}()
	var out *lines // opened by the first line, so that a refusal has its status
	write := func(p Progress) {
		if out == nil {
			out = s.startLines(w)
		}
		_ = out.write(p) // a client that left ends r.Context
	}
	for {
		select {
		case p := <-told:
			write(p)
		case err := <-end:
			switch {
			case err == nil:
				write(Progress{Done: true})
			case out == nil:
				writeError(w, err)
			default:
				write(Progress{Error: bodyOf(err)})
			}
			return
		}
	}
}

func archivePath(name, id, verb string) string {
	return volumePath(name, "archives") + "/" + url.PathEscape(id) + "/" + verb
}

// Archives lists a volume's archives.
func (c *Client) Archives(ctx context.Context, name string) ([]volume.ArchiveInfo, error) {
	var list []volume.ArchiveInfo
	err := c.do(ctx, http.MethodGet, volumePath(name, "archives"), nil, &list)
	return list, err
}

// RemoveArchive deletes an archive.
func (c *Client) RemoveArchive(ctx context.Context, name, id string) error {
	return c.do(ctx, http.MethodPost, archivePath(name, id, "remove"), struct{}{}, nil)
}

// ExportArchive serves an archive until ctx ends or its time is over; progress is
// told where.
func (c *Client) ExportArchive(ctx context.Context, name, id string, r ExportRequest, progress func(Progress)) error {
	_, err := c.long(ctx, archivePath(name, id, "export"), r, progress)
	return err
}

// RestoreArchive puts a side that was given up back.
func (c *Client) RestoreArchive(ctx context.Context, name, id string, progress func(Progress)) error {
	_, err := c.long(ctx, archivePath(name, id, "restore"), struct{}{}, progress)
	return err
}
