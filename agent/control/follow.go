package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// How long Follow waits before it asks again for an agent that is away.
const (
	againMin = 100 * time.Millisecond
	againMax = 2 * time.Second
)

// A stream on which nothing is to be told has an empty line every pulse; one without
// for pulseMissed is dead: the agent hangs.
const (
	pulse       = 10 * time.Second
	pulseMissed = 35 * time.Second
)

// Events calls each for every event after since (nil: from now on) up to the newest
// that there is.
func (c *Client) Events(ctx context.Context, since *Position, each func(EventLine) error) error {
	return c.events(ctx, since, false, each, func(Position, uint64) error { return nil })
}

// events is one connection to the stream. begins is called first, with the place after
// which it starts and the number of the oldest event that is kept.
func (c *Client) events(ctx context.Context, since *Position, follow bool, each func(EventLine) error, begins func(at Position, oldest uint64) error) error {
	q := url.Values{}
	if since != nil && since.Boot != "" {
		q.Set("since", since.String())
	} else if since != nil {
		q.Set("since", strconv.FormatUint(since.Seq, 10))
	}
	if follow {
		q.Set("follow", "1")
	}
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dead := time.AfterFunc(c.patience, func() { cancel(errHangs) })
	defer dead.Stop()
	resp, err := c.request(ctx, http.MethodGet, "/v1/events?"+q.Encode(), nil)
	if err != nil {
		return cmp.Or(hung(ctx), err)
	}
	defer resp.Body.Close()
	var begin [2]uint64
	for i, name := range []string{headerSeq, headerOldest} {
		if begin[i], err = strconv.ParseUint(resp.Header.Get(name), 10, 64); err != nil {
			return &volume.Error{Code: protocol.CodeVersion, Text: "this agent is of another version than the command: restart it after an upgrade"}
		}
	}
	if err := begins(Position{resp.Header.Get(headerBoot), begin[0]}, begin[1]); err != nil {
		return err
	}
	err = eachLine(resp.Body, func(line []byte) error {
		dead.Reset(c.patience)
		if len(line) == 0 {
			return nil
		}
		var e EventLine
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("event from the agent: %w", err)
		}
		if e.Event != nil {
			e.Event.Time, e.Event.Reason = e.Time, e.Reason
		}
		return each(e)
	})
	if err == nil && follow && outer.Err() == nil {
		return fmt.Errorf("the agent on %s closed the event stream: %w", c.path, ErrNotRunning)
	}
	return cmp.Or(hung(ctx), err)
}

var errHangs = errors.New("the agent does not answer: it hangs, or its host does")

// hung returns errHangs if ctx was ended by that.
func hung(ctx context.Context) error {
	if cause := context.Cause(ctx); errors.Is(cause, errHangs) {
		return cause
	}
	return nil
}

// Follow calls each for every event after since (nil: from now on), in order, until
// ctx ends or each returns an error, and across restarts of the agent: a line of
// KindAway when it is gone, and when it is back one of KindGap for what is missing, or
// KindBack. Only the first connection must succeed.
func (c *Client) Follow(ctx context.Context, since *Position, each func(EventLine) error) error {
	f := follower{c: c, each: each, at: since}
	for wait := time.Duration(0); ; {
		told, err := f.connect(ctx)
		var refused *volume.Error
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case f.failed != nil:
			return f.failed
		case !f.been, errors.As(err, &refused):
			return err // never connected, or the agent does not want to
		case !f.away:
			if err := f.leave(err); err != nil {
				return err
			}
		}
		if told {
			wait = 0
		}
		wait = min(max(2*wait, againMin), againMax)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follower is a Follow under way.
type follower struct {
	c      *Client
	each   func(EventLine) error
	at     *Position // told up to here
	been   bool      // connected once
	away   bool      // the agent is gone, and each knows
	failed error     // of each
}

// connect tells what there is until the connection ends. told: there was one.
func (f *follower) connect(ctx context.Context) (told bool, err error) {
	each := func(l EventLine) error {
		f.away = false // after begins, what comes first is a gap
		f.at = &Position{l.Boot, l.Seq}
		f.failed = f.each(l)
		return f.failed
	}
	err = f.c.events(ctx, f.at, true, each, func(at Position, oldest uint64) error {
		told, f.been = true, true
		if f.at == nil || f.at.Boot == "" {
			f.at = &at
		}
		if f.away && f.at.Boot == at.Boot && f.at.Seq+1 >= oldest {
			f.away = false
			f.failed = f.each(EventLine{Kind: KindBack, Boot: at.Boot, Seq: at.Seq, Time: time.Now()})
		}
		return f.failed
	})
	return told, err
}

// leave tells that the agent is gone.
func (f *follower) leave(cause error) error {
	f.away = true
	l := EventLine{Kind: KindAway, Boot: f.at.Boot, Seq: f.at.Seq, Time: time.Now()}
	if cause != nil {
		l.Reason = cause.Error()
	}
	return f.each(l)
}
