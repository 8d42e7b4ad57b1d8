package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// ErrNotRunning: nobody answers on the control socket.
var ErrNotRunning = errors.New("the agent is not running")

// Client speaks with the agent behind one control socket. Safe for concurrent
// use. A refusal is a *volume.Error, no answer at all is ErrNotRunning.
type Client struct {
	path string
	http *http.Client

	patience time.Duration // with a stream of events that has no pulse; tests shorten it
}

// NewClient returns a client; it does not connect yet.
func NewClient(path string) *Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true, // one command, one call
	}
	return &Client{patience: pulseMissed, path: path, http: &http.Client{Transport: t}}
}

// Status returns the state of the node's volumes.
func (c *Client) Status(ctx context.Context) (NodeStatus, error) {
	var s NodeStatus
	err := c.do(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// StatusIO is Status with what the volumes have counted. An agent of an earlier
// version leaves that out.
func (c *Client) StatusIO(ctx context.Context) (NodeStatus, error) {
	var s NodeStatus
	err := c.do(ctx, http.MethodGet, "/v1/status?io=1", nil, &s)
	return s, err
}

// Reload has the agent read its configuration anew.
func (c *Client) Reload(ctx context.Context) (ReloadReport, error) {
	var r ReloadReport
	err := c.do(ctx, http.MethodPost, "/v1/reload", struct{}{}, &r)
	return r, err
}

// Reach has every peer find out whether it reaches this node.
func (c *Client) Reach(ctx context.Context) ([]PeerReach, error) {
	var r []PeerReach
	err := c.do(ctx, http.MethodGet, "/v1/reach", nil, &r)
	return r, err
}

// Explain returns what would happen on connect or promote now.
func (c *Client) Explain(ctx context.Context, name string) (volume.Explanation, error) {
	var e volume.Explanation
	err := c.do(ctx, http.MethodGet, volumePath(name, "explain"), nil, &e)
	return e, err
}

// Create makes backing store and metadata of a configured volume.
func (c *Client) Create(ctx context.Context, name string, r CreateRequest) error {
	return c.post(ctx, name, "create", r)
}

// Destroy removes this node's replica of a volume.
func (c *Client) Destroy(ctx context.Context, name string, r DestroyRequest) error {
	return c.post(ctx, name, "destroy", r)
}

// Resize makes this node's replica larger.
func (c *Client) Resize(ctx context.Context, name string, r ResizeRequest) error {
	_, err := c.long(ctx, volumePath(name, "resize"), r, nil)
	return err
}

// Promote makes the volume primary here.
func (c *Client) Promote(ctx context.Context, name string, r PromoteRequest) error {
	return c.post(ctx, name, "promote", r)
}

// Demote makes the volume secondary here.
func (c *Client) Demote(ctx context.Context, name string, r DemoteRequest) error {
	return c.post(ctx, name, "demote", r)
}

// Switchover hands the primary role to a peer.
func (c *Client) Switchover(ctx context.Context, name string, r SwitchoverRequest) error {
	return c.post(ctx, name, "switchover", r)
}

// Connect connects to a peer or all.
func (c *Client) Connect(ctx context.Context, name string, r ConnectRequest) error {
	return c.post(ctx, name, "connect", r)
}

// Disconnect leaves a peer or all.
func (c *Client) Disconnect(ctx context.Context, name string, r DisconnectRequest) error {
	return c.post(ctx, name, "disconnect", r)
}

// ReplaceDisk puts an empty disk in the place of one that failed.
func (c *Client) ReplaceDisk(ctx context.Context, name string) error {
	return c.post(ctx, name, "replace-disk", struct{}{})
}

// Invalidate gives this side's data up for a full resync.
func (c *Client) Invalidate(ctx context.Context, name string) error {
	return c.post(ctx, name, "invalidate", struct{}{})
}

// Outdate keeps this node's replica from being promoted before it has been in sync again.
func (c *Client) Outdate(ctx context.Context, name string) error {
	return c.post(ctx, name, "outdate", struct{}{})
}

// Verify compares with a peer or all; progress is called for each line.
func (c *Client) Verify(ctx context.Context, name string, r VerifyRequest, progress func(Progress)) ([]volume.VerifyReport, error) {
	last, err := c.long(ctx, volumePath(name, "verify"), r, progress)
	return last.Reports, err
}

// Wait returns when the state is reached; progress is called with what is still
// missing.
func (c *Client) Wait(ctx context.Context, name string, r WaitRequest, progress func(Progress)) error {
	_, err := c.long(ctx, volumePath(name, "wait"), r, progress)
	return err
}

func volumePath(name, verb string) string { return "/v1/volumes/" + url.PathEscape(name) + "/" + verb }

func (c *Client) post(ctx context.Context, name, verb string, r any) error {
	return c.do(ctx, http.MethodPost, volumePath(name, verb), r, nil)
}

// do makes a call that is over in its callLimit.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit(path)+clientSlack)
	defer cancel()
	body, err := c.open(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, body)
	} else {
		err = json.NewDecoder(body).Decode(out)
	}
	if err != nil {
		return fmt.Errorf("reading the agent's answer to %s: %w", path, err)
	}
	return nil
}

// long makes a call with progress and returns its last line.
func (c *Client) long(ctx context.Context, path string, in any, progress func(Progress)) (Progress, error) {
	body, err := c.open(ctx, http.MethodPost, path, in)
	if err != nil {
		return Progress{}, err
	}
	defer body.Close()
	var last Progress
	err = eachLine(body, func(line []byte) error {
		last = Progress{}
		if err := json.Unmarshal(line, &last); err != nil {
			return fmt.Errorf("progress from the agent: %w", err)
		}
		if !last.Done && last.Error == nil && progress != nil {
			progress(last)
		}
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return last, ctx.Err()
	case err != nil:
		return last, err
	case last.Error != nil:
		return last, last.Error.asError()
	case !last.Done:
		return last, fmt.Errorf("the agent on %s ended before it was done: %w", c.path, ErrNotRunning)
	}
	return last, nil
}

// open sends a request and returns the body of a successful answer.
func (c *Client) open(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	resp, err := c.request(ctx, method, path, in)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// request sends a request and returns the answer, which is a successful one.
func (c *Client) request(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("request %s: %w", path, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://qrbd"+path, body)
	if err != nil {
		return nil, fmt.Errorf("request %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var answer struct {
		Error *ErrorBody `json:"error"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, bodyMax)).Decode(&answer); err != nil || answer.Error == nil {
		return nil, fmt.Errorf("the agent answered %s with status %s", path, resp.Status)
	}
	return nil, answer.Error.asError()
}

// explain says in an operator's words why there was no answer.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (no answer on %s): start it with qrbd agent", ErrNotRunning, c.path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("the control socket %s may not be used by this user: run the command as root, or be a member of the group that control_group or control_readers names", c.path)
	case errors.Is(err, context.DeadlineExceeded):
		return &volume.Error{Code: protocol.CodeTimeout, Text: fmt.Sprintf("the agent did not answer on %s in time; the operation may still complete: look at qrbd status", c.path)}
	case errors.Is(err, context.Canceled):
		return err
	}
	return fmt.Errorf("speaking with the agent on %s: %w", c.path, err)
}

// lineMax bounds a line of a streamed answer: a verify report of a thousand
// ranges for each of fifteen peers is under 1 MiB.
const lineMax = 4 << 20

func eachLine(r io.Reader, each func([]byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 64<<10), lineMax)
	for s.Scan() {
		if err := each(s.Bytes()); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("reading from the agent: %w", err)
	}
	return nil
}
